"""Prior knowledge: what public images of a class look like to an extractor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.statistics import Array

from .view import Population

_RIDGE = 0.05
"""Share of the mean variance that is added to every direction."""


def population(features: Array, labels: NDArray[np.int64], label: int) -> Population:
    """Mean of one class, shrunk toward all classes', and the covariance within all classes.

    One covariance for all, because a class has few public images; shrunk toward a multiple of
    the identity (Ledoit and Wolf 2004, with a fixed weight) and so positive definite.

    Args:
        features: [N, p].
        labels: [N].
        label: The class; without images of it, the mean of all stands in.
    """
    common = features.mean(0) if len(features) else np.zeros(features.shape[1])
    within = np.zeros((features.shape[1],) * 2)
    for each in np.unique(labels):
        part = features[labels == each]
        centred = part - part.mean(0)
        within += centred.T @ centred
    freedom = max(len(features) - len(np.unique(labels)), 1)
    within /= freedom
    size = max(float(np.trace(within)) / len(within), 1e-12)
    weight = min(1.0, _RIDGE + len(within) / (freedom + len(within)) * 0.5)
    covariance = (1 - weight) * within + weight * size * np.eye(len(within))
    own = features[labels == label]
    mean = (own.sum(0) + common) / (len(own) + 1)
    return Population(mean, covariance)
