"""The fit on costs that are known, and every cost at sizes of a few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedvtc_edge.benchmarks.studies import exponents
from fedvtc_edge.benchmarks.studies.exponents import (
    COSTS,
    MOST,
    Cost,
    Step,
    above,
    exponent,
    lines,
    measure,
    measure_cost,
)

WHOLE_RUNS = {"run of many clients", "statistics of many clients", "rounds", "resume", "report"}


@pytest.mark.parametrize("power", [0.5, 1.0, 1.15, 2.0])
def test_the_exponent_is_the_power(power: float) -> None:
    sizes = [100, 1_000, 10_000]
    assert exponent(sizes, [3e-6 * size**power for size in sizes]) == pytest.approx(power)
    assert exponent(sizes[::-1], [size**power for size in sizes[::-1]]) == pytest.approx(power)


def test_what_is_constant_at_first_does_not_hide_what_comes() -> None:
    sizes = [100, 1_000, 10_000]
    assert exponent(sizes, [1 + 1e-6 * size**2 for size in sizes]) > 1.6
    assert exponent(sizes, [1 + 1e-3 * size for size in sizes]) < 1


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps count what they do, and the count is their time."""
    work: list[int] = []

    def seconds(step: Step) -> float:
        work.clear()
        step()
        return float(len(work))

    monkeypatch.setattr(exponents, "cpu_seconds", seconds)
    return work


def _cost(name: str, work: list[int], power: int) -> Cost:
    def prepare(size: int, folder: Path) -> Step:
        assert list(folder.iterdir()) == []
        return lambda: work.extend(range(size**power))

    return Cost(name, prepare, sizes=(5, 20, 100))


def test_a_square_is_named_and_a_line_passes(
    counted: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = [_cost("line", counted, 1), _cost("square", counted, 2)]
    monkeypatch.setattr(exponents, "COSTS", costs)
    document = measure()
    assert [row["exponent"] for row in document["costs"]] == [1.0, 2.0]
    assert above(document) == [f"square grows with an exponent of 2.00, above {MOST}"]
    assert list(lines(document))[-1] == f"1 of 2 above {MOST}"
    assert "square: exponent 2.00" in capsys.readouterr().err
    assert measure_cost(costs[0], 0.5)["sizes"] == [2, 10, 50]
    with pytest.raises(SystemExit) as left:
        exponents.STUDY.main(["--json"])
    assert left.value.code == 1
    assert json.loads(capsys.readouterr().out)["costs"][1]["exponent"] == 2.0
    exponents.STUDY.main(["--only", "line"])
    assert "square" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "cost", [cost for cost in COSTS if cost.name not in WHOLE_RUNS], ids=lambda cost: cost.name
)
def test_every_step_can_be_taken(cost: Cost, tmp_path: Path) -> None:
    cost.prepare(6, tmp_path)()


@pytest.mark.parametrize("name", ["statistics of many clients", "resume"])
def test_whole_runs_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exponents, "_IMAGES", 200)
    (cost,) = [cost for cost in COSTS if cost.name == name]
    cost.prepare(12, tmp_path)()
    assert (tmp_path / "run" / "summary.json").is_file()


def test_all_are_taken_at_three_sizes() -> None:
    assert len({cost.name for cost in COSTS}) == len(COSTS)
    assert {cost.name for cost in COSTS} >= WHOLE_RUNS
    for cost in COSTS:
        assert len(cost.sizes) == 3
        assert cost.sizes[2] >= 3 * cost.sizes[1] >= 9 * cost.sizes[0]
