"""Scores of uploads of two worlds, and lower bounds on ε from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.errors import PrivacyError
from fedvtc_edge.privacy.accountant import MAX_EPSILON, check_delta, epsilon_spent
from fedvtc_edge.privacy.release_spec import Array

from ..scoring.metrics import epsilon_lower_bound

BEYOND = 2 * MAX_EPSILON
"""Value for every ε beyond what can be claimed: there is next to no noise."""

_POINTS = 501
_LEAST_MU = 1e-6
"""A μ below which ε is 0 at any δ that is claimed."""


@dataclass(frozen=True)
class Bounds:
    """Lower bounds on ε that hold together.

    Args:
        clopper_pearson: From how often the score tells the worlds apart, whatever the noise.
        gaussian: From how far apart the scores are, for a mechanism that is said to be
            Gaussian; None for another.
        mu: Lower limit of the Gaussian's μ, sensitivity over noise; None for another.
        most_mu: Upper limit of it, which holds by itself.
    """

    clopper_pearson: float
    gaussian: float | None = None
    mu: float | None = None
    most_mu: float | None = None

    @property
    def best(self) -> float:
        """The larger one."""
        return max(self.clopper_pearson, self.gaussian or 0.0)

    def tightened(self, other: Bounds) -> Bounds:
        """The tighter one of each limit, where both hold together."""
        gaussian, mu = (
            max((limit for limit in pair if limit is not None), default=None)
            for pair in ((self.gaussian, other.gaussian), (self.mu, other.mu))
        )
        most = (limit for limit in (self.most_mu, other.most_mu) if limit is not None)
        counted = max(self.clopper_pearson, other.clopper_pearson)
        return Bounds(counted, gaussian, mu, min(most, default=None))


def bounds_of(zeros: Array, ones: Array, delta: float, error: float, *, gaussian: bool) -> Bounds:
    """Bounds that the scores prove.

    Args:
        zeros: Scores of uploads of world 0, [N], N ≥ 2.
        ones: Scores of uploads of world 1, [N].
        error: Chance that any of the bounds is too high; divided among them (Bonferroni).
        gaussian: Whether the claim is of Gaussian noise.

    Raises:
        PrivacyError: A δ at which Gaussian noise has no ε.
        ScoreError: Scores that nothing can be concluded from.
    """
    if not gaussian:
        return Bounds(epsilon_lower_bound(ones, zeros, delta, 1 - error))
    check_delta(delta)
    counted = epsilon_lower_bound(ones, zeros, delta, 1 - error / 2)
    mu = mu_lower_bound(zeros, ones, error / 2)
    most = mu_upper_bound(zeros, ones, error / 2)
    return Bounds(counted, epsilon_of(mu, delta), mu, most)


def mu_lower_bound(zeros: Array, ones: Array, error: float) -> float:
    """Lower confidence limit of μ: how far two Gaussians are apart, in standard deviations.

    The mean difference over the root of the mean variance is, but for its scale, Student's t
    with a noncentrality of μ·√(N/2). The limit is the least μ under which a t so large has a chance
    of ``error``.

    *Another variance in world 1*: the t is taken with N - 1 degrees of freedom, not 2N - 2. The
    mean of two independent variances is never more spread than one of them (Hsu 1938), so
    that the limit errs downward.

    *A score that is not linear*: let Gaussian noise of one covariance be added to two means
    whose whitened difference is m, ‖m‖ ≤ μ. About the midpoint any quadratic score is
    bᵀz + zᵀAz, z = ±m/2 + noise: its means differ by bᵀm, its variances are
    ‖b ± Am‖² + 2·tr A², whose mean is no less than ‖b‖². So it seems no farther apart
    than ‖m‖: the best score is the linear one, and no quadratic refutes a true claim, but for
    the t's distribution, which is then exact for large N only.

    Guarantee: with scores that are independent draws of two Gaussians, of whatever
    variances, the result exceeds their distance with a chance of at most ``error``.
    *Not covered*: a mechanism whose noise is no Gaussian; there, the claim of a Gaussian is
    what a large result refutes.

    Args:
        zeros: Scores of world 0, [N], N ≥ 2.
        ones: Scores of world 1, [N].
        error: In (0, 1/2).

    Returns:
        μ ≥ 0; infinite where scores differ and nothing varies.
    """
    found = _student(zeros, ones)
    if found is None:
        return math.inf if float(ones.mean()) > float(zeros.mean()) else 0.0
    t, root, freedom = found
    if t <= 0:
        return 0.0
    low, high = 0.0, t
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(t, middle, freedom) <= error else (low, middle)
    return low * root


def mu_upper_bound(zeros: Array, ones: Array, error: float) -> float:
    """Upper confidence limit of μ, by the same t: the largest under which it is not too small.

    Guarantee: as :func:`mu_lower_bound`'s, from above, for scores of one variance; a score
    that is not the best one has a smaller μ than the mechanism.

    Args:
        zeros: Scores of world 0, [N], N ≥ 2.
        ones: Scores of world 1, [N].
        error: In (0, 1/2).

    Returns:
        μ ≥ 0; infinite where scores differ and nothing varies.
    """
    found = _student(zeros, ones)
    if found is None:
        return math.inf if float(ones.mean()) > float(zeros.mean()) else 0.0
    t, root, freedom = found
    low, high = 0.0, max(t, 0.0) + 10.0
    while 1 - t_tail(t, high, freedom) > error:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - t_tail(t, middle, freedom) > error else (low, middle)
    return high * root


def _student(zeros: Array, ones: Array) -> tuple[float, float, int] | None:
    """Student's t of the gap, √(1/N + 1/M) and degrees of freedom; None where nothing varies."""
    gap = float(ones.mean() - zeros.mean())
    spread = math.sqrt((float(zeros.var(ddof=1)) + float(ones.var(ddof=1))) / 2)
    # Relative, for the mean of equal floats is not always one of them.
    if spread <= 1e-12 * max(abs(float(zeros.mean())), abs(float(ones.mean()))):
        return None
    root = math.sqrt(1 / len(zeros) + 1 / len(ones))
    return gap / spread / root, root, min(len(zeros), len(ones)) - 1


def t_tail(t: float, shift: float, freedom: int) -> float:
    """P(T ≥ t) of Student's noncentral t: the mean of Φ(shift - t·S), S² ~ χ²/ν.

    By the midpoint rule; scipy would have it, which fedvtc-edge does not depend on.

    Args:
        t: Of the sample.
        shift: Noncentrality.
        freedom: Degrees of freedom ν, 1 or more.
    """
    reach = 8 / math.sqrt(2 * freedom)
    edges = np.linspace(max(0.0, 1 - reach), 1 + reach, _POINTS)
    s = (edges[1:] + edges[:-1]) / 2
    logs = (freedom - 1) * np.log(s) - freedom * np.square(s) / 2
    weights = np.exp(logs - logs.max())
    tails = [0.5 * math.erfc(x) for x in ((t * s - shift) / math.sqrt(2)).tolist()]
    return float(weights @ np.array(tails) / weights.sum())


def epsilon_of(mu: float, delta: float) -> float:
    """ε at δ of a Gaussian mechanism of sensitivity μ and noise 1, by the exact curve.

    Args:
        mu: 0 or more, infinity too.
        delta: From 1e-300, below 1.

    Returns:
        ε ≥ 0; :data:`BEYOND` where it is too large to be a claim.
    """
    if mu < _LEAST_MU:
        return 0.0
    try:
        return epsilon_spent([(1 / mu, 1.0, 1)], delta)
    except PrivacyError:
        return BEYOND


Blocks = NDArray[np.int64]
"""Per number of an upload, [d], the block it is in: noise within one is alike."""

CERTAIN = 4.0
"""Standard errors that a block's noise must differ by between the worlds to count as different.
By chance alone it happens once in 16,000 blocks, so that the score of an honest Gaussian
mechanism is linear, and itself exactly Gaussian."""

_EXACT = 1e-9
"""Relative scale below which noise counts as none; the float64 of a score ends there."""


@dataclass(frozen=True, eq=False)
class LikelihoodRatio:
    """log p₁(x) / p₀(x) of independent Gaussians: no test of Gaussian noise is stronger.

    It is over *all* numbers of the upload, and sees both what moves and what becomes noisier:
    a scale that depends on a record gives the record away as its mean does.

    Args:
        means: Of the uploads of world 0 and 1, [2, d].
        scales: Standard deviations of their numbers, [2, d], above 0.
    """

    means: Array
    scales: Array

    def __call__(self, uploads: Array) -> Array:
        """Scores [N] of uploads [N, d]; a higher one speaks for world 1."""
        zero, one = (
            (uploads - mean) / scale for mean, scale in zip(self.means, self.scales, strict=True)
        )
        # Not zero² − one²: what cancels is far larger than what is left.
        ratio: Array = ((zero - one) * (zero + one)).sum(1) / 2
        return ratio + float(np.log(self.scales[0] / self.scales[1]).sum())


def choose(
    zeros: Array, ones: Array, blocks: Blocks, exact: tuple[Array, Array] | None
) -> LikelihoodRatio:
    """The likelihood ratio, from uploads that nothing else is concluded from.

    Args:
        zeros: Uploads of world 0, [N, d], N ≥ 2.
        ones: Uploads of world 1, [N, d].
        blocks: Block of each number, [d].
        exact: Both worlds' uploads without noise, [d] each, where they are known.
    """
    worlds = (zeros, ones)
    means = np.stack([world.mean(0) for world in worlds])
    sizes = np.maximum(np.bincount(blocks), 1)
    spent = [np.square(world - mean).sum(0) for world, mean in zip(worlds, means, strict=True)]
    freedom = sizes * (len(zeros) - 1)
    variances = np.stack([np.bincount(blocks, squares) for squares in spent]) / freedom
    largest = np.zeros(len(sizes))
    np.maximum.at(largest, blocks, np.abs(np.concatenate(worlds)).max(0))
    floor = _EXACT * np.where(largest > 0, largest, 1.0)
    variances = np.maximum(variances, np.square(floor))
    apart = np.abs(np.log(variances[1] / variances[0])) > CERTAIN * np.sqrt(4 / freedom)
    scales = np.sqrt(np.where(apart, variances, variances.mean(0)))
    return LikelihoodRatio(
        means=means if exact is None else np.stack(exact), scales=scales[:, blocks]
    )
