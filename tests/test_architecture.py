"""The house rules of the code, held by its syntax trees: arrows, names and forbidden calls."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedvtc_edge.models import architectures

ROOT = Path(__file__).parents[1]
PACKAGE = "fedvtc_edge"
SIDES = ("attacks", "benchmarks", "export")

# Who stands above whom. A module imports from layers before its own and from no other,
# lazily or not; inside a package, modules are free. A new module is entered here.
LAYERS: list[set[str]] = [
    {"documents", "errors", "fields", "progress", "seeding"},
    {"config", "graph_rules", "plugins", "statistics", "storage"},
    {"data", "privacy", "wire"},
    {"models", "sealing"},
    {"masking"},
    {"transport"},
    {"runs", "training"},
    {"devices", "report"},
    {"federation"},
    {"distributed"},
    {"flower"},
    {"workflows"},
    {"commands"},
    {"__main__", "__init__"},
]
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


MODULES = sources(PACKAGE)
EVERYTHING = sources(PACKAGE, *SIDES)


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def unit_of(path: Path) -> str:
    """``config`` for fedvtc_edge/config.py, ``data`` for all of fedvtc_edge/data/."""
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Absolute dotted names that a module of ``package`` imports, at whatever depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            parts = parts[: len(parts) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    """As :func:`imported`; a side folder is a package of its name inside fedvtc_edge."""
    parts = list(path.relative_to(ROOT).parent.parts)
    package = ".".join(parts if parts[0] == PACKAGE else [PACKAGE, *parts])
    return set(imported(ast.parse(path.read_text("utf-8")), package))


def target(name: str) -> str | None:
    """The unit of fedvtc_edge that a dotted name lies in, or None for other packages."""
    first, _, rest = name.partition(".")
    if first in SIDES:
        return first
    if first != PACKAGE:
        return None
    unit = rest.partition(".")[0]
    return unit if unit in RANK or unit in SIDES else "__init__"


# ---------------------------------------------------------------- arrows


def test_every_module_has_its_layer() -> None:
    assert {unit_of(path) for path in MODULES} == set(RANK)
    assert sum(map(len, LAYERS)) == len(RANK)


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_no_arrow_runs_upward(path: Path) -> None:
    own = unit_of(path)
    for name in imports_of(path):
        unit = target(name)
        if unit is None or unit == own:
            continue
        assert unit not in SIDES, f"{short(path)} imports the side package {name}"
        if own != "__init__":  # the package's own names load on first use
            assert RANK[unit] < RANK[own], f"{short(path)} imports {name}, which stands above it"


def test_no_circle_of_modules() -> None:
    """Late imports count too; those for type checkers alone do not."""
    names = {".".join(dotted_parts(path)): path for path in EVERYTHING}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = [ast.Pass()]
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found = set(imported(tree, package))
        graph[name] = {
            target if target in names else target.rpartition(".")[0] for target in found
        } & set(names) - {name}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names it


def dotted_parts(path: Path) -> list[str]:
    """``["fedvtc_edge", "export", "bundle"]`` for export/bundle.py."""
    parts = [*path.relative_to(ROOT).with_suffix("").parts]
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return parts if parts[0] == PACKAGE else [PACKAGE, *parts]


# What a layer would allow, and what must not be all the same: who imports, and from what.
FORBIDDEN = [
    ("fedvtc_edge/privacy", "fedvtc_edge.masking"),  # it is told how many clients may drop out
    ("fedvtc_edge/training/client.py", "fedvtc_edge.wire"),  # statistics, not their bytes
    ("export", "fedvtc_edge.distributed"),
    ("attacks", "fedvtc_edge.federation.assembly"),  # an adversary has uploads, and no federation
    ("attacks", "fedvtc_edge.federation.evaluation"),
]


@pytest.mark.parametrize(("importer", "forbidden"), FORBIDDEN)
def test_forbidden_arrows(importer: str, forbidden: str) -> None:
    importers = [path for path in EVERYTHING if short(path).startswith(importer)]
    assert importers
    for path in importers:
        found = {name for name in imports_of(path) if f"{name}.".startswith(f"{forbidden}.")}
        assert not found, f"{short(path)} imports {found}"


@pytest.mark.parametrize("side", SIDES)
def test_side_packages_do_not_know_each_other(side: str) -> None:
    # But for those that measure what export makes, or audit it (docs/decisions/0010 and 0037).
    known = {side} | (set() if side == "export" else {"export"})
    for path in sources(side):
        others = {target(name) for name in imports_of(path)} & set(SIDES) - known
        assert not others, f"{short(path)} imports {others}"


def test_export_does_not_know_the_distributed_engine() -> None:
    """A client's folder is read by the names of its files, as any finished run is."""
    for path in sources("export"):
        assert "distributed" not in {target(name) for name in imports_of(path)}, short(path)


def test_nothing_but_the_package_itself_imports_by_name() -> None:
    """A computed import would be an arrow that this file cannot see."""
    users = {
        short(path)
        for path in EVERYTHING
        if {"import_module", "spec_from_file_location"}
        & {
            node.attr if isinstance(node, ast.Attribute) else node.name
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Attribute | ast.alias)
        }
    }
    assert users == {
        "fedvtc_edge/__init__.py",
        "fedvtc_edge/data/torchvision_sets.py",  # torchvision, by that very name
        "fedvtc_edge/plugins.py",  # what the user names, and what fills the registries
    }


@pytest.mark.parametrize(
    ("code", "units"),
    [
        ("import fedvtc_edge.report.page", {"report"}),
        ("from fedvtc_edge import wire", {"wire"}),
        ("from fedvtc_edge import run", {"__init__"}),
        ("from . import trees", {"data"}),
        ("from .. import wire", {"wire"}),
        ("from ..models.vtc import VTC", {"models"}),
        ("def late():\n    from fedvtc_edge.workflows.run import run", {"workflows"}),
        ("import attacks", {"attacks"}),
        ("from fedvtc_edge.export import x", {"export"}),
        ("import numpy, torch.nn", {None}),
    ],
)
def test_arrows_are_seen(code: str, units: set[str | None]) -> None:
    assert {target(name) for name in imported(ast.parse(code), "fedvtc_edge.data")} == units


# ---------------------------------------------------------------- names


def spoken(tree: ast.Module) -> Iterator[str]:
    """Identifiers and strings of a module, docstrings left out."""
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def named(tree: ast.Module) -> set[str]:
    """Names of architectures that a module speaks of."""
    words = {word for text in spoken(tree) for word in re.findall(r"\w+", text)}
    return words & set(architectures())


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_only_models_knows_names_of_architectures(path: Path) -> None:
    if unit_of(path) in ("models", "config"):  # config holds the default fleet
        return
    assert not named(ast.parse(path.read_text("utf-8")))


def test_names_of_architectures_are_seen() -> None:
    assert named(ast.parse('"""lenet"""\nx = "resnet18, please" if mlp else y.lenet')) == {
        "lenet",
        "mlp",
        "resnet18",
    }
    assert not named(ast.parse('"""lenet"""\nx = "a resnet"'))


# ---------------------------------------------------------------- what can run code

PICKLERS = {"cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve"}
RUNNERS = {"__import__", "compile", "eval", "exec"}
CALLS = {
    "numpy.ndarray.dump",
    "os.popen",
    "os.system",
    "pandas.read_pickle",
    "torch.hub.load",
    "torch.jit.load",
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.unsafe_load",
    *(f"builtins.{name}" for name in RUNNERS),
}


def dotted(node: ast.AST, known: dict[str, str]) -> str:
    """``torch.load`` for ``t.load`` after ``import torch as t``; empty for anything else."""
    if isinstance(node, ast.Name):
        return known.get(node.id, "")
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, known)
        return f"{base}.{node.attr}" if base else ""
    return ""


def dangers(tree: ast.AST) -> set[str]:
    """Ways in which data could become code."""
    found, known = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                known[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for name in known.values():
        if name.partition(".")[0] in PICKLERS or name in CALLS:
            found.add(name)
    for node in ast.walk(tree):
        name = dotted(node, known)
        if name in CALLS:
            found.add(name)
        elif isinstance(node, ast.Name) and node.id in RUNNERS and node.id not in known:
            found.add(node.id)
        elif isinstance(node, ast.keyword):
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            safe = {"allow_pickle": False, "shell": False, "weights_only": True}
            if node.arg in safe and value is not safe[node.arg]:
                found.add(node.arg)
    return found


@pytest.mark.parametrize("path", EVERYTHING, ids=short)
def test_no_data_ever_becomes_code(path: Path) -> None:
    # Arrays alone, of a file whose hash is pinned and checked before (docs/decisions/0032).
    allowed = {"torch.load"} if short(path) == "fedvtc_edge/models/weight_files.py" else set()
    assert dangers(ast.parse(path.read_text("utf-8"))) == allowed


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", {"pickle"}),
        ("def f():\n    from pickle import loads as g", {"pickle.loads"}),
        ("import torch as t\nt.load(x)", {"torch.load"}),
        ("from torch import load", {"torch.load"}),
        ("import torch\nf = torch.load", {"torch.load"}),
        ("eval('1')", {"eval"}),
        ("run = exec", {"exec"}),
        ("import builtins\nbuiltins.eval('1')", {"builtins.eval"}),
        ("import numpy as np\nnp.load(x, allow_pickle=True)", {"allow_pickle"}),
        ("import numpy as np\nnp.load(x, allow_pickle=flag)", {"allow_pickle"}),
        ("import numpy as np\nnp.load(x, allow_pickle=False)", set()),
        ("import subprocess\nsubprocess.run(x, shell=True)", {"shell"}),
        ("# pickle, eval(x)\n'torch.load'\nmodel.eval()\nre.compile('x')", set()),
        ("from safetensors.torch import load\nload(x)", set()),
    ],
)
def test_dangers_are_seen(code: str, found: set[str]) -> None:
    assert dangers(ast.parse(code)) == found
