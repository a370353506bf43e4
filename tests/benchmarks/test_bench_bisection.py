"""Bisection against a scan of every limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.benchmarks.bench.measuring import DOUBLINGS, smallest_working


def scanned(least: float, start: float) -> float | None:
    """The slow twin: every whole limit, from below."""
    return next((n for n in range(1, int(start) * 2**DOUBLINGS + 1) if n >= least), None)


@given(st.integers(1, 400), st.integers(2, 60))
def test_it_finds_what_a_scan_finds(least: int, start: int) -> None:
    found = smallest_working(lambda limit: limit >= least, fails=0, start=start, resolution=1)
    expected = scanned(least, start)
    if expected is None:
        assert found is None
        return
    assert found is not None
    fails, works = found
    assert fails < least <= works
    assert works - fails <= 1
    assert works - 1 < expected <= works


def test_it_asks_no_more_than_it_must() -> None:
    asked: list[float] = []

    def works(limit: float) -> bool:
        asked.append(limit)
        return limit >= 36

    assert smallest_working(works, fails=31, start=77, resolution=1) is not None
    assert len(asked) <= 8
    assert all(31 < limit <= 77 for limit in asked)


def test_a_limit_that_never_suffices_ends() -> None:
    asked: list[float] = []
    never = smallest_working(lambda x: bool(asked.append(x)), fails=0, start=8, resolution=1)
    assert never is None
    assert max(asked) == 8 * 2**DOUBLINGS


def test_a_start_below_what_fails_is_moved() -> None:
    found = smallest_working(lambda limit: limit >= 50, fails=49.5, start=10, resolution=1)
    assert found == (49.5, 50.5)
