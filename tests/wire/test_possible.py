"""Sums that no data have are refused, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.wire import WireError, decode, encode

CLASSES, WIDTH = 3, 4


def example(*, size: int = 7) -> ClassStatistics:
    z = np.random.default_rng(0).standard_normal((size, WIDTH))
    return ClassStatistics.of(z, np.arange(size) % 2, classes=CLASSES, pooled=True)


def sent(count: Any, total: Any, square: Any, pooled: bool | None = None) -> ClassStatistics:
    statistics = ClassStatistics(count, total, square, pooled)
    return decode(encode(statistics), classes=statistics.classes, width=statistics.width)


def test_the_least_second_moment_is_that_of_equal_samples() -> None:
    """Jensen: n samples of mean μ have a sum of squares of n μ² at least."""
    total = np.zeros((CLASSES, WIDTH))
    total[0] = 8.0
    for factor, possible in ((1.0, True), (0.9999, True), (0.99, False)):
        square = np.zeros((CLASSES, WIDTH))
        square[0] = 8.0**2 / 4 * factor
        if possible:
            sent([4, 0, 0], total, square)
            continue
        with pytest.raises(WireError, match="second moment"):
            sent([4, 0, 0], total, square)


def test_small_features_are_checked_as_large_ones_are() -> None:
    for size in (1e-12, 1e-6, 1.0, 1e12):
        total, square = np.full((1, 2), 8 * size), np.full((1, 2), 16 * size**2)
        sent([4], total, square)
        with pytest.raises(WireError, match="second moment"):
            sent([4], total, square * 0.9)


def test_a_pooled_second_moment_is_checked_against_all_classes_together() -> None:
    one = example()
    least = (np.square(one.total[:2]) / one.count[:2, None]).sum(0)
    square = one.square.copy()
    square[1, 1] = 0.9 * least[1]
    with pytest.raises(WireError, match="smaller than its mean"):
        sent(one.count, one.total, square)
    nothing = np.zeros(CLASSES), np.zeros((CLASSES, WIDTH))
    sent(*nothing, np.zeros((WIDTH, WIDTH)))
    with pytest.raises(WireError, match="no samples"):
        sent(*nothing, one.square)


def test_two_features_cannot_agree_more_than_each_with_itself() -> None:
    """Cauchy–Schwarz: every diagonal entry is fine, an entry beside it is not."""
    one = example()
    for row, column in ((0, 1), (3, 2)):
        square = one.square.copy()
        limit = np.sqrt(square[row, row] * square[column, column])
        square[row, column] = square[column, row] = 1.01 * limit
        with pytest.raises(WireError, match="no data have"):
            sent(one.count, one.total, square)


def test_three_features_that_agree_pairwise_may_still_be_impossible() -> None:
    """Correlations of −0.6 between each two of three: no pair shows it, an eigenvalue does."""
    square = np.full((3, 3), -0.6) + 1.6 * np.eye(3)
    total = np.zeros((1, 3))
    with pytest.raises(WireError, match="no data have"):
        sent([1], total, square)
    sent([1], total, np.full((3, 3), -0.5) + 1.5 * np.eye(3))


def test_a_zero_feature_agrees_with_nothing() -> None:
    square = np.array([[1.0, 0.5], [0.5, 0.0]])
    with pytest.raises(WireError, match="no data have"):
        sent([1], np.zeros((1, 2)), square)


@hypothesis_settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(2, 6), power=st.integers(-10, 10))
def test_the_fast_check_agrees_with_the_slow_one(seed: int, width: int, power: int) -> None:
    """The slow twin: eigenvalues of the scatter within classes, in units of the features."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((rng.integers(1, 9), width)) * 10.0**power
    one = ClassStatistics.of(z, rng.integers(0, 2, len(z)), classes=2, pooled=True)
    size = np.sqrt(np.diag(one.square))
    noise = rng.standard_normal((width, width)) * rng.choice([0, 1e-2, 1.0])
    square = one.square + (noise + noise.T) * np.outer(size, size) * (1 - np.eye(width))
    within = square - sum(
        np.outer(t, t) / n for n, t in zip(one.count, one.total, strict=True) if n
    )
    least = float(np.linalg.eigvalsh(within / np.outer(size, size)).min())
    if abs(least) < 1e-4 and noise.any():
        return
    if least > -1e-4:
        sent(one.count, one.total, square, True)
    else:
        with pytest.raises(WireError, match="no data have"):
            sent(one.count, one.total, square, True)


def test_wide_features_are_checked_too() -> None:
    """A direction that no entry shows: 300 features, one eigenvalue below 0."""
    rng = np.random.default_rng(5)
    z = rng.standard_normal((450, 300))
    one = ClassStatistics.of(z, np.zeros(450, int), classes=1, pooled=True)
    sent(one.count, one.total, one.square)
    direction = np.linalg.eigh(one.square)[1][:, 0]
    worse = one.square - 100.0 * np.outer(direction, direction)
    with pytest.raises(WireError, match="no data have"):
        sent(one.count, one.total, worse)
