"""Checks of a server that trusts nobody: norms, weights, numbers of contributors, outliers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge import wire
from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.statistics.class_statistics import Array, ClassStatistics, GlobalStatistics, sum_of
from fedvtc_edge.statistics.running_sum import RunningSum

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
    width, samples = statistics.width, statistics.count
    squared = np.square(statistics.total).sum(1) / np.square(np.maximum(samples, 1.0))
    longest = float(squared.max(initial=0.0)) ** 0.5
    if longest > width**0.5 * (1 + SLACK):
        raise CheckError(
            f"a class mean of norm {longest:.4g}, features have {width**0.5:.4g} at most",
            hint="features must be normalised to √p",
        )
    if statistics.pooled:
        trace, samples = np.trace(statistics.square)[None], samples.sum()[None]
    else:
        trace = statistics.square.sum(1)
    # Squares of norms: twice the slack.
    if (trace > samples * width * (1 + 2 * SLACK)).any():
        raise CheckError(
            f"second moments beyond {width} per sample", hint="features must be normalised to √p"
        )


OUTWEIGH = 3.0
"""Times all others together that one client may weigh where no bound is set: more than any
honest one of four and more clients has but by mistake, and little enough to do no harm."""

LEAST_COMPARED = 4
"""Clients from which on they are compared: of two or three, one may well differ from the rest."""


def check_sum(
    total: ClassStatistics, number: NDArray[np.int64], clients: int, most: int | None
) -> None:
    """Refuse a sum over clients that no honest clients have; whose fault it is nobody can tell.

    Args:
        number: Contributors per class [C], as they say.
        clients: How many are in the sum.
        most: Samples that one client may have, or None.

    Raises:
        CheckError: Counts below 0, more contributors than clients, more samples than they may
            have, or sums of features that are too long.
    """
    count, room = total.count, math.inf if most is None else most * clients
    impossible = (count < 0).any() or (number < 0).any() or (number > clients).any()
    if impossible or count.sum() > room:
        raise CheckError(
            f"a masked sum of {clients} clients with {count.sum():.6g} samples, the least of a "
            f"class {count.min():.6g}, the most contributors {number.max()}",
            hint="a client made it up; masks hide which: see docs/masking.md",
        )
    check_norms(total)


def scaled(part: ClassStatistics, most: float) -> ClassStatistics:
    """Statistics as if of ``most`` samples at most; those of fewer are returned as they are."""
    samples = float(part.count.sum())
    if samples <= most:
        return part
    factor = most / samples
    return ClassStatistics(
        part.count * factor, part.total * factor, part.square * factor, part.pooled
    )


def outweighing(parts: Sequence[ClassStatistics], most: int | None) -> dict[int, float]:
    """Clients that claim too many samples, and how many they may count for.

    A claimed number is nobody's to check. What it weighs is bounded by the settings or, where
    they say nothing, by :data:`OUTWEIGH` times what all others claim together.

    Args:
        parts: One per client.
        most: The settings' bound, or None.
    """
    samples = [float(part.count.sum()) for part in parts]
    if most is not None:
        return {index: float(most) for index, own in enumerate(samples) if own > most}
    if len(parts) < LEAST_COMPARED:
        return {}
    # One alone can outweigh all others; beside its number theirs would be lost in rounding.
    largest = max(range(len(samples)), key=samples.__getitem__)
    bound = OUTWEIGH * math.fsum(samples[:largest] + samples[largest + 1 :])
    return {largest: bound} if 0 < bound < samples[largest] else {}


STRAY = 2.0
"""Times the median distance to the median weights that a client's weights may lie from them.
Honest decoders of the default federation lie between 0.91 and 1.09 times it."""


def straying(parts: Sequence[wire.Weights]) -> dict[int, wire.Weights]:
    """Weights that lie far from all others, moved to where the farthest honest ones may lie.

    Distances are about the median of each weight, which fewer than half of the clients cannot
    move far. All begin a round with the weights that were published last.

    Args:
        parts: One per client; of three or fewer nothing can be said.

    Returns:
        By index, what counts instead.
    """
    if len(parts) < LEAST_COMPARED:
        return {}
    wide = [{name: np.asarray(value, np.float64) for name, value in p.items()} for p in parts]
    centre = {name: np.median([part[name] for part in wide], axis=0) for name in wide[0]}
    distance = [
        math.sqrt(sum(float(np.square(part[name] - centre[name]).sum()) for name in centre))
        for part in wide
    ]
    bound = STRAY * float(np.median(distance))
    return {
        index: {
            name: (centre[name] + (value - centre[name]) * (bound / own)).astype(np.float32)
            for name, value in wide[index].items()
        }
        for index, own in enumerate(distance)
        if own > bound > 0
    }


def add_up(
    parts: Iterable[ClassStatistics], trim: float
) -> tuple[ClassStatistics, NDArray[np.int64]]:
    """Add clients' statistics, each forgotten once it is added; the same bits in any order.

    Trimming compares all clients' numbers: only there every part is kept until the end, in
    8 bytes a number (1.4 MB for ten clients of pooled moments at 128 features), and their
    order counts.

    Args:
        parts: One per client, at least one.
        trim: Share of :func:`trimmed_sum`; 0 adds all.

    Returns:
        The sum, and the number of contributors per class [C].
    """
    if trim > 0:
        kept = list(parts)
        return trimmed_sum(kept, trim), contributors(kept)
    several = iter(parts)
    first = next(several)
    classes, width, pooled = first.classes, first.width, bool(first.pooled)
    sizes = np.cumsum([classes, classes * width])
    flat = np.concatenate(_flat(first))
    running, number = RunningSum(flat.size), contributors([first])
    running.add(flat)
    for part in several:
        running.add(np.concatenate(_flat(part), out=flat))
        number += part.count > 0
    count, total, square = np.split(running.total(), sizes)
    square = wire.symmetric(square, width) if pooled else square.reshape(classes, width)
    return ClassStatistics(count, total.reshape(classes, width), square, pooled), number


def _flat(part: ClassStatistics) -> list[Array]:
    """Counts, sums and second moments; of a symmetric matrix its triangle."""
    square = wire.upper(part.square) if part.pooled else part.square.ravel()
    return [part.count, part.total.ravel(), square]


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
