"""Single records, read off from few numbers.

The mean of one record is the record; mean and standard deviation of two are both, but for
signs; and two uploads that are one record apart differ by that record.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedvtc_edge.statistics.class_statistics import Array

from ..adversary.view import Case, CaseAttack, Guess, View, spectrum

_RESTARTS = 64
_EQUAL = 1e-3
"""Relative spread of lengths below which features count as normalised."""

_SPHERE = 0.1
"""Weight of the condition c·d = 0 beside the prior. It is exact, but the signs that meet it are
needles in a landscape of flips: from 1 on the search gets lost, and up to there it gains a
hundredth at most (cosines of pairs of digits under the anchor)."""


def recover_one(mean: Array) -> Array:
    """The features [1, p] of one record: its mean."""
    return mean[None].copy()


def recover_two(
    mean: Array,
    std: Array,
    covariance: Array,
    stream: torch.Generator,
    *,
    sphere: bool = False,
) -> Array:
    """Both records c ± σ∘s, with the signs σ that the population finds likeliest.

    The magnitudes are exact, only the 2^(p−1) signs are not. d = σ∘s is N(0, Σ₀/2), so that
    the likeliest signs have the least dᵀΣ₀⁻¹d: binary quadratic programming, solved by greedy
    flips from random starts. Starts are signs of draws from N(0, Σ₀) and of the relaxation's
    solution, the eigenvector of the least eigenvalue.

    Args:
        mean: c, [p].
        std: s, biased, [p]; for two records |z₁ − z₂|/2.
        covariance: Σ₀, positive definite, [p, p].
        sphere: Whether all features are of one length, so that c·d = 0.

    Returns:
        [2, p], in no order.
    """
    size = np.sqrt(np.maximum(np.diag(covariance), 1e-60))
    cost = np.linalg.inv(covariance) * np.outer(std, std)
    if sphere:
        lever = mean * std
        # By chance c·d would be of this size.
        cost += _SPHERE * len(mean) * np.outer(lever, lever) / max(float(lever @ lever), 1e-60)
    values, axes = spectrum(covariance)
    noise = torch.randn(_RESTARTS, len(mean), generator=stream, dtype=torch.float64).numpy()
    starts = (noise * np.sqrt(np.maximum(values, 0.0))) @ axes.T / size
    starts[0] = np.linalg.eigh(cost)[1][:, 0]
    signs = _flipped(cost, np.where(starts < 0, -1.0, 1.0))
    best = signs[np.einsum("rp,pq,rq->r", signs, cost, signs).argmin()]
    return np.stack([mean + best * std, mean - best * std])


def recover_from_scatter(mean: Array, scatter: Array) -> Array:
    """Both records c ± d, where W = 2·ddᵀ is of nothing but them: exact but for their order.

    Args:
        mean: c, [p].
        scatter: W of one degree of freedom, [p, p].

    Returns:
        [2, p].
    """
    values, axes = np.linalg.eigh(scatter)
    half = np.sqrt(max(float(values[-1]), 0.0) / 2) * axes[:, -1]
    return np.stack([mean + half, mean - half])


def exactness(recovered: Array, truth: Array) -> float:
    """Largest error of a true number, relative to its record's largest.

    Each number is compared with the nearest recovered one of its coordinate: the order of
    the records, and the sign of a coordinate of d, do not count.

    Args:
        recovered: [R, p].
        truth: [T, p].
    """
    error = np.abs(recovered[:, None] - truth[None]).min(0).max(1)
    return float((error / np.maximum(np.abs(truth).max(1), 1e-60)).max())


def alignment(recovered: Array, truth: Array) -> float:
    """|cos| between the differences of two recovered and of two true records, in [0, 1].

    Here signs do count, but for the order. Of two equal records there are none: 1 if that
    was recovered.
    """
    mine, real = recovered[0] - recovered[1], truth[0] - truth[1]
    lengths = float(np.linalg.norm(mine) * np.linalg.norm(real))
    return abs(float(mine @ real)) / lengths if lengths > 0 else float(not (mine - real).any())


class ExactRecovery:
    """Recovery of the features of classes of one or two records; scores are distances to them."""

    name = "exact"
    needs_pairs = False

    def guess(self, cases: Sequence[Case], stream: torch.Generator) -> list[Guess | None]:
        """Answer each case; see :class:`~fedvtc_edge.attacks.adversary.view.Attack`."""
        # The same starts for all: from one stream, a case would see how many came before it.
        seed = int(torch.randint(2**62, (1,), generator=stream))
        return [self._one(case, torch.Generator().manual_seed(seed)) for case in cases]

    def _one(self, case: Case, stream: torch.Generator) -> Guess | None:
        if case.view.extract is None:
            return None
        found = _recovered(case.view, stream)
        if found is None:
            return None
        off = case.features()[:, None] - found[None]
        return Guess(-np.linalg.norm(off, axis=2).min(1))


def _recovered(view: View, stream: torch.Generator) -> Array | None:
    count = round(view.count)
    if count == 1:  # under noise too, which is then all that hides it
        return recover_one(view.mean)
    if count != 2 or view.noise > 0:
        return None
    if view.scatter is not None and round(view.freedom) == 1:
        return recover_from_scatter(view.mean, view.scatter)
    if view.std is None or view.population is None:
        return None
    covariance = view.population.covariance
    return recover_two(view.mean, view.std, covariance, stream, sphere=_on_a_sphere(view))


def _on_a_sphere(view: View) -> bool:
    """Whether the adversary's own images have features of one length."""
    assert view.extract is not None
    with torch.no_grad():
        lengths = view.extract(view.everyday[:100]).double().norm(dim=1)
    return len(lengths) > 1 and float(lengths.std()) < _EQUAL * float(lengths.mean())


def _flipped(cost: Array, signs: Array) -> Array:
    """Local minima of σᵀQσ: from each row of [R, p], the best single flip until none helps."""
    signs, rows = signs.copy(), np.arange(len(signs))
    fields, own = signs @ cost, np.diag(cost)
    slack = 1e-12 * np.abs(cost).sum()
    for _ in range(100 * len(cost)):  # rounding must not keep it going for ever
        change = own - signs * fields  # a quarter of what a flip would add
        best = change.argmin(1)
        better = change[rows, best] < -slack
        if not better.any():
            break
        moved, where = rows[better], best[better]
        fields[moved] -= 2 * signs[moved, where, None] * cost[where]
        signs[moved, where] *= -1
    return signs


def departed(before: Array, count: float, after: Array, left: float, centre: Array) -> Array:
    """The features of the record that left, less their expectation: φ − μ₀.

    About μ₀, because noise makes ``count − left`` differ from 1, and what is then left over
    of the mean would outweigh the record.

    Args:
        before: Mean of all n records, [p].
        count: Number n, as seen.
        after: Mean of those that stayed, [p].
        left: Number of those that stayed, as seen.
        centre: Mean μ₀ of the population, [p].

    Returns:
        n·(c_t − μ₀) − (n−1)·(c_t+1 − μ₀), [p].
    """
    difference: Array = count * (before - centre) - left * (after - centre)
    return difference


class Differencing(CaseAttack):
    """Differences φ = n·c_t − (n−1)·c_t+1 of one extractor's means; scores are cosines to φ."""

    name = "differencing"

    def answer(self, case: Case) -> Guess | None:
        """Answer one case."""
        view, after = case.view, case.view.after
        if after is None or view.extract is None or view.population is None:
            return None
        # An exact view of nobody also says 1.
        left = after.count if view.noise > 0 else view.count - 1
        centre = view.population.mean
        gone = departed(view.mean, view.count, after.mean, left, centre)
        return Guess(cosines(case.features() - centre, gone))


def cosines(features: Array, direction: Array) -> Array:
    """Cosine of each row of [K, p] with [p]; 0 where one of the two is a zero vector."""
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(direction)
    nearness: Array = features @ direction / np.where(lengths > 0, lengths, 1.0)
    return nearness
