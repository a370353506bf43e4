"""How sure a measured share, mean or AUC is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fedvtc_edge.errors import ScoreError
from fedvtc_edge.statistics import Array

from .scoring import auc, upper_limit


def proportion_interval(successes: float, trials: int, confidence: float) -> tuple[float, float]:
    """Two-sided Clopper–Pearson limits of a share.

    Args:
        successes: From 0 to ``trials``; a tie that counts in part widens the interval to the
            whole numbers around it.
        trials: 1 or more.
        confidence: In (0, 1).

    Raises:
        ScoreError: A value out of range.
    """
    error = _error(confidence)
    if trials < 1 or not 0 <= successes <= trials:
        raise ScoreError(
            f"{successes} of {trials} trials", hint="expected at least one trial, and no more hits"
        )
    least, most = math.floor(successes + 1e-9), math.ceil(successes - 1e-9)
    return 1 - upper_limit(trials - least, trials, error), upper_limit(most, trials, error)


def mean_interval(values: ArrayLike, confidence: float) -> tuple[float, float]:
    """Student's limits of the mean of independent values in [0, 1].

    Where all values are equal, and a spread of 0 would claim to know everything, the limits are
    those of as many trials without a failure: the mean, give or take what Clopper–Pearson leaves.

    Args:
        values: One per trial, [N], N ≥ 2.
        confidence: In (0, 1).

    Raises:
        ScoreError: Too few values, or not in [0, 1].
    """
    error = _error(confidence)
    given = np.asarray(values, np.float64)
    if given.ndim != 1 or len(given) < 2 or not ((given >= 0) & (given <= 1)).all():
        raise ScoreError(
            f"values of shape {list(given.shape)}", hint="expected two or more from 0 to 1"
        )
    mean, spread = float(given.mean()), float(given.std(ddof=1)) / math.sqrt(len(given))
    if spread < 1e-12:
        doubt = upper_limit(0, len(given), error)
        return max(mean - doubt, 0.0), min(mean + doubt, 1.0)
    reach = student_quantile(1 - error, len(given) - 1) * spread
    return max(mean - reach, 0.0), min(mean + reach, 1.0)


def auc_interval(
    members: ArrayLike, nonmembers: ArrayLike, confidence: float
) -> tuple[float, float]:
    """DeLong's limits of an AUC (DeLong et al. 1988).

    For independent scores. A perfect separation has variance 0 by DeLong, which is no
    knowledge: there the rarer side decides, as so many trials without a failure.

    Args:
        members: Scores [M], M ≥ 2.
        nonmembers: Scores [N], N ≥ 2.
        confidence: In (0, 1).

    Raises:
        ScoreError: Unusable or too few scores.
    """
    error, value = _error(confidence), auc(members, nonmembers)
    inside, outside = np.asarray(members, np.float64), np.asarray(nonmembers, np.float64)
    if min(len(inside), len(outside)) < 2:
        raise ScoreError("one score", hint="score two or more members and non-members")
    beats = _placements(inside, outside), 1 - _placements(outside, inside)
    spread = math.sqrt(sum(float(part.var(ddof=1)) / len(part) for part in beats))
    if spread < 1e-12:
        doubt = upper_limit(0, min(len(inside), len(outside)), error)
        return max(value - doubt, 0.0), min(value + doubt, 1.0)
    reach = student_quantile(1 - error, min(len(inside), len(outside)) - 1) * spread
    return max(value - reach, 0.0), min(value + reach, 1.0)


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t, by bisection on its exact tail.

    Args:
        probability: In [0.5, 1).
        freedom: Degrees, 1 or more.
    """
    low, high = 0.0, 2.0
    while 1 - student_tail(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        below = 1 - student_tail(middle, freedom) < probability
        low, high = (middle, high) if below else (low, middle)
    return high


def student_tail(t: float, freedom: int) -> float:
    """P(T > t) for t ≥ 0: a finite sum for whole degrees (Abramowitz and Stegun 26.7.3–4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max((1 - inside) / 2, 0.0)


def _placements(scores: Array, others: Array) -> Array:
    """Share of ``others`` that each score beats; a tie counts half."""
    order = np.sort(others)
    below = np.searchsorted(order, scores, "left") + np.searchsorted(order, scores, "right")
    return below / (2 * len(order))


def _error(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ScoreError(f"confidence = {confidence}", hint="use 0.95")
    return (1 - confidence) / 2
