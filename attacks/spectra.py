"""Eigenvalues of matrices that many cases share, computed once."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from fedvtc_edge.statistics import Array

_KEPT = 128

_known: OrderedDict[int, tuple[Array, Array, Array]] = OrderedDict()


def spectrum(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues [p], ascending, and eigenvectors [p, p] of a symmetric matrix.

    The last few are kept, by the array's identity: one that is changed in place is not looked
    at again. They are kept together with the array, so that no other can have its identity.
    """
    kept = _known.get(id(matrix))
    if kept is None:
        kept = (matrix, *np.linalg.eigh(matrix))
        _known[id(matrix)] = kept
        if len(_known) > _KEPT:
            _known.popitem(last=False)
    return kept[1], kept[2]
