"""How much privacy Gaussian noise spends, and how much noise a budget needs.

Gaussian releases without sampling compose exactly (Balle and Wang 2018; Dong, Roth and
Su 2019): k releases with multipliers z_i are one with 1/z² = Σ 1/z_i². With sampling,
Opacus' PRV accountant gives an upper bound by numerical convolution. There is no
Gaussian-DP *approximation* of sampled steps here: it is not an upper bound.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from fedvtc_edge.errors import MissingExtra, PrivacyError

Step = tuple[float, float, int]
"""Noise multiplier z, sampling rate q, number of steps."""

MAX_EPSILON = 1000.0


def epsilon_spent(steps: Iterable[Step], delta: float) -> float:
    """ε at δ of a sequence of Gaussian mechanisms of sensitivity 1.

    Guarantee: for neighbours that differ in one unit, added or removed; a step
    (z, q, n) is n times: each unit sampled with probability q by itself, noise z.
    Order does not matter.

    Args:
        steps: Noise multipliers z > 0, sampling rates q in (0, 1], numbers n ≥ 0.
        delta: In (0, 1).

    Returns:
        ε: exact for q = 1, else an upper bound.

    Raises:
        PrivacyError: A value out of range, or an ε too large to be a claim.
    """
    check_delta(delta)
    full, sampled = 0.0, Counter[tuple[float, float]]()
    for noise, rate, number in steps:
        _check_step(noise, rate, number)
        if rate == 1.0:
            full += number / noise**2
        elif number:
            sampled[noise, rate] += number
    if not sampled:
        return _gaussian_epsilon(math.sqrt(full), delta)
    history = [(noise, rate, number) for (noise, rate), number in sorted(sampled.items())]
    if full:
        history.append((1.0 / math.sqrt(full), 1.0, 1))
    return _convolved(history, delta)


def noise_for(epsilon: float, delta: float, releases: int = 1) -> float:
    """The least noise multiplier z with which ``releases`` Gaussian releases spend ε at δ.

    Args:
        epsilon: Above 0.
        delta: In (0, 1).
        releases: Releases of the same unit's data, without sampling.

    Raises:
        PrivacyError: A value out of range.
    """
    check_delta(delta)
    if not 0 < epsilon <= MAX_EPSILON:
        raise PrivacyError(
            f"epsilon {epsilon}, expected above 0 and at most {MAX_EPSILON:g}",
            hint="4 is a usual choice; smaller is more private",
        )
    if isinstance(releases, bool) or releases < 1:
        raise PrivacyError(f"releases {releases}, expected 1 or more", hint="1 for one upload")
    low, high = 0.0, 1.0
    while _gaussian_delta(high, epsilon) < delta:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_delta(middle, epsilon) <= delta else (low, middle)
    return math.sqrt(releases) / low  # the side that spends less


def check_delta(delta: float) -> None:
    """Refuse a δ outside (0, 1).

    Raises:
        PrivacyError: It is.
    """
    if not 0 < delta < 1:
        raise PrivacyError(
            f"delta {delta}, expected between 0 and 1", hint="below one over the number of samples"
        )


def _check_step(noise: float, rate: float, number: int) -> None:
    if not (noise > 0 and math.isfinite(noise) and 0 < rate <= 1 and number >= 0):
        raise PrivacyError(
            f"step with noise {noise}, sampling rate {rate}, number {number}",
            hint="expected noise above 0, a rate in (0, 1] and a number of 0 or more",
        )


def _gaussian_delta(mu: float, epsilon: float) -> float:
    """δ(ε) of a Gaussian of sensitivity μ and noise 1, by complementary error functions."""
    if mu == 0.0:
        return 0.0
    near = 0.5 * math.erfc((epsilon / mu - mu / 2) / math.sqrt(2))
    far_log = epsilon + _log_half_erfc((epsilon / mu + mu / 2) / math.sqrt(2))
    return max(near - math.exp(min(far_log, 700.0)), 0.0)


def _log_half_erfc(x: float) -> float:
    """log(erfc(x) / 2), without underflow."""
    if x < 25:
        return math.log(0.5 * math.erfc(x))
    # Asymptotic, relative error below 1/(2x²)²: a tail of 10⁻²⁷⁰ that no δ notices
    return -x * x - math.log(2 * x * math.sqrt(math.pi)) - 1 / (2 * x * x)


def _gaussian_epsilon(mu: float, delta: float) -> float:
    if _gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while _gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
        if high > MAX_EPSILON:
            raise PrivacyError(
                f"epsilon above {MAX_EPSILON:g}: there is next to no noise",
                hint="a multiplier of 0.5 spends about 10",
            )
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_delta(mu, middle) > delta else (low, middle)
    return high


def _convolved(history: list[Step], delta: float) -> float:
    try:
        from opacus.accountants import PRVAccountant
    except ImportError as error:
        raise MissingExtra(
            f"accounting for sampled steps needs Opacus: {error}",
            hint="pip install 'fedvtc-edge[train]'",
        ) from None
    accountant = PRVAccountant()
    accountant.history = history
    return float(accountant.get_epsilon(delta))
