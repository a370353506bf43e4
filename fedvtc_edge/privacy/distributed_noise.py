"""How much noise each client adds where a masked sum hides all but the total.

With secure aggregation nobody sees one client's release, so the noise of those who are
honest and survive may be shared: the sum carries it all. See ``docs/masking.md``.
"""

from __future__ import annotations

import math
from fractions import Fraction

from fedvtc_edge.errors import PrivacyError

from .sampler import LEAST_SIGMA, MAX_SIGMA

_STEP = 2**20
"""Shares are rounded up to multiples of 1 / 2^20 of a grid step."""


def min_honest(clients: int, *, dropouts: int, colluders: int) -> int:
    """Clients whose noise is counted: K - d - c.

    Args:
        clients: Number K of clients that are invited.
        dropouts: Most clients d that may be missing from the sum; with masking ⌊K/3⌋.
        colluders: Clients c that may take their own noise out again, or add none.

    Raises:
        PrivacyError: A number below 0, or nobody is left.
    """
    if min(dropouts, colluders) < 0 or clients - dropouts - colluders < 1:
        raise PrivacyError(
            f"{clients} clients without {dropouts} dropouts and {colluders} colluders",
            hint="at least one client that is honest and survives must be counted on",
        )
    return clients - dropouts - colluders


def share_of(sigma: float | Fraction, honest: int) -> Fraction:
    """The scale of each client's discrete noise: σ/√h, rounded up.

    Guarantee: where each of at least ``honest`` clients, whose vectors are in a masked
    sum, adds discrete Gaussian noise of this scale drawn afresh, the sum carries
    independent noise of scale σ or more against a server that sees only the sum, and
    clients that know only their own noise. *Unit, neighbouring relation, sensitivity*:
    those of the accountant's claim for noise of scale σ on the sum; one example is in
    one client's vector, so that the sum's sensitivity is the single release's. The sum
    of h discrete Gaussians is not a discrete Gaussian, but almost: by Kairouz, Liu and
    Steinke 2021 ("The Distributed Discrete Gaussian Mechanism for Federated Learning
    with Secure Aggregation") the two differ, per number released, by at most τ in
    max divergence either way, and τ is :func:`log_divergence`'s. The least scale that is
    allowed here is 2^12 steps, where τ < 10^-70,000,000: d numbers turn an (ε, δ) claim
    into (ε + 2dτ, e^(dτ) δ), which no float64 tells from (ε, δ).
    *Not covered*: fewer honest survivors than counted on (the masked sum must refuse to
    come out, and its threshold is what ensures it); a client that leaves out its noise
    (it counts as a colluder); each client's own release, which alone is hardly
    private; a server that lies with more than ``docs/masking.md`` allows.

    Args:
        sigma: Scale that the sum must carry, in grid steps; a float is taken for exactly
            its value.
        honest: Number h of honest clients that survive at least; see :func:`min_honest`.

    Returns:
        s with h·s² ≥ σ², a multiple of 2^-20 and less than 2^-20 above the least.

    Raises:
        PrivacyError: Numbers out of range, or a share below 2^12 steps, for which the
            difference above is not claimed to be negligible.
    """
    if isinstance(honest, bool) or honest < 1:
        raise PrivacyError(f"{honest} honest clients, expected 1 or more", hint="see honest_of")
    if not 0 < sigma <= MAX_SIGMA:  # NaN compares false
        raise PrivacyError(f"sigma {sigma}, expected 0 to 2^50", hint="0 would be no noise")
    square = Fraction(sigma) ** 2 / honest * _STEP**2
    # The least whole number of steps whose square is no less: nothing is rounded down.
    steps = math.isqrt(math.ceil(square) - 1) + 1
    share = Fraction(steps, _STEP)
    if share < LEAST_SIGMA:
        raise PrivacyError(
            f"a share of {float(share):g} grid steps, expected {LEAST_SIGMA:g} or more",
            hint="use a finer grid, or share the noise among fewer clients",
        )
    return share


def log_divergence(share: float | Fraction, honest: int) -> float:
    """Natural logarithm of τ = 10 Σ_{k=1}^{h-1} exp(-2π² s² k/(k+1)).

    A bound on the distance of log P(x) and log Q(x), whatever x, between the sum of h discrete
    Gaussians of scale s and the one of scale s·√h (Kairouz, Liu and Steinke 2021). The
    logarithm, since τ itself is below the least float64.

    Args:
        share: Scale s of each, 1/2 or more.
        honest: Number h of them, 1 or more.

    Returns:
        ln τ; minus infinity for h = 1, where there is no difference.

    Raises:
        PrivacyError: Below the range for which the bound is proved.
    """
    if not share >= 0.5 or isinstance(honest, bool) or honest < 1:
        raise PrivacyError(
            f"scale {share} of {honest} clients, expected 1/2 or more of 1 or more",
            hint="the bound is proved for no less",
        )
    largest = 2 * math.pi**2 * float(share) ** 2
    # Relative to the largest term, k = 1, so that nothing under- or overflows.
    rest = sum(math.exp(-largest * (k / (k + 1) - 0.5)) for k in range(1, honest))
    return -math.inf if honest == 1 else math.log(10) + math.log(rest) - largest / 2
