"""Plug-ins: own architectures, extractors, methods and attacks, each in one file outside."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from torch import nn

import fedvtc_edge
from fedvtc_edge import plugins
from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ConfigError, DataError
from fedvtc_edge.federation.methods import FedVTC
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.models import architectures, build, register
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.models.registry import ImageShape
from fedvtc_edge.workflows.run import run

Call = Callable[..., Any]
Tiny = Callable[..., Config]

FILES = Path(__file__).parent / "plugins"
ARCHITECTURE, EXTRACTOR, METHOD, ATTACK = (
    str(FILES / f"own_{kind}.py") for kind in ("architecture", "extractor", "method", "attack")
)
SHAPE = ImageShape(8, 1)

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.fixture
def settings(tmp_path: Path, tiny: Tiny) -> Callable[..., str]:
    """Writes a tiny configuration with some keys changed; returns its name."""

    def write(**changes: Any) -> str:
        document = tiny(**changes).model_dump(mode="json", exclude_none=True)
        (tmp_path / "tiny.toml").write_text(tomli_w.dumps(document))
        return "tiny.toml"

    return write


def plugin(folder: Path, text: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


# Loading.


def test_what_cannot_be_loaded_says_where_and_why(tmp_path: Path) -> None:
    broken = plugin(tmp_path, "import math\n\nmath.sqrt(-1)\n")
    for source, message, hint in (
        (str(tmp_path / "nowhere.py"), f"no plug-in at {tmp_path}/nowhere.py", "ends in .py"),
        (f"{tmp_path}/", f"no plug-in at {tmp_path}", "ends in .py"),
        ("nowhere_at_all", "no plug-in module 'nowhere_at_all'", "path of a .py file"),
        ("not a module", "no plug-in module 'not a module'", "path of a .py file"),
        (broken, f"plug-in {broken}, line 3: ValueError: ", "docs/plugins.md"),
        (plugin(tmp_path, "x = (", "half.py"), "half.py, line 1: SyntaxError: ", "docs/plugins"),
        (plugin(tmp_path, "import nothere", "a.py"), "line 1: ModuleNotFoundError", "nothere"),
        (f"{tmp_path}/a{os.pathsep}b.py", "a path with", "rename"),
    ):
        with pytest.raises(plugins.PluginError) as refused:
            plugins.load(source)
        assert message in str(refused.value)
        assert hint in refused.value.hint
    assert os.environ[plugins.VARIABLE] == ""
    assert not [name for name in sys.modules if name.startswith("fedvtc_edge_plugin_")]


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    taken = plugin(
        tmp_path,
        "from torch import nn\n"
        "from fedvtc_edge.models import register\n"
        "register('fresh')(lambda shape: nn.Flatten())\n"
        "register('mlp')(lambda shape: nn.Flatten())\n",
    )
    for _ in range(2):  # what it registered before the error is forgotten
        with pytest.raises(plugins.PluginError, match="line 4: architecture 'mlp' is registered"):
            plugins.load(taken)
    assert "fresh" not in architectures()
    with pytest.raises(ConfigError, match="no name for a plug-in"):
        register("\n")(lambda shape: nn.Flatten())


def test_a_module_is_loaded_once_and_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: Callable[[], None]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = "with open('loaded', 'a') as file:\n    file.write('x')\n"
    path = plugin(tmp_path, text, "own_module.py")
    monkeypatch.chdir(tmp_path)
    plugins.load("own_module", "own_module.py", path, "own_module")
    assert (tmp_path / "loaded").read_text() == "xx", "once as a module, once as a file"
    inherited = os.environ[plugins.VARIABLE]
    assert inherited.split(os.pathsep) == ["own_module", path]
    fresh()
    del sys.modules["own_module"]
    monkeypatch.setenv(plugins.VARIABLE, inherited)  # as in a process that this one started
    assert (tmp_path / "loaded").read_text() == "xx", "not before a name is looked up"
    architectures()
    architectures()
    assert (tmp_path / "loaded").read_text() == "xxxx"


class Entry(importlib.metadata.EntryPoint):
    """An entry point of this file."""

    dist = None


def pond(shape: ImageShape) -> nn.Module:
    """A body that an installed distribution offers."""
    return nn.Flatten()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes entry points of architectures appear as if installed."""

    def offer(**values: str) -> None:
        entries = [
            Entry(name, value, "fedvtc_edge.architectures") for name, value in values.items()
        ]
        monkeypatch.setattr(
            plugins.metadata,
            "entry_points",
            lambda group: entries if group == "fedvtc_edge.architectures" else [],
        )
        plugins._offered.cache_clear()

    yield offer
    monkeypatch.undo()
    plugins._offered.cache_clear()


def test_entry_points(installed: Callable[..., None]) -> None:
    installed(pond=f"{__name__}:pond", gone="nowhere_at_all:body", mlp=f"{__name__}:pond")
    assert architectures()[-2:] == ("pond", "gone")
    assert build("pond", SHAPE, latent=4, classes=3, seed=0).projection.in_features == 64
    with pytest.raises(plugins.PluginError, match="the entry point gone = nowhere_at_all:body"):
        build("gone", SHAPE, latent=4, classes=3, seed=0)
    with pytest.raises(ConfigError, match="architecture 'mlp' is there twice"):
        build("mlp", SHAPE, latent=4, classes=3, seed=0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda shape: "network", "builds a str, expected a torch.nn.Module"),
        (lambda shape: nn.Identity(), r"gives features of shape \[1, 1, 8, 8\]"),
    ],
)
def test_a_body_that_is_none(body: Any, message: str) -> None:
    with (
        plugins.ARCHITECTURES.lent({"odd": body}),
        pytest.raises(ConfigError, match=message) as refused,
    ):
        build("odd", SHAPE, latent=4, classes=3, seed=0)
    assert "[N, d]" in refused.value.hint
    assert "odd" not in architectures()


def test_a_process_that_looks_up_no_name_loads_none() -> None:
    """What ``bench`` measures, and what checks an exported bundle, stays as small as a device's."""
    code = (
        "import sys, fedvtc_edge.benchmarks.bench.child, fedvtc_edge.export.bundle;"
        "print(any('plugin_' in name or name == 'torch' for name in sys.modules))"
    )
    environ = os.environ | {plugins.VARIABLE: ARCHITECTURE}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_the_package_offers_what_it_says() -> None:
    from fedvtc_edge.attacks import audit

    assert fedvtc_edge.audit is audit
    assert set(dir(fedvtc_edge)) == set(fedvtc_edge.__all__)
    assert all(callable(getattr(fedvtc_edge, name)) for name in fedvtc_edge.__all__)


def test_every_command_takes_it(call: Call, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.py")
    for words in (
        "run", "compare", "export x --out y", "verify x", "synthesize x --out a.png",
        "classify x y", "devices", "devices calibrate", "plan --device rpi4", "bench x",
        "audit x", "keys new x", "keys show x", "keys trust x", "keys trial x", "serve",
        "join localhost:1", "report x", "refresh x y",
    ):  # fmt: skip
        call(*words.split(), "--plugin", missing).refuses("no plug-in at", "ends in .py")


# An architecture: trained, resumed, exported, verified, planned for.


@pytest.mark.usefixtures("quick")
def test_an_architecture(
    call: Call,
    settings: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fresh: Callable[[], None],
) -> None:
    from fedvtc_edge.runs.directory import RunDirectory

    def stop(self: RunDirectory, records: Any) -> None:
        raise KeyboardInterrupt

    needs = ("unknown architecture 'pyramid'", "--plugin FILE.py")
    file = settings()
    words = ["--set", "clients.architectures=['pyramid','mlp']", "--quiet"]
    call("run", file, *words, "--out", "there").refuses(*needs)
    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "_append", stop)
        stopped = call("run", file, *words, "--out", "there", "--plugin", ARCHITECTURE)
    stopped.refuses("interrupted", f"run --resume there --plugin {ARCHITECTURE}", 130)
    fresh()
    call("run", "--resume", "there", "--quiet").refuses(*needs)
    resumed = call("run", "--resume", "there", "--quiet", "--json", "--plugin", ARCHITECTURE)
    assert [client["architecture"] for client in json.loads(resumed.out)["clients"]] == [
        "pyramid",
        "mlp",
        "pyramid",
    ]
    fresh()
    export = ["export", "there", "--out", "bundles", "--client", "client-00", "--quiet"]
    call(*export).refuses(*needs)
    assert call(*export, "--plugin", ARCHITECTURE).code == 0
    fresh()  # a bundle holds graphs, and needs no plug-in
    assert call("verify", "bundles/client-00").code == 0
    from fedvtc_edge.export import Bundle

    assert Bundle.open(tmp_path / "bundles/client-00").classify(
        np.zeros((2, 8, 8, 1), np.uint8)
    ).shape == (2, 10)
    plan = ["plan", "--device", "rpi4", "--set", "clients.architectures=['pyramid']"]
    call(*plan).refuses(*needs)
    shown = call(*plan, "--plugin", ARCHITECTURE, "--batch", "4")
    assert "pyramid" in shown.out


# A method: trained, compared, exported.


@pytest.mark.usefixtures("quick")
def test_a_method(
    call: Call, settings: Callable[..., str], tmp_path: Path, fresh: Callable[[], None]
) -> None:
    file = settings(method={"rounds": 2})
    words = ["run", file, "--set", "method.name=magnet", "--out", "there", "--quiet", "--json"]
    call(*words).refuses("unknown method 'magnet'", "--plugin FILE.py")
    summary = json.loads(call(*words, "--plugin", METHOD).out)
    assert (summary["method"], summary["share"]) == ("magnet", None)
    assert summary["upload_bytes_total"] > 0
    private = [*words[:4], "--set", "privacy.mode=anchored", "--plugin", METHOD]
    call(*private).refuses("what that method uploads is not noised", 'method.name = "fedvtc"')
    compared = call(
        *["compare", file, "--methods", "magnet,local", "--seeds", "0", "--json", "--quiet"],
        *["--plugin", METHOD],
    )
    assert set(json.loads(compared.out)["methods"]) == {"magnet", "local"}
    fresh()
    export = ["export", "there", "--out", "bundles", "--client", "client-00", "--quiet"]
    call(*export).refuses("unknown method 'magnet'", "--plugin FILE.py")
    assert call(*export, "--plugin", METHOD).code == 0


def test_the_method_in_the_docs(call: Call, settings: Callable[..., str], tmp_path: Path) -> None:
    page = (FILES.parents[1] / "docs" / "plugins.md").read_text("utf-8")
    file = plugin(tmp_path, page.split("# nearest_mean.py\n")[1].split("```")[0], "nearest_mean.py")
    config = settings(method={"rounds": 1})
    words = ["--plugin", file, "--quiet"]
    rows = ["--methods", "nearest-mean,statistics", "--seeds", "0"]
    compared = call("compare", config, *rows, *words, "--json")
    found = json.loads(compared.out)["methods"]
    assert set(found) == {"nearest-mean", "statistics"}
    assert 0.3 < found["nearest-mean"]["accuracy_mean"] <= found["statistics"]["accuracy_mean"]
    named = ["--set", "method.name=nearest-mean", "--set", "method.knob=2"]
    assert call("run", config, *named, "--out", "there", *words).code == 0
    export = ["export", "there", "--out", "bundles", "--client", "client-00"]
    assert call(*export, *words).code == 0
    call("run", config, "--set", "method.knob=0", *named[:2], *words).refuses(
        "softness of the scores, expected 0.01 to inf", "its default is 1"
    )


# An extractor and an attack: trained with, exported, audited.


@pytest.mark.usefixtures("quick")
def test_an_extractor_and_an_attack(
    call: Call, settings: Callable[..., str], tmp_path: Path, fresh: Callable[[], None]
) -> None:
    file = settings()
    words = ["--set", "method.extractor=corners", "--out", "there", "--quiet", "--json"]
    call("run", file, *words).refuses("unknown extractor 'corners'", "--plugin FILE.py")
    other = json.loads(call("run", file, "--quiet", "--json").out)
    summary = json.loads(call("run", file, *words, "--plugin", EXTRACTOR).out)
    assert summary["upload_bytes_total"] == other["upload_bytes_total"]
    assert summary["accuracy_control"] != other["accuracy_control"]
    assert 'extractor = "corners"' in (tmp_path / "there" / "config.toml").read_text()
    fresh()
    export = ["export", "there", "--out", "bundles", "--client", "client-01", "--quiet"]
    call(*export).refuses("unknown extractor 'corners'", "--plugin FILE.py")
    assert call(*export, "--plugin", EXTRACTOR).code == 0
    audit = ["audit", "there", "--view", "server", "--quick", "--json", "--trials", "20"]
    audit += ["--attacks", "nearest", "--quiet", "--plugin", EXTRACTOR]
    call(*audit).refuses("unknown attack 'nearest'", "--plugin FILE.py")
    document = json.loads(call(*audit, "--plugin", ATTACK).out)
    tested = {finding["attack"] for finding in document["findings"]} - {"untested"}
    assert tested == {"nearest"}


def test_masks_for_a_cohort_are_none_for_everybody(tiny: Tiny) -> None:
    class Own(FedVTC):
        """Uploads once from all clients, as its parent does."""

    changes = {"clients": {"count": 8, "cohort": 0.5}, "transport": {"masking": True}}
    changes["privacy"] = {"collusion": 0.0}
    check(tiny(**changes))
    with plugins.METHODS.lent({"own": Own}):
        with pytest.raises(ConfigError, match="in a cohort that is drawn") as refused:
            check(tiny(**changes, method={"name": "own"}))
        assert refused.value.hint == "set clients.cohort to 1"
        check(tiny(**changes | {"clients": {"count": 8}}, method={"name": "own"}))


def test_the_default_extractor_leaves_no_trace(tiny: Tiny) -> None:
    assert "extractor" not in tiny().model_dump()["method"], "the names of runs stay as they are"
    assert tiny(method={"extractor": "mine"}).model_dump()["method"]["extractor"] == "mine"
    assert tiny(method={"extractor": "mine"}).replace(seed=1).method.extractor == "mine"


@pytest.mark.parametrize(
    ("built", "message"),
    [
        ("network", "builds a str, expected a torch.nn.Module"),
        (nn.Identity(), r"gives features of shape \[2, 1, 8, 8\] for two images"),
    ],
)
def test_an_extractor_that_is_none(built: Any, message: str) -> None:
    with (
        plugins.EXTRACTORS.lent({"odd": lambda shape: built}),
        pytest.raises(ConfigError, match=message),
    ):
        Anchor(SHAPE, 16, 0, "odd")


def test_everybody_has_the_same_extractor() -> None:
    plugins.load(EXTRACTOR)
    images = torch.rand(3, 1, 8, 8)
    one, two, other = (Anchor(SHAPE, 16, seed, "corners") for seed in (5, 5, 6))
    assert torch.equal(one(images), two(images))
    assert not torch.equal(one(images), other(images))
    assert torch.allclose(one(images).norm(dim=1), torch.tensor(4.0))
    assert not any(weights.requires_grad for weights in one.parameters())


# In Python: everything in memory.


@pytest.mark.usefixtures("quick")
def test_a_run_in_memory(tiny: Tiny, tmp_path: Path, fresh: Callable[[], None]) -> None:
    data = load_dataset(tiny().data)
    arrays = {key: getattr(data, key) for key in ("x_train", "y_train", "x_test", "y_test")}
    config = tiny(clients={"architectures": ["flat"]}, method={"rounds": 2})
    own = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
    flat = {"flat": lambda shape: nn.Flatten()}
    told: list[dict[str, Any]] = []
    made = run(
        config,
        data=arrays,
        architectures=flat,
        extractor=own,
        callbacks=[told.append],
        out=tmp_path / "there",
    )
    lines = (tmp_path / "there" / "metrics.jsonl").read_text().splitlines()
    assert told == [json.loads(line) for line in lines]
    assert len(told) == 2
    assert (made.summary["data"], made.summary["clients"][0]["architecture"]) == ("data", "flat")
    # Nothing of it stays, but what the run directory needs to be read again.
    assert "flat" not in architectures()
    assert "own" not in plugins.EXTRACTORS.names()
    assert 'extractor = "own"' in (tmp_path / "there" / "config.toml").read_text()
    again = load_dataset(load_config(tmp_path / "there" / "config.toml").data)
    assert np.array_equal(again.x_train, data.x_train)
    fresh()
    nowhere = run(config, data=data, architectures=flat, extractor=lambda images: own(images))
    assert nowhere.directory is None
    assert nowhere.summary["accuracy_mean"] == made.summary["accuracy_mean"]
    assert nowhere.summary["accuracy_control"] == made.summary["accuracy_control"]


def test_what_cannot_be_in_memory(tiny: Tiny, tmp_path: Path) -> None:
    flower = tiny(engine={"name": "flower"})
    for given in ({"callbacks": [print]}, {"architectures": {"x": nn.Flatten}}, {"extractor": abs}):
        with pytest.raises(ConfigError, match="whose processes cannot have them"):
            run(flower, **given)
    with pytest.raises(DataError, match="no key x_test"):
        run(tiny(), data={"x_train": np.zeros((4, 8, 8)), "y_train": [0, 1, 0, 1]})
    with pytest.raises(DataError, match="Python objects"):
        run(tiny(), data={"x_train": np.array([object()])}, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Processes of their own: Flower's.


def test_every_process_of_a_simulation_has_them(
    tiny: Tiny, tmp_path: Path, quickly: Callable[[], Any]
) -> None:
    plugins.load(ARCHITECTURE, EXTRACTOR)
    changes: dict[str, Any] = {
        "clients": {"count": 2, "architectures": ["pyramid"]},
        "method": {"rounds": 1, "extractor": "corners"},
        "server": {"deadline_s": 300.0},
    }
    with quickly():
        here = run(tiny(**changes)).summary
        there = run(tiny(**changes, engine={"name": "flower"}), out=tmp_path / "run").summary
    assert [client["accuracy"] for client in there["clients"]] == [
        client["accuracy"] for client in here["clients"]
    ]
    assert there["accuracy_control"] == here["accuracy_control"]
