"""Prior knowledge: what public images of a class look like to an extractor."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.statistics.class_statistics import Array

from .view import Population

_RIDGE = 0.05
"""Share of the mean variance that is added to every direction."""


def populations(features: Array, labels: NDArray[np.int64], classes: int) -> list[Population]:
    """Of each class: its mean, shrunk toward all classes', and the covariance within all.

    One covariance for all, because a class has few public images; shrunk toward a multiple of
    the identity (Ledoit and Wolf 2004, with a fixed weight) and so positive definite.

    Args:
        features: [N, p].
        labels: [N].
        classes: C; for one without images, the mean of all stands in.
    """
    width = features.shape[1]
    common = features.mean(0) if len(features) else np.zeros(width)
    within, seen = np.zeros((width, width)), np.unique(labels)
    for each in seen:
        part = features[labels == each]
        centred = part - part.mean(0)
        within += centred.T @ centred
    freedom = max(len(features) - len(seen), 1)
    within /= freedom
    size = max(float(np.trace(within)) / width, 1e-12)
    weight = min(1.0, _RIDGE + width / (freedom + width) * 0.5)
    covariance = (1 - weight) * within + weight * size * np.eye(width)
    owns = [features[labels == label] for label in range(classes)]
    return [Population((own.sum(0) + common) / (len(own) + 1), covariance) for own in owns]


# ---------------------------------------------------------------- section
# Eigenvalues of matrices that many cases share, computed once.

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
