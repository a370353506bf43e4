"""Accountant: ε that Gaussian noise spends, and noise that a budget needs.

Gaussian releases without sampling compose exactly (Balle and Wang 2018; Dong, Roth and
Su 2019): k releases with multipliers z_i are one with 1/z² = Σ 1/z_i². With sampling,
Opacus' PRV accountant gives an upper bound by numerical convolution, and its RDP
accountant one where the convolution cannot be done. There is no Gaussian-DP
*approximation* of sampled steps here: it is not an upper bound.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from fedvtc_edge.errors import MissingExtra, PrivacyError

ComposedStep = tuple[float, float, int]
"""Noise multiplier z, sampling rate q, number of steps."""

MAX_EPSILON = 1000.0
MIN_EPSILON = 1e-6
"""Least ε that noise is calibrated for; below it, nothing but noise would be released."""

MIN_DELTA = 1e-300
"""Least δ: below it float64 has no tails left to compare."""

_ROUNDING = 1e-11
"""More than float64 can be off in the tail of a Gaussian, relative; added, never taken away."""

_LARGEST_MESH = 2**23
"""Points of a convolution at most: 64 MB an array."""

_LEAST_SAMPLED_DELTA = 1e-10
"""Least δ for a convolution: rounding in its Fourier transform hides smaller tails."""

_SAMPLED_ERROR = 0.01
"""What PRV may add to the true ε."""

_ORDERS = [*range(2, 64), *range(64, 512, 16)]
"""Rényi orders: whole ones, whose sums have no alternating signs."""


def epsilon_spent(steps: Iterable[ComposedStep], delta: float) -> float:
    """ε at δ of a sequence of Gaussian mechanisms of sensitivity 1.

    Guarantee: for neighbours that differ in one unit, added or removed; a step
    (z, q, n) is n times: each unit sampled with probability q by itself, noise z.
    Order does not matter.

    Args:
        steps: Noise multipliers z > 0, sampling rates q in (0, 1], numbers n ≥ 0.
        delta: From 1e-300, below 1.

    Returns:
        ε: exact for q = 1, else an upper bound, larger by about 0.01.

    Raises:
        PrivacyError: A value out of range, or an ε too large to be a claim.
    """
    check_delta(delta)
    full, sampled = 0.0, Counter[tuple[float, float]]()
    for noise, rate, number in steps:
        _check_step(noise, rate, number)
        if rate == 1.0:
            full += number / noise / noise
        elif number:
            sampled[noise, rate] += number
    if not sampled:
        return _gaussian_epsilon(math.sqrt(full), delta)
    history = [(noise, rate, number) for (noise, rate), number in sorted(sampled.items())]
    if full:
        history.append((1.0 / math.sqrt(full), 1.0, 1))
    return _sampled_epsilon(history, delta)


def noise_for(epsilon: float, delta: float, releases: int = 1) -> float:
    """The least noise multiplier z with which ``releases`` Gaussian releases spend ε at δ.

    Args:
        epsilon: From 1e-6 to 1000.
        delta: From 1e-300, below 1.
        releases: Releases of the same unit's data, without sampling.

    Raises:
        PrivacyError: A value out of range.
    """
    check_delta(delta)
    if not MIN_EPSILON <= epsilon <= MAX_EPSILON:
        raise PrivacyError(
            f"epsilon {epsilon}, expected {MIN_EPSILON:g} to {MAX_EPSILON:g}",
            hint="4 is a usual choice; smaller is more private",
        )
    if not _is_whole(releases) or releases < 1:
        raise PrivacyError(f"releases {releases}, expected 1 or more", hint="1 for one upload")
    low, high = 0.0, 1.0
    while _gaussian_delta(high, epsilon) < delta:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_delta(middle, epsilon) <= delta else (low, middle)
    return math.sqrt(releases) / low  # the side that spends less


def check_delta(delta: float) -> None:
    """Refuse a δ outside (0, 1), or too small to compute with.

    Raises:
        PrivacyError: It is.
    """
    if not MIN_DELTA <= delta < 1:
        raise PrivacyError(
            f"delta {delta}, expected {MIN_DELTA:g} to below 1",
            hint="below one over the number of samples",
        )


def _is_whole(number: object) -> bool:
    """Of a size that a float can hold, too."""
    return isinstance(number, int) and not isinstance(number, bool) and number < 2**63


def _check_step(noise: float, rate: float, number: int) -> None:
    whole = _is_whole(number) and number >= 0
    if not (noise > 0 and math.isfinite(noise) and 0 < rate <= 1 and whole):
        raise PrivacyError(
            f"step with noise {noise}, sampling rate {rate}, number {number}",
            hint="expected noise above 0, a rate in (0, 1] and a whole number of 0 or more",
        )


def _gaussian_delta(mu: float, epsilon: float) -> float:
    """δ(ε) of a Gaussian of sensitivity μ and noise 1; never less than the true one."""
    if mu == 0.0:
        return 0.0
    near = 0.5 * math.erfc((epsilon / mu - mu / 2) / math.sqrt(2))
    far_log = epsilon + _log_half_erfc((epsilon / mu + mu / 2) / math.sqrt(2))
    return max(near - math.exp(min(far_log, 700.0)), 0.0) + _ROUNDING * near


def _log_half_erfc(x: float) -> float:
    """log(erfc(x) / 2), without underflow."""
    if x < 25:
        return math.log(0.5 * math.erfc(x))
    u = 1 / (2 * x * x)  # asymptotic: relative error below 945 u⁵ = 3·10⁻¹³
    series = math.log1p(-u * (1 - 3 * u * (1 - 5 * u * (1 - 7 * u))))
    return -x * x - math.log(2 * x * math.sqrt(math.pi)) + series


def _gaussian_epsilon(mu: float, delta: float) -> float:
    if _gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    if _gaussian_delta(mu, MAX_EPSILON) > delta:
        raise _no_claim()
    low, high = 0.0, MAX_EPSILON
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_delta(mu, middle) > delta else (low, middle)
    return high


def _no_claim() -> PrivacyError:
    return PrivacyError(
        f"no epsilon up to {MAX_EPSILON:g} can be shown: there is next to no noise",
        hint="a multiplier of 0.5 spends about 10",
    )


def _sampled_epsilon(history: list[ComposedStep], delta: float) -> float:
    """The least of the upper bounds that can be computed."""
    try:
        from opacus.accountants import PRVAccountant, RDPAccountant
    except ImportError as error:
        raise MissingExtra(
            f"accounting for sampled steps needs Opacus: {error}",
            hint="pip install 'fedvtc-edge[train]'",
        ) from None
    # Every unit in every step is what sampling can at worst amount to.
    full, bounds = sum(number / noise / noise for noise, _, number in history), [math.inf]
    with contextlib.suppress(PrivacyError):
        bounds.append(_gaussian_epsilon(math.sqrt(full), delta))
    # Both warn of orders and overflows in tails that do not decide; what decides is checked.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        bounds.append(_bound(RDPAccountant, history, delta, alphas=_ORDERS))
        reach = _bound(RDPAccountant, history, delta / 4000, alphas=_ORDERS)
        number = sum(number for _, _, number in history)
        mesh = 2 * (reach + 3) * math.sqrt(number * math.log(12e3 / delta) / 2) / _SAMPLED_ERROR
        fits = mesh <= _LARGEST_MESH and delta >= _LEAST_SAMPLED_DELTA
        if fits and min(bounds) > _SAMPLED_ERROR:
            bounds.append(_bound(PRVAccountant, history, delta, eps_error=_SAMPLED_ERROR))
    if min(bounds) > MAX_EPSILON:
        raise _no_claim()
    return max(min(bounds), 0.0)


def _bound(
    accountant: type[Any], history: list[ComposedStep], delta: float, **options: Any
) -> float:
    """ε by one of Opacus' accountants; infinite where it cannot tell."""
    made = accountant()
    made.history = history
    try:
        epsilon = float(made.get_epsilon(delta, **options))
    except (ArithmeticError, ValueError, RuntimeError, IndexError):
        return math.inf
    return epsilon if epsilon == epsilon else math.inf
