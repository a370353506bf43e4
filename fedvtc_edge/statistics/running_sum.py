"""Exact running sums: the same bits in whatever order the numbers come, and nothing kept of them.

Sums of floating-point numbers depend on their order. Here every number is split into a few
whole numbers, which add exactly in 64-bit integers (the idea of reproducible sums, Demmel and
Nguyen 2015, with bins that are fixed beforehand).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .class_statistics import Array, StatisticsError

LARGEST = 2.0**128
"""Bound of a number's magnitude, which every float32 keeps; 2²⁶ of them fit a bin."""

GRID_BITS = 161
"""Each number is rounded, once and by itself, to a multiple of 2⁻¹⁶¹, which no float32 notices."""

_BIN_BITS = 37
_SCALES = tuple(2.0**bits for bits in range(GRID_BITS - 7 * _BIN_BITS, GRID_BITS + 1, _BIN_BITS))
"""Steps per unit of each bin, from the highest to the lowest."""


class RunningSum:
    """Sum of vectors, of which none is kept.

    Memory: eleven vectors, however many are added.

    Args:
        size: Length of a vector.
    """

    def __init__(self, size: int) -> None:
        self.number = 0
        self._bins = np.zeros((len(_SCALES), size), np.int64)
        self._rest, self._whole = np.empty(size), np.empty(size)
        self._integers = np.empty(size, np.int64)

    def add(self, vector: ArrayLike) -> None:
        """Add one vector [size].

        Raises:
            StatisticsError: Another shape, or a number that is not finite or of
                :data:`LARGEST` and more in magnitude: then nothing was added.
        """
        numbers = np.asarray(vector)
        if numbers.shape != self._rest.shape:
            raise StatisticsError(
                f"a vector of shape {numbers.shape}, expected {self._rest.shape}",
                hint="all clients must agree on classes, width and moments",
            )
        largest = max(-float(numbers.min(initial=0.0)), float(numbers.max(initial=0.0)))
        if not largest < LARGEST:  # nor is a NaN
            raise StatisticsError(
                f"a number of magnitude {largest:g} in a sum", hint=f"expected below {LARGEST:g}"
            )
        self._rest[:] = numbers
        for place, scale in enumerate(_SCALES):
            if largest * scale >= 0.5:  # less is nothing in so large steps
                self._take(place)
                if not self._rest.any():  # as a rule after two bins
                    break
        self.number += 1

    def _take(self, place: int) -> None:
        """Move what is whole in the steps of a bin from the rest into it."""
        rest, whole, scale = self._rest, self._whole, _SCALES[place]
        np.multiply(rest, scale, out=whole)
        np.rint(whole, out=whole)
        np.copyto(self._integers, whole, casting="unsafe")
        self._bins[place] += self._integers
        whole *= 1 / scale
        rest -= whole  # exact: a multiple of the number's own last digit

    def total(self) -> Array:
        """The sum, rounded to float64 at the end; [size]."""
        total, carry = np.zeros(len(self._rest)), np.zeros(len(self._rest), np.int64)
        # Carried upward, half a step at most left in each bin: the integers are then the only
        # ones of their sum, however it came about, and no higher bin takes back what a lower has.
        half = 1 << (_BIN_BITS - 1)
        for place in range(len(_SCALES) - 1, 0, -1):
            bin_ = self._bins[place] + carry
            carry = (bin_ + half) >> _BIN_BITS
            total += (bin_ - (carry << _BIN_BITS)) / _SCALES[place]
        total += (self._bins[0] + carry) / _SCALES[0]
        return total
