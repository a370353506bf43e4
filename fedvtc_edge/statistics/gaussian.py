"""Gaussian class-conditional scores, linear or quadratic in the features: NumPy alone.

Apart from the classifier that uses them, so that a device without torch can work
them out again when newer statistics arrive.
"""

from __future__ import annotations

import numpy as np

from .class_statistics import Array, GlobalStatistics

RIDGE = 0.1
"""Ridge on the pooled covariance, as a share of its mean diagonal."""

FLOOR = 0.1
"""Least standard deviation in naive Bayes, in units of anchor features (norm √m)."""


Coefficients = tuple[Array, Array, Array]
"""Quadratic [m, C], linear [m, C] and constant [C]: the score of features z is
z² · quadratic + z · linear + constant, up to what all classes share."""


def coefficients(known: GlobalStatistics, ridge: float = RIDGE) -> Coefficients:
    """Coefficients of each class's log-density, under a uniform prior.

    A pooled covariance gives the linear discriminant, per-class deviations give Gaussian
    naive Bayes.

    Args:
        ridge: On a pooled covariance, as a share of its mean diagonal.
    """
    if known.covariance is not None:
        return _shared_covariance(known.mean, known.covariance, ridge)
    return _own_deviations(known.mean, np.maximum(known.std, FLOOR))


def regular(covariance: Array, ridge: float) -> Array:
    """A covariance [m, m] with a ridge, as a share of its mean diagonal."""
    width = len(covariance)
    # The second term keeps a degenerate cohort (one sample a class) invertible.
    scale = max(float(np.trace(covariance)) / width, 1e-6)
    return covariance + ridge * scale * np.eye(width)


def _shared_covariance(mean: Array, covariance: Array, ridge: float) -> Coefficients:
    linear = np.asarray(np.linalg.solve(regular(covariance, ridge), mean.T), np.float64)
    offset: Array = -0.5 * (mean.T * linear).sum(0)
    return np.zeros_like(linear), linear, offset


def _own_deviations(mean: Array, std: Array) -> Coefficients:
    precision = np.square(1.0 / std)
    offset = -0.5 * (np.square(mean) * precision).sum(1) - np.log(std).sum(1)
    return -0.5 * precision.T, (mean * precision).T, offset
