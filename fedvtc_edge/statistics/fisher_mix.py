"""FisherMix: a head with a cosine margin, trained on features that nobody has (NumPy alone).

Source: Turazza et al., The Gaussian-Head OFL Family (arXiv 2602.01186): a linear head with
cosine margin on synthetic samples, drawn in an estimated Fisher subspace.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .class_statistics import Array, GlobalStatistics
from .gaussian import RIDGE, Coefficients, regular
from .linear_heads import fitted, sample, with_covariance

STEPS, BATCH = 400, 512
RATE = 0.02
"""First learning rate of Adam; it falls to zero along a cosine."""

SHARPNESS = 16.0
"""s: what cosines are multiplied by before the softmax."""


def fisher_mix(known: GlobalStatistics, margin: float, draw: np.random.Generator) -> Coefficients:
    """The head, as coefficients on the extractor's features.

    Args:
        margin: Taken off the cosine with the true class, 0 to 1.
        draw: Stream of the synthetic samples: the same one gives the same head.
    """
    known = with_covariance(known)
    classes = np.flatnonzero(known.present)
    if len(classes) < 2:
        return fitted(known.mean.T * 0.0, np.zeros(len(known.count)), known)
    centre = known.mean[classes].mean(0)
    basis = fisher_subspace(known)
    weights = (known.mean[classes] - centre) @ basis
    places = np.empty(len(known.count), np.int64)
    places[classes] = np.arange(len(classes))
    size = max(1, BATCH // len(classes)) * len(classes)
    features, labels = sample(known, STEPS * size, draw)
    order = draw.permutation(len(labels))[: STEPS * size].reshape(STEPS, size)
    inputs = _unit((features - centre) @ basis)
    weights = _trained(weights, inputs, places[labels], order, margin)
    linear = np.zeros_like(known.mean.T)
    linear[:, classes] = basis @ _unit(weights).T
    return fitted(linear, -centre @ linear, known)


def fisher_subspace(known: GlobalStatistics) -> Array:
    """Basis [m, r] of the directions in which classes differ most for their spread within.

    The generalised eigenvectors of scatter between and within classes, with r = C - 1 or m if
    that is less; within-class variance along each is 1, but for the ridge.
    """
    known = with_covariance(known)
    assert known.covariance is not None
    means = known.mean[known.present]
    lower = np.linalg.cholesky(regular(known.covariance, RIDGE))
    whitened = np.linalg.solve(lower, (means - means.mean(0)).T)
    directions, _, _ = np.linalg.svd(whitened, full_matrices=False)
    rank = max(1, min(len(means) - 1, len(lower)))
    basis: Array = np.linalg.solve(lower.T, directions[:, :rank])
    return basis


def _trained(
    weights: Array,
    inputs: Array,
    labels: NDArray[np.int64],
    order: NDArray[np.int64],
    margin: float,
) -> Array:
    """Weights [C, r] after one step of Adam for each row of ``order``.

    Args:
        inputs: Unit vectors [N, r].
    """
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    for step, batch in enumerate(order):
        gradient = _gradient(weights, inputs[batch], labels[batch], margin)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * np.square(gradient)
        move = (first / (1 - 0.9 ** (step + 1))) / (
            np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8
        )
        weights = weights - RATE * (1 + np.cos(np.pi * step / len(order))) / 2 * move
    return weights


def _gradient(weights: Array, inputs: Array, labels: NDArray[np.int64], margin: float) -> Array:
    """Gradient [C, r] of the mean cross-entropy of s · (cosine - margin at the true class)."""
    length = np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-12)
    unit = weights / length
    rows = np.arange(len(labels))
    logits = SHARPNESS * (inputs @ unit.T)
    logits[rows, labels] -= SHARPNESS * margin
    chance = np.exp(logits - logits.max(1, keepdims=True))
    chance /= chance.sum(1, keepdims=True)
    chance[rows, labels] -= 1.0
    flat = SHARPNESS * (chance.T @ inputs) / len(labels)
    gradient: Array = (flat - (flat * unit).sum(1, keepdims=True) * unit) / length
    return gradient


def _unit(rows: Array) -> Array:
    unit: Array = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return unit
