"""Linear heads on a frozen extractor that follow from published statistics: NumPy alone.

Each is worked out from counts, class means and a pooled covariance, with no image and no
gradient of a client. The discriminant of :mod:`fedvtc_edge.statistics.gaussian` is the first of
them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from .class_statistics import Array, GlobalStatistics
from .gaussian import Coefficients, regular

_SAMPLES = 2000
"""Features drawn to find a head's scale: its log-likelihood is then known to 1 % or so."""

_SAMPLE_SEED = 2508_01671

_LEAST, _LARGEST, _HALVINGS = 1e-3, 1e6, 40
"""Least and largest scale, and steps of the search between them."""

_DOUBT = 0.02
"""Share of the samples that may be of any class: real features have longer tails than Gaussians."""


def with_covariance(known: GlobalStatistics) -> GlobalStatistics:
    """The same, with the mean variances as covariance where per-class deviations were published."""
    if known.covariance is not None:
        return known
    variance = np.square(known.std[known.present]).mean(0)
    return dataclasses.replace(known, covariance=np.diag(variance))


def least_squares(known: GlobalStatistics, ridge: float) -> Coefficients:
    """Ridge regression of one-hot labels on features, (XᵀX + γI)⁻¹ XᵀY: the head of AFL.

    Both sums follow from what is published: XᵀX = n Σ + Σ_y n_y μ_y μ_yᵀ, and the columns of
    XᵀY are n_y μ_y. Classes weigh as their examples do. Regression says nothing of how sure it
    is: the scores are scaled by :func:`fitted`.

    Source: He et al., AFL (CVPR 2025), whose clients upload XᵀX and XᵀY.

    Args:
        ridge: γ, as a share of the mean diagonal of XᵀX.
    """
    known = with_covariance(known)
    assert known.covariance is not None
    share = known.count / max(float(known.count.sum()), 1.0)
    weighted = known.mean * share[:, None]
    gram = known.covariance + weighted.T @ known.mean
    linear = np.asarray(np.linalg.solve(regular(gram, ridge), weighted.T), np.float64)
    return fitted(linear, np.zeros(len(share)), known)


def fitted(linear: Array, offset: Array, known: GlobalStatistics) -> Coefficients:
    """A head scaled so that its softmax is as sure of itself as it should be.

    The scale is the most likely one for features that the published Gaussians draw, by a public
    seed. Which class scores highest does not change with it.

    Args:
        linear: [m, C].
        offset: [C].
    """
    classes = np.flatnonzero(known.present)
    if not len(classes):
        return np.zeros_like(linear), linear, offset
    draw = np.random.Generator(np.random.Philox(key=_SAMPLE_SEED))
    features, labels = sample(known, _SAMPLES, draw)
    scores = features @ linear[:, classes] + offset[classes]
    scores -= scores.max(1, keepdims=True)  # no scale overflows the exponential
    own = scores[np.arange(len(labels)), np.searchsorted(classes, labels)]
    wanted = ((1 - _DOUBT) * own + _DOUBT * scores.mean(1)).mean()
    low, high = np.log(_LEAST), np.log(_LARGEST)
    for _ in range(_HALVINGS):  # the log-likelihood is concave in the scale
        middle = (low + high) / 2
        weight = np.exp(scores * np.exp(middle))
        rising = wanted > ((weight * scores).sum(1) / weight.sum(1)).mean()
        low, high = (middle, high) if rising else (low, middle)
    scale = float(np.exp((low + high) / 2))
    return np.zeros_like(linear), linear * scale, offset * scale


def sample(
    known: GlobalStatistics, number: int, draw: np.random.Generator
) -> tuple[Array, NDArray[np.int64]]:
    """Features [N, m] that the published Gaussians draw, and their classes [N], each as often.

    Args:
        number: About N: as many of each class.
    """
    known = with_covariance(known)
    assert known.covariance is not None
    classes = np.flatnonzero(known.present)
    labels = np.repeat(classes, -(-number // max(len(classes), 1)))
    noise = draw.standard_normal((len(labels), known.mean.shape[1]))
    return known.mean[labels] + noise @ root(known.covariance), labels


def root(covariance: Array) -> Array:
    """R [m, m] with RᵀR = covariance; noise may have left it none of Cholesky."""
    values, vectors = np.linalg.eigh(covariance)
    rows: Array = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    return rows
