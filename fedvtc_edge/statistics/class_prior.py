"""Two operating points of one classifier: uniform over the classes, and a client's own prior.

A classifier that was trained on classes drawn uniformly gives posteriors for a uniform prior. By
Bayes' rule, adding log π(y) to them gives the posteriors for classes that come with probabilities
π (Saerens, Latinne and Decaestecker 2002): no training, and nothing that leaves the client.
Nothing here imports torch: a device needs it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

SMOOTHING = 1.0
"""Pseudo-example, spread evenly over the classes: the chance of a class that was never seen."""


def class_prior(counts: ArrayLike) -> Array:
    """Smoothed probabilities [C] of a client's classes, (n_y + 1/C) / (n + 1); none is zero.

    One pseudo-example in all (Perks 1947) and not one per class: with many classes and few
    examples the classes that a client lacks would outweigh those that it has.

    Args:
        counts: Examples per class, [C].
    """
    examples = np.asarray(counts, np.float64)
    prior: Array = (examples + SMOOTHING / len(examples)) / (examples.sum() + SMOOTHING)
    return prior


def log_prior(counts: ArrayLike) -> NDArray[np.float32]:
    """Logarithm of :func:`class_prior`, [C]: what is added to log-posteriors [N, C] at home."""
    return np.log(class_prior(counts)).astype(np.float32)


def recalls(predicted: ArrayLike, labels: ArrayLike, classes: int) -> Array:
    """Share of each class's examples that are recognised, [C]; NaN where there is no example.

    Args:
        predicted: Predicted classes, [N].
        labels: True ones, [N].
        classes: Number C of classes.
    """
    truth = np.asarray(labels)
    hits = np.bincount(truth[np.asarray(predicted) == truth], minlength=classes)
    total = np.bincount(truth, minlength=classes)
    found: Array = np.divide(hits, total, out=np.full(classes, np.nan), where=total > 0)
    return found


def accuracy_on(counts: ArrayLike, recall: ArrayLike) -> float | None:
    """Accuracy where classes come as often as a client has them: Σ n_y · recall_y / Σ n_y.

    Equal to the accuracy on a test set whose images are weighted so that each class weighs as
    much as in the client's data.

    Args:
        counts: Examples per class, [C].
        recall: Of :func:`recalls`, [C]; a class that is NaN there counts on neither side.

    Returns:
        A fraction, or None where the test set has none of the client's classes.
    """
    share = np.asarray(recall, np.float64)
    weight = np.where(np.isnan(share), 0.0, np.asarray(counts, np.float64))
    if not weight.any():
        return None
    return float(min((weight * np.nan_to_num(share)).sum() / weight.sum(), 1.0))
