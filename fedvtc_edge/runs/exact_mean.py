"""Means of floats without rounding on the way."""

from __future__ import annotations

_UNIT = 2**1074


class ExactMean:
    """Mean from an exact sum: the same bits whatever the order, also if values leave again.

    The sum is a whole number of units of 2^-1074, of which every float is a multiple.
    """

    def __init__(self) -> None:
        self._total = 0
        self._number = 0

    def add(self, value: float, times: int = 1) -> None:
        """Count a finite value so many times more; -1 takes it out again."""
        above, below = value.as_integer_ratio()
        self._total += times * above * (_UNIT // below)
        self._number += times

    @property
    def value(self) -> float | None:
        """The mean, rounded once; None of nothing."""
        return self._total / (self._number * _UNIT) if self._number else None
