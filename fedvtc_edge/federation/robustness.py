"""Checks of a server that trusts nobody: norms, numbers of contributors, outliers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.statistics.class_statistics import Array, ClassStatistics, GlobalStatistics, sum_of

SLACK = 0.02
"""Rounding allowed in a norm: bfloat16 features are off by 0.4 %, float16 uploads by 0.05 %."""


class CheckError(FedVTCError):
    """Statistics that no honest client has."""


def check_norms(statistics: ClassStatistics) -> None:
    """Refuse sums of features that are longer than √p.

    Anchor features and features after LayerNorm have a norm of √p at most, whatever the
    image, so no class mean is longer and no sample adds more than p to the second
    moments' trace. A client cannot count for more than its samples by scaling them.

    Raises:
        CheckError: A class mean or a second moment beyond that.
    """
    width = statistics.width
    longest = float(np.linalg.norm(statistics.mean, axis=1).max(initial=0.0))
    if longest > width**0.5 * (1 + SLACK):
        raise CheckError(
            f"a class mean of norm {longest:.4g}, features have {width**0.5:.4g} at most",
            hint="features must be normalised to √p",
        )
    trace, samples = statistics.square.sum(1), statistics.count
    if statistics.pooled:
        trace, samples = np.trace(statistics.square)[None], samples.sum()[None]
    # Squares of norms: twice the slack.
    if (trace > samples * width * (1 + 2 * SLACK)).any():
        raise CheckError(
            f"second moments beyond {width} per sample", hint="features must be normalised to √p"
        )


def add_up(
    parts: Iterable[ClassStatistics], trim: float
) -> tuple[ClassStatistics, NDArray[np.int64]]:
    """Add clients' statistics, each forgotten once it is added.

    Trimming compares all clients' numbers: only there every part is kept until the end.

    Args:
        parts: One per client, at least one, in a fixed order.
        trim: Share of :func:`trimmed_sum`; 0 adds all.

    Returns:
        The sum, and the number of contributors per class [C].
    """
    if trim > 0:
        kept = list(parts)
        return trimmed_sum(kept, trim), contributors(kept)
    several = iter(parts)
    total = next(several)
    number = contributors([total])
    for part in several:
        total = total + part
        number += contributors([part])
    return total, number


def contributors(parts: Sequence[ClassStatistics]) -> NDArray[np.int64]:
    """Number of clients that have samples of each class, [C]."""
    number: NDArray[np.int64] = np.sum([part.count > 0 for part in parts], axis=0, dtype=np.int64)
    return number


def suppress(
    world: GlobalStatistics, contributors: NDArray[np.int64], minimum: int, *, floor: float = 0.0
) -> GlobalStatistics:
    """Leave out classes of fewer than ``minimum`` contributors, as if nobody had them.

    A class mean over one client is that client's own. Of a pooled covariance a class
    cannot be taken out again, for nobody uploads one per class: a suppressed class's mean
    and count are gone, its scatter stays mixed into that of all the others.

    Args:
        contributors: Clients per class, [C].
        minimum: Least number of them.
        floor: The std of an absent class where there is one std per class.
    """
    kept = contributors >= minimum
    if kept.all():
        return world
    std = world.std
    if world.covariance is None:
        std = np.where(kept[:, None], std, floor)
    return replace(
        world,
        count=np.where(kept, world.count, 0.0),
        mean=np.where(kept[:, None], world.mean, 0.0),
        std=std,
    )


def trimmed_sum(parts: Sequence[ClassStatistics], share: float) -> ClassStatistics:
    """The sum over clients, without the extremes of each number.

    Coordinate-wise trimmed means (Yin et al. 2018, arXiv 1803.01498), turned back into
    sums. Per class with K contributors, b = ⌊share·K⌋, and per feature: the b smallest
    and the b largest of the clients' means are left out and the others averaged,
    weighted by their samples; the spread between those that are left and the trimmed
    mean of the clients' own variances make the variance (law of total variance), so that
    the result is always a possible one. Claimed counts are clipped to the b-th smallest
    and largest, or a false count would outweigh everybody. Pooled, the clients' scatter
    matrices are trimmed entry by entry, and negative eigenvalues of the result set to 0.

    With b = 0 it is the plain sum. What fewer than 1/share clients have is not protected.

    Args:
        parts: One per client, in a fixed order.
        share: β in [0, ½).
    """
    if _cut(share, len(parts)) == 0:
        return sum_of(list(parts))
    first = parts[0]
    counts = np.stack([part.count for part in parts])
    clipped = np.stack([_clipped(column, share) for column in counts.T], 1)
    total, square = np.zeros_like(first.total), np.zeros_like(first.square)
    for label in range(first.classes):
        own = np.flatnonzero(counts[:, label]).tolist()
        if not own:
            continue
        weight, means = clipped[own, label], np.stack([parts[k].mean[label] for k in own])
        kept = _kept(means, weight, share)
        mean = (kept * means).sum(0)
        between = np.sqrt(kept) * (means - mean)
        total[label] = weight.sum() * mean
        if first.pooled:
            square += weight.sum() * (np.outer(mean, mean) + between.T @ between)
            continue
        variance = np.stack([np.square(parts[k].std[label]) for k in own])
        within = (_kept(variance, weight, share) * variance).sum(0)
        square[label] = weight.sum() * (np.square(mean) + np.square(between).sum(0) + within)
    if first.pooled:
        square += clipped.sum() * _trimmed_scatter(parts, clipped.sum(1), share)
    return ClassStatistics(clipped.sum(0), total, square, first.pooled)


def _cut(share: float, clients: int) -> int:
    return math.floor(share * clients + 1e-9)  # 0.29 · 100 is 28.999999999999996


def _clipped(counts: Array, share: float) -> Array:
    """Counts [K] between the b-th smallest and largest of those above 0; zeros stay."""
    own = np.sort(counts[counts > 0])
    cut = _cut(share, len(own))
    if cut == 0:
        return counts
    return np.where(counts > 0, np.clip(counts, own[cut], own[-1 - cut]), 0.0)


def _kept(values: Array, weight: Array, share: float) -> Array:
    """Weights [K, …] that sum to 1 over what trimming leaves of values [K, …]."""
    cut = _cut(share, len(values))
    rank = values.argsort(0, kind="stable").argsort(0, kind="stable")
    inside = (rank >= cut) & (rank < len(values) - cut)
    kept = inside * weight.reshape(-1, *[1] * (values.ndim - 1))
    shares: Array = kept / kept.sum(0)
    return shares


def _trimmed_scatter(parts: Sequence[ClassStatistics], weight: Array, share: float) -> Array:
    """Covariance within classes and clients [p, p], entry by entry without the extremes."""
    own = np.flatnonzero(weight).tolist()
    if not own:
        return np.zeros_like(parts[0].square)
    scatter = np.stack([_within(parts[k]) for k in own])
    trimmed = (_kept(scatter, weight[own], share) * scatter).sum(0)
    values, vectors = np.linalg.eigh(trimmed)
    nearest: Array = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return nearest


def _within(part: ClassStatistics) -> Array:
    covariance = GlobalStatistics.from_sum(part).covariance
    assert covariance is not None
    return covariance
