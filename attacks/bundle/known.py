"""Statistics that a bundle is searched for as they are: rows, columns or runs of its arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.statistics.class_statistics import Array, ClassStatistics, GlobalStatistics

PRECISION = 2.0**-10
"""Relative error under which two numbers are one: that of two roundings to float16."""

BITS = 40
"""Bits that a match must be worth: four numbers of float16, or seven of int8."""

_BLOCK = 2**21


@dataclass(frozen=True, eq=False)
class Vector:
    """Numbers that are looked for.

    Args:
        row: Class; None for what is of no one class.
        values: Numbers, [n].
        expected: Whether :data:`STATISTICS` is there to hold them.
    """

    name: str
    row: int | None
    values: Array
    expected: bool = False

    def tolerance(self, slack: float) -> float:
        """Largest error of a number, in its own units."""
        return slack + PRECISION * float(np.abs(self.values).max())

    def is_telling(self, slack: float) -> bool:
        """True if a match says anything: numbers times the bits that each has."""
        spread = float(np.ptp(self.values))
        # Ones and zeros are a mask: which classes there are, not how many of each.
        if not np.isfinite(spread) or spread == 0 or set(np.unique(self.values)) <= {0.0, 1.0}:
            return False
        return len(self.values) * math.log2(spread / self.tolerance(slack)) >= BITS


@dataclass(frozen=True, eq=False)
class Known:
    """Statistics of a run that a bundle is searched for: published ones and each client's own."""

    published: Sequence[GlobalStatistics] = ()
    own: Mapping[str, Sequence[ClassStatistics]] = field(default_factory=dict)

    def vectors(self) -> list[Vector]:
        """One per class and kind of statistic."""
        found = []
        for one in self.published:
            found.append(Vector("published counts", None, one.count))
            found += _rows("published means", one.mean, True)
            found += _rows("published deviations", one.std, True)
            if one.covariance is not None:
                found += [Vector("published covariance", None, v, True) for v in one.covariance]
        for whose, parts in self.own.items():
            for part in parts:
                found.append(Vector(f"counts of {whose}", None, part.count))
                found += _rows(f"means of {whose}", part.mean)
                found += _rows(f"deviations of {whose}", part.std)
        return found


def _rows(name: str, rows: Array, expected: bool = False) -> list[Vector]:
    return [Vector(name, label, row, expected) for label, row in enumerate(rows)]


def found_in(numbers: NDArray[Any], vectors: Sequence[Vector], slack: float) -> list[Vector]:
    """Vectors that are rows, columns or runs of an array of any shape."""
    left = [v for v in vectors if len(v.values) <= numbers.size and v.is_telling(slack)]
    found: list[Vector] = []
    if not left:
        return found
    longest = max(len(vector.values) for vector in left)
    shortest = min(len(vector.values) for vector in left)
    # Row by row; and along every other axis that is long enough for one of them.
    axes = [axis for axis, size in enumerate(numbers.shape[:-1]) if size >= shortest]
    for axis in (-1, *axes):
        flat = (np.moveaxis(numbers, axis, -1) if numbers.ndim > 1 else numbers).ravel()
        for start in range(0, len(flat), _BLOCK):  # sorted in parts: no more memory than these
            block = flat[start : start + _BLOCK + longest - 1].astype(np.float64)
            order = np.argsort(block)
            here = [vector for vector in left if _lies_in(block, order, vector, slack)]
            found += here
            left = [vector for vector in left if vector not in here]
    return found


def _lies_in(block: Array, order: NDArray[np.int64], vector: Vector, slack: float) -> bool:
    values, off = vector.values, vector.tolerance(slack)
    # The largest first: weights as large as a feature are rare.
    first, *rest = np.argsort(-np.abs(values))
    ends = [values[first] - off, np.nextafter(values[first] + off, np.inf)]
    low, high = np.searchsorted(block, ends, sorter=order)
    starts = order[low:high] - first
    starts = starts[(starts >= 0) & (starts <= len(block) - len(values))]
    for place in rest:
        if not len(starts):
            break
        starts = starts[np.abs(block[starts + place] - values[place]) <= off]
    return bool(len(starts))
