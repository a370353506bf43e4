"""The runner of the studies: sides take turns, the warm-up does not count, slips are named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from fedvtc_edge.benchmarks.studies import fleet, masking, runner
from fedvtc_edge.errors import FedVTCError


def test_sides_take_turns_and_the_first_changes() -> None:
    turns = list[str]()

    def side(name: str) -> Callable[[], int]:
        def work() -> int:
            turns.append(name)
            return len(turns)

        return work

    found = runner.paired({name: side(name) for name in "abc"}, 2, warm_up=1)
    assert "".join(turns) == "abccbaabc"
    assert found == {"a": [6, 7], "b": [5, 8], "c": [4, 9]}
    turns.clear()
    assert runner.medians({"a": side("a")}, 3, warm_up=2) == {"a": 4}


def test_what_warms_up_before_each_time_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], [0]

    def step() -> None:
        calls[0] += 1
        clock[0] += 0.25 if calls[0] % 5 == 0 else 1.0

    monkeypatch.setattr(runner.time, "thread_time", lambda: clock[0])
    seconds = runner.timed(step, warm_up=4)
    assert [seconds() for _ in range(3)] == [0.25] * 3
    assert calls == [15]


@pytest.mark.parametrize("value", ["0", "-1", "some"])
@pytest.mark.parametrize(("study", "option"), [(masking, "--repeats"), (fleet, "--clients")])
def test_nothing_is_not_measured(
    study: object, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        study.STUDY.main([option, value])  # type: ignore[attr-defined]
    assert caught.value.code == 2
    assert option in capsys.readouterr().err


def test_a_process_that_fails_is_told_by_its_last_line() -> None:
    assert runner.fresh_process("import sys; print(sys.argv[1:])", 1, "b") == "['1', 'b']\n"
    with pytest.raises(FedVTCError, match="the run failed: ValueError: no") as caught:
        runner.fresh_process("raise ValueError('no')", hint="do otherwise")
    assert caught.value.hint == "do otherwise"
    assert float(runner.fresh_process(f"from {runner.__name__} import *; print(peak_mb())")) > 5


def test_columns_are_aligned() -> None:
    assert list(runner.table(("name", "x"), [("a", "1.5"), ("longer", "10.25")])) == [
        "name        x",
        "a         1.5",
        "longer  10.25",
    ]


@pytest.mark.parametrize("name", ["masking", "nonsense"])
def test_studies_are_found_by_their_names(name: str) -> None:
    command = [sys.executable, "-m", "fedvtc_edge.benchmarks.studies", name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if name == "nonsense":
        assert done.returncode == 1
        assert "NAME: bundles, engine, engines, exponents, fleet, latency, masking" in done.stderr
    else:
        assert done.returncode == 0
        assert "usage: fedvtc_edge.benchmarks.studies masking" in done.stdout
