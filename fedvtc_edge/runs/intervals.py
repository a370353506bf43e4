"""Intervals over seeds: Student's t, for few and unlike measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Quantiles 0.975 of Student's t with 1 to 30 degrees of freedom (Student 1908, any table of it).
_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

Interval = tuple[float, float]


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of one value, which says nothing of the spread."""
    if len(values) < 2:
        return None
    middle = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def interval(values: Sequence[float]) -> Interval | None:
    """Bounds of the 95 % t-interval of a mean; None of fewer than two values.

    With more than 31 values the quantile is that of 31, which makes it a little wider.
    """
    spread = deviation(values)
    if spread is None:
        return None
    middle = math.fsum(values) / len(values)
    half = _QUANTILES[min(len(values) - 1, len(_QUANTILES)) - 1] * spread / math.sqrt(len(values))
    return middle - half, middle + half


def told_apart(first: Sequence[float | None], second: Sequence[float | None]) -> bool:
    """True if two methods differ, by the 95 % t-interval of their differences seed by seed.

    Of one seed both have the same split, so that the difference varies less than either.

    Args:
        first: One value for each seed, or None where it has none.
        second: The same seeds in the same order.
    """
    pairs = zip(first, second, strict=False)
    found = interval([a - b for a, b in pairs if a is not None and b is not None])
    return found is not None and not found[0] <= 0 <= found[1]
