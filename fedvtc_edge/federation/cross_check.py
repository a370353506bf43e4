"""Cross-check of exact statistics: uploads that all the others contradict are set aside.

A client that swaps labels, turns sums around or makes them up uploads class means that lie
where the others have *another* class. Who lies is not read off a single comparison, in which
each of two is against the other: it is the client without which the rest agree.

Honest clients differ in what they have, which classes and how many, and so do their class
means by chance. Only a mean that lies nearer to another class than chance explains counts, and
only where two others know both classes. Nothing is changed unless somebody is set aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.statistics.class_statistics import Array, ClassStatistics
from fedvtc_edge.statistics.gaussian import RIDGE

CHANCE, SLACK = 0.01, 1.25
"""Standard errors by which a mean must lie nearer to another class: so many that none of all
comparisons would reach it by this chance if features were Gaussian, and a quarter more, for they
are not. That is 5.2 for six clients with ten classes and 6.7 for ten with 200; the largest of
honest means was 2.8 and 5.9 (docs/decisions/0039)."""

SHARE = 4
"""Of so many clients one may be set aside, of twice as many two: the rest must stay most."""

MOST_SET_ASIDE, MOST_SUSPECTS = 16, 8
"""Bounds on the work, which grows with the number of clients and not with its square."""


@dataclass(frozen=True)
class Contradiction:
    """A class mean that lies where all the others have another class.

    Args:
        client: Index among the parts.
        label: Class that the client says it is.
        nearer: Class of the others that it is nearer to.
        z: By how many standard errors.
    """

    client: int
    label: int
    nearer: int
    z: float


def contradicting(parts: Sequence[ClassStatistics]) -> dict[int, list[Contradiction]]:
    """Clients without whom the rest agree, and what the others contradict in each.

    Of K clients K / 4 at most, rounded down: of three, two could be the liars.

    Args:
        parts: One per client, of features of one common frozen extractor.

    Returns:
        By index, in the order in which they were found; empty where all agree.
    """
    most = min(len(parts) // SHARE, MOST_SET_ASIDE)
    if most == 0:
        return {}
    clients = _Clients.of(parts)
    kept, out = list(range(len(parts))), dict[int, list[Contradiction]]()
    found = clients.contradictions(kept)
    while found and len(out) < most:
        trials = []
        for suspect in clients.suspects(kept, found):
            left = clients.contradictions([k for k in kept if k != suspect])
            own = sum(each.client == suspect for each in found)
            trials.append((len(left), -own, sum(each.z for each in left), suspect, left))
        *_, liar, left = min(trials, key=lambda trial: trial[:4])
        if len(left) >= len(found):
            break  # nobody explains it: clients differ, and none of them more than others
        out[liar] = [each for each in found if each.client == liar]
        kept, found = [k for k in kept if k != liar], left
    return out


def in_words(found: Sequence[Contradiction], part: ClassStatistics) -> str:
    """Reason for which a client is set aside."""
    if not found:
        return "without these statistics all others agree, with them they do not"
    worst = max(found, key=lambda each: each.z)
    return (
        f"its class {worst.label} ({part.count[worst.label]:.0f} examples) lies where the others "
        f"have class {worst.nearer}, by {worst.z:.0f} standard errors; {len(found)} of its "
        f"{np.count_nonzero(part.count)} classes contradict the others"
    )


@dataclass(frozen=True)
class _Clients:
    """Counts [K, C], class means [K, C, p] and covariances within classes of all clients."""

    count: Array
    mean: Array
    within: list[Array]

    @classmethod
    def of(cls, parts: Sequence[ClassStatistics]) -> _Clients:
        return cls(
            np.stack([part.count for part in parts]),
            np.stack([part.mean for part in parts]),
            [_within(part) for part in parts],
        )

    def suspects(self, kept: list[int], found: list[Contradiction]) -> list[int]:
        """Clients that may be the reason: the contradicted, and those with most of the classes."""
        if len(kept) <= MOST_SUSPECTS:
            return kept
        own = np.zeros(len(self.count))
        for each in found:
            own[each.client] += 1
        labels = sorted({label for each in found for label in (each.label, each.nearer)})
        weight = self.count[:, labels].sum(1)
        ranked = [sorted(kept, key=lambda k: -by[k])[:MOST_SUSPECTS] for by in (own, weight)]
        return sorted({k for ranking in ranked for k in ranking})

    def contradictions(self, kept: list[int]) -> list[Contradiction]:
        """Each client's means against those of all others among the kept."""
        count = self.count[kept]
        mean = self.mean[kept] @ self._whitening(kept)
        totals = _Totals.of(count, mean)
        least = _least_z(int(np.count_nonzero(count)) * count.shape[1])
        found = []
        for index, client in enumerate(kept):
            number, centre, error = totals.without(index)
            known = np.flatnonzero(number)
            for label in known[count[index, known] > 0].tolist():
                each = _nearest_other(
                    mean[index, label], count[index, label], label, known, centre, error
                )
                if each is not None and each[1] > least:
                    found.append(Contradiction(client, label, *each))
        return found

    def _whitening(self, kept: list[int]) -> Array:
        """[p, p]: features times it have a covariance of about 1 within classes."""
        samples = self.count[kept].sum(1)
        second = np.sort(samples)[-2]  # nobody shapes it by a false count
        weight = np.minimum(samples, second)
        width = self.mean.shape[2]
        shape: Array = np.zeros((width, width))
        for client, share in zip(kept, weight / max(float(weight.sum()), 1.0), strict=True):
            own = self.within[client]
            shape += share * (own if own.ndim == 2 else np.diag(own))
        scale = max(float(np.trace(shape)) / width, 1e-6)
        # Of one sample a class rounding is all that is left, and it may be negative.
        values, vectors = np.linalg.eigh(shape)
        whitening: Array = vectors / np.sqrt(np.maximum(values, 0.0) + RIDGE * scale)
        return whitening


@dataclass(frozen=True)
class _Totals:
    """Sums over all clients, made once, from which those over all but one follow.

    Args:
        count: Samples [K, C].
        mean: Class means [K, C, p].
        order: The three clients with most of each class, [3, C].
        fair: Samples [K, C], where nobody has more of a class than the second.
        number: Sum of ``fair`` [C].
        total: Sum of means times ``fair`` [C, p].
    """

    count: Array
    mean: Array
    order: NDArray[np.int64]
    fair: Array
    number: Array
    total: Array

    @classmethod
    def of(cls, count: Array, mean: Array) -> _Totals:
        order = np.argsort(-count, axis=0, kind="stable")[:3]
        # Before sums: none is lost beside 2⁴⁸.
        fair = np.minimum(count, count[order[1], np.arange(count.shape[1])])
        return cls(count, mean, order, fair, fair.sum(0), (fair[:, :, None] * mean).sum(0))

    def without(self, own: int) -> tuple[Array, Array, Array]:
        """Samples [C], means [C, p] and variance of a mean's coordinate [C] of all but one.

        The client with most of a class counts there as much as the next one, so that no false
        count speaks for all of them; a class that a single one has is not known.
        """
        count, mean, order, fair = self.count, self.mean, self.order, self.fair
        columns = np.arange(count.shape[1])
        largest = np.where(order[0] == own, order[1], order[0])
        third = order[2] if len(order) > 2 else order[1]
        next_one = np.where((order[0] == own) | (order[1] == own), third, order[1])
        capped = np.where(next_one == own, 0.0, count[next_one, columns])
        rest = self.number - fair[own] - fair[largest, columns]
        number = np.where(capped > 0, rest + capped, 0.0)
        total = self.total - fair[own][:, None] * mean[own]
        total -= (fair[largest, columns] - capped)[:, None] * mean[largest, columns]
        divisor = np.maximum(number, 1.0)
        top = np.maximum(count[largest, columns], 1.0)
        error = (rest + np.square(capped) / top) / np.square(divisor)
        return number, total / divisor[:, None], error


def _least_z(comparisons: int) -> float:
    """Standard errors that count, of so many comparisons."""
    return SLACK * -NormalDist().inv_cdf(CHANCE / max(comparisons, 1))


def _nearest_other(
    own: Array, samples: float, label: int, known: NDArray[np.int64], centre: Array, error: Array
) -> tuple[int, float] | None:
    """The other class that a mean is nearest to, for its own, and by how many standard errors.

    Squared distances in units of the covariance within classes, less what the errors of the
    means add to them; their difference is divided by its standard error under the claim. None
    where no other class is known.
    """
    width = len(own)
    rivals = known[known != label]
    if not len(rivals):
        return None

    def squared(point: Array, labels: NDArray[np.int64]) -> Array:
        distance: Array = np.square(point - centre[labels]).sum(1)
        return distance

    mine = float(np.square(own - centre[label]).sum()) - width * float(error[label])
    difference = mine - (squared(own, rivals) - width * error[rivals])
    apart, first, second = squared(centre[label], rivals), error[label], error[rivals]
    variance = (
        2 * width * (np.square(first) + np.square(second))
        + 4 * width * (first + second) / samples
        + 4 * apart * (1 / samples + second)
    )
    z = difference / np.sqrt(np.maximum(variance, 1e-12))
    best = int(z.argmax())
    return int(rivals[best]), float(z[best])


def _within(part: ClassStatistics) -> Array:
    """Covariance within classes of one client: [p, p], or its diagonal [p]."""
    everyone = max(float(part.count.sum()), 1.0)
    if part.pooled:
        between = (part.mean * part.count[:, None]).T @ part.mean
        within = (part.square - between) / everyone
        symmetric: Array = (within + within.T) / 2.0
        return symmetric
    spread = part.square - part.count[:, None] * np.square(part.mean)
    diagonal: Array = np.maximum(spread.sum(0), 0.0) / everyone
    return diagonal
