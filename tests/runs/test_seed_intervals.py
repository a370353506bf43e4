"""t-intervals over seeds, against SciPy's quantiles and by what they must not do."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from fedvtc_edge.runs.intervals import deviation, interval, told_apart

values = st.lists(st.floats(0, 1), min_size=2, max_size=31)


@given(values)
def test_the_interval_is_students(sample: list[float]) -> None:
    found = interval(sample)
    assert found is not None
    middle, spread = statistics.mean(sample), statistics.stdev(sample)
    half = t.ppf(0.975, len(sample) - 1) * spread / math.sqrt(len(sample))
    assert found == pytest.approx((middle - half, middle + half), abs=2e-4)
    assert deviation(sample) == pytest.approx(spread, abs=1e-12)


def test_of_many_values_it_is_a_little_wider() -> None:
    sample = [number / 100 for number in range(100)]
    low, high = interval(sample) or (0.0, 0.0)
    exact = t.ppf(0.975, 99) * statistics.stdev(sample) / 10
    assert exact < (high - low) / 2 < 1.04 * exact


@pytest.mark.parametrize("sample", [[], [0.4]])
def test_one_value_says_nothing(sample: list[float]) -> None:
    assert interval(sample) is None
    assert deviation(sample) is None
    assert not told_apart(sample, sample)


@given(values)
def test_a_method_is_never_told_apart_from_itself(sample: list[float]) -> None:
    assert not told_apart(sample, sample)


def test_differences_count_seed_by_seed() -> None:
    """Splits differ far more than the two methods do, which only pairs can tell."""
    first, second = [0.2, 0.5, 0.8], [0.15, 0.44, 0.76]
    low, high = interval(first) or (0.0, 0.0)
    assert low < statistics.mean(second) < high
    assert told_apart(first, second)
    assert told_apart(second, first)
    assert not told_apart(first, [0.3, 0.4, 0.8])
    assert not told_apart(first, [0.15, None, None]), "one pair says nothing"
