"""The classifier that needs no training: what the anchor statistics alone already know.

Pooled covariance gives the linear discriminant (the closed form of analytic
federated learning), per-class deviations give Gaussian naive Bayes. It is the
control beside every result, the teacher in fine-tuning, and half of the
calibrated prediction.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .statistics import Array, GlobalStatistics

RIDGE = 0.1
"""Ridge on the pooled covariance, as a share of its mean diagonal."""

FLOOR = 0.1
"""Least standard deviation in naive Bayes, in units of anchor features (norm √m)."""

_ABSENT = -1e4
"""Log-posterior of a class that no client has; finite, so that no loss turns NaN."""


class Discriminant:
    """Gaussian class-conditional scores with a uniform prior over the classes seen.

    Args:
        world: Global statistics in the anchor's space.
        temperature: Scores are divided by it; above 1 softens.
    """

    def __init__(
        self, world: GlobalStatistics, *, device: torch.device, temperature: float = 1.0
    ) -> None:
        if world.covariance is not None:
            quadratic, linear, offset = _shared_covariance(world.mean, world.covariance)
        else:
            quadratic, linear, offset = _own_deviations(world.mean, np.maximum(world.std, FLOOR))
        self._absent = torch.from_numpy(~world.present).to(device)
        self._quadratic, self._linear, self._offset = (
            torch.from_numpy(value / temperature).to(device, torch.float32)
            for value in (quadratic, linear, offset)
        )

    def __call__(self, features: Tensor) -> Tensor:
        """Log-posteriors [N, C] of anchor features [N, m]; differentiable."""
        scores = features @ self._linear + features.square() @ self._quadratic + self._offset
        # Left out of the sum and not merely scored low: far from all means, every score is.
        rivals = scores.masked_fill(self._absent, float("-inf"))
        return torch.log_softmax(rivals, dim=1).masked_fill(self._absent, _ABSENT)


def whitening(covariance: Array, ridge: float = RIDGE) -> Array:
    """Symmetric W [m, m] with W (Σ + ridge·mean diagonal·I) W = I."""
    values, vectors = np.linalg.eigh(_regular(covariance, ridge))
    return np.asarray((vectors / np.sqrt(values)) @ vectors.T, np.float64)


def _regular(covariance: Array, ridge: float) -> Array:
    width = len(covariance)
    # The second term keeps a degenerate cohort (one sample a class) invertible.
    scale = max(float(np.trace(covariance)) / width, 1e-6)
    return covariance + ridge * scale * np.eye(width)


def _shared_covariance(mean: Array, covariance: Array) -> tuple[Array, Array, Array]:
    linear = np.asarray(np.linalg.solve(_regular(covariance, RIDGE), mean.T), np.float64)
    offset: Array = -0.5 * (mean.T * linear).sum(0)
    return np.zeros_like(linear), linear, offset


def _own_deviations(mean: Array, std: Array) -> tuple[Array, Array, Array]:
    precision = np.square(1.0 / std)
    offset = -0.5 * (np.square(mean) * precision).sum(1) - np.log(std).sum(1)
    return -0.5 * precision.T, (mean * precision).T, offset
