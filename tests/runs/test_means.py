"""Means from exact sums beside fractions, the slow and obvious way."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.runs.exact_mean import ExactMean
from fedvtc_edge.runs.records import mean

Values = st.lists(st.floats(0, 1), min_size=1, max_size=20)


@given(Values)
def test_it_is_the_fraction_rounded_once(values: list[float]) -> None:
    exact = sum(map(Fraction, values), Fraction(0)) / len(values)
    assert mean(values) == mean(reversed(values)) == float(exact)


@given(Values, Values)
def test_who_leaves_was_never_there(stays: list[float], leaves: list[float]) -> None:
    found = ExactMean()
    for value in [*leaves, *stays]:
        found.add(value)
    for value in leaves:
        found.add(value, -1)
    assert found.value == mean(stays)
    for value in stays:
        found.add(value, -1)
    assert found.value is None
