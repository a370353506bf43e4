"""The pytest-benchmark suites: their asserts hold, each group has one floor, ratios are printed."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FAMILIES = {
    "aggregation",
    "classifier",
    "decoder",
    "encoding",
    "finetune",
    "fit_decoder",
    "sealing",
    "statistics",
    "train",
}
SUITES = ROOT / "benchmarks" / "suites"


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    """What conftest.py of the suites defines."""
    return runpy.run_path(str(SUITES / "conftest.py"))


@pytest.mark.slow
def test_every_suite_holds_and_every_group_has_one_floor(
    tmp_path: Path, strict_json: Callable[[str], Any]
) -> None:
    # One architecture: the others are exported and trained as it is. And measured as briefly
    # as can be: statistics, and so the table, are there all the same.
    document, few = tmp_path / "measured.json", "not (resnet8 or mobilenet or shufflenet or mlp)"
    words = ["benchmarks", "--benchmark-only", "-k", few, f"--benchmark-json={document}"]
    words += ["--benchmark-max-time=0", "--benchmark-min-rounds=1"]
    words += [f"--benchmark-storage={tmp_path}", "-p", "no:cacheprovider"]
    # A worker of pytest-xdist would pass on that it is one, and nothing be measured.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout.lower()
    table = done.stdout.split("how many times the floor's")[1].splitlines()
    floors: defaultdict[str, list[bool]] = defaultdict(list)
    for measured in strict_json(document.read_text())["benchmarks"]:
        floors[measured["group"]].append(measured["extra_info"]["floor"])
        assert measured["options"]["timer"] == "process_time"
    assert {group.split()[0].rstrip(",") for group in floors} == FAMILIES
    for group, members in floors.items():
        assert members.count(True) == 1, group
        assert len(members) > 1, group
        begin = table.index(group)
        lines = table[begin + 1 : begin + 1 + len(members)]
        assert all(" µs " in line and "(" in line for line in lines), group
        own = [line.split()[-3:] for line in lines if line.endswith("floor")]
        assert own == [["1.00", "(1.00)", "floor"]], group


def test_ratios_are_to_the_floor_and_not_to_the_fastest(shared: dict[str, Any]) -> None:
    member = shared["Member"]
    measured = [
        member("sealing", "seal", 6e-6, 5e-6, False),
        member("adding", "sum", 5e-6, 4e-6, True),
        member("sealing", "bare cipher", 2e-6, 1e-6, True),
        member("sealing", "a trick", 1e-6, 5e-7, False),
        member("adding", "server", 1e-2, 8e-3, False),
    ]
    assert [(m.name, ratio) for m, ratio in shared["ratios"](measured)] == [
        ("seal", pytest.approx((3.0, 5.0))),
        ("bare cipher", pytest.approx((1.0, 1.0))),
        ("a trick", pytest.approx((0.5, 0.5))),
        ("sum", pytest.approx((1.0, 1.0))),
        ("server", pytest.approx((2000.0, 2000.0))),
    ]
    head, *lines = [line.split() for line in shared["table"](measured)]
    assert head == ["median", "×", "floor", "(fastest)"]
    assert lines == [
        ["sealing"],
        ["seal", "6.0", "µs", "3.00", "(5.00)"],
        ["bare", "cipher", "2.0", "µs", "1.00", "(1.00)", "floor"],
        ["a", "trick", "1.0", "µs", "0.50", "(0.50)"],
        ["adding"],
        ["sum", "5.0", "µs", "1.00", "(1.00)", "floor"],
        ["server", "10,000.0", "µs", "2,000.00", "(2,000.00)"],
    ]


@pytest.mark.parametrize("floors", [(False, False), (True, True)])
def test_without_one_floor_there_is_no_ratio(
    shared: dict[str, Any], floors: tuple[bool, bool]
) -> None:
    measured = [shared["Member"]("g", "either", 1e-6, 1e-6, floor) for floor in floors]
    assert [ratio for _, ratio in shared["ratios"](measured)] == [None, None]
    assert list(shared["table"](measured))[2].split()[-2:] == (
        ["-", "floor"] if floors[0] else ["-", "-"]
    )


def test_a_floor_below_the_resolution_of_the_clock_gives_no_ratio(shared: dict[str, Any]) -> None:
    member = shared["Member"]
    measured = [member("g", "floor", 1e-9, 0.0, True), member("g", "other", 1.0, 1.0, False)]
    assert [ratio for _, ratio in shared["ratios"](measured)] == [None, None]


def test_pytest_alone_leaves_the_suites_out(request: pytest.FixtureRequest) -> None:
    assert request.config.getini("testpaths") == ["tests"]


def test_suites_do_not_ship() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert not [name for name in project["tool"]["setuptools"]["packages"] if "suites" in name]
    assert not (SUITES / "__init__.py").exists()


def test_a_suite_and_a_test_never_have_one_name() -> None:
    """Pytest imports files without packages by their names alone."""
    suites = {path.name for path in SUITES.glob("test_*.py")}
    assert suites
    assert not suites & {path.name for path in (ROOT / "tests").rglob("test_*.py")}
