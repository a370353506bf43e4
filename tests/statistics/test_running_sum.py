"""Exact sums in any order, against the same sums of fractions."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.statistics.class_statistics import StatisticsError
from fedvtc_edge.statistics.running_sum import _SCALES, GRID_BITS, LARGEST, RunningSum

UNIT = Fraction(1, 2**GRID_BITS)
NUMBERS = st.floats(-LARGEST, LARGEST, exclude_min=True, exclude_max=True)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def summed(numbers: list[float]) -> float:
    running = RunningSum(1)
    for number in numbers:
        running.add(np.array([number]))
    assert running.number == len(numbers)
    return float(running.total()[0])


def slow(numbers: list[float]) -> Fraction:
    """Each on the grid by itself, then exactly: round() of a fraction goes to even."""
    return sum((round(Fraction(number) / UNIT) for number in numbers), 0) * UNIT


@given(numbers=st.lists(st.one_of(NUMBERS, FLOAT32), max_size=30), data=st.data())
def test_sums_are_exact_and_the_same_in_any_order(
    numbers: list[float], data: st.DataObject
) -> None:
    found, exact = summed(numbers), slow(numbers)
    # Several integers become one float64: off by a unit in its last place or two.
    assert abs(Fraction(found) - exact) <= 2 * Fraction(math.ulp(float(exact)))
    assert found == summed(data.draw(st.permutations(numbers)))
    assert math.copysign(1.0, found) == math.copysign(1.0, found + 0.0)


@given(numbers=st.lists(FLOAT32, min_size=1, max_size=30))
def test_no_float32_is_rounded(numbers: list[float]) -> None:
    assert summed(numbers[:1]) == numbers[0]
    assert slow(numbers) == sum(map(Fraction, numbers), Fraction(0))


def test_what_cancels_leaves_what_is_small() -> None:
    assert summed([2.0**59, 1.0, 2.0**-49, -(2.0**59)]) == 1.0 + 2.0**-49
    assert summed([2.0**59] * 7 + [0.125] + [-(2.0**59)] * 7) == 0.125
    assert summed([]) == 0.0


def test_a_hundred_thousand_of_the_largest_do_not_wrap_around() -> None:
    running, largest = RunningSum(2), np.nextafter(LARGEST, 0)
    for scale in _SCALES:
        running.add(np.nextafter([0.5 / scale, -0.5 / scale], 0))
    running.add([largest, -largest])
    assert np.abs(running._bins).max() < 2**37  # 2²⁶ of them fit 63 bits
    for _ in range(99):
        running.add([largest, -largest])
    assert running.total() == pytest.approx([100 * largest, -100 * largest])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, LARGEST, -LARGEST])
def test_what_does_not_fit_is_refused_and_adds_nothing(bad: float) -> None:
    running = RunningSum(2)
    running.add([1.0, 2.0])
    with pytest.raises(StatisticsError, match="in a sum"):
        running.add([3.0, bad])
    with pytest.raises(StatisticsError, match="shape"):
        running.add([3.0])
    assert running.total().tolist() == [1.0, 2.0]
    assert running.number == 1


def test_memory_does_not_grow() -> None:
    vector = np.random.default_rng(0).standard_normal(5000).astype(np.float32)

    def peak(number: int) -> int:
        tracemalloc.start()
        try:
            running = RunningSum(len(vector))
            for _ in range(number):
                running.add(vector)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(300) <= peak(3) + 4096
