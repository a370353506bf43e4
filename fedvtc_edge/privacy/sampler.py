"""The exact discrete Gaussian (Canonne, Kamath and Steinke 2020), from the system's entropy.

Floating-point noise betrays its input in its low bits; integers drawn by exact
rational arithmetic do not. Nothing here rounds: every probability is a ratio of
integers, compared with random bits until the comparison is decided.

Where secure aggregation hides all but the sum, nobody sees one client's release, so that
the noise may be shared among those who are honest and survive: the sum carries it all.
See ``docs/masking.md``.
"""

from __future__ import annotations

import math
import os
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.errors import PrivacyError

MAX_SIGMA = 2.0**50
"""Beyond it a draw could leave int64; nothing private needs a grid so fine."""

GRID = 2**20
"""Steps of the integer grid per unit of the clip bound's space."""

MARGIN = 1.0 + 2.0**-14
"""Noise over what the accountant asks for. It accounts for continuous noise, and discrete
noise of at least LEAST_SIGMA in up to 2^18 numbers differs from that, rounded, by less."""

LEAST_SIGMA, LARGEST_SIGMA = 2.0**12, 2.0**44
"""Scales of the noise in grid steps under which the claim holds and the sums fit the wire."""

_STEP = 2**20
"""Shares are rounded up to multiples of 1 / 2^20 of a grid step."""

_WORD = 8
_POOL = 8192


class _Entropy:
    """64-bit words of the operating system's generator, fetched many at a time."""

    def __init__(self) -> None:
        self._pool, self._next = b"", 0

    def word(self) -> int:
        if self._next >= len(self._pool):
            self._pool, self._next = os.urandom(_POOL), 0
        begin = self._next
        self._next = begin + _WORD
        return int.from_bytes(self._pool[begin : self._next], "little")

    def below(self, bound: int) -> int:
        """Uniform on 0…bound-1, by rejection."""
        bits = bound.bit_length()
        words = -(-bits // 64)
        while True:
            value = 0
            for _ in range(words):
                value = value << 64 | self.word()
            value >>= 64 * words - bits
            if value < bound:
                return value

    def chance(self, numerator: int, denominator: int) -> bool:
        """True with probability numerator / denominator, exactly; at most 1."""
        while True:
            threshold, rest = divmod(numerator << 64, denominator)
            word = self.word()
            if word != threshold:
                return word < threshold
            numerator = rest  # all 64 bits agree: the next ones decide

    def chance_exp(self, numerator: int, denominator: int) -> bool:
        """True with probability exp(-numerator / denominator), exactly (Algorithm 1)."""
        while numerator > denominator:
            if not self._chance_exp_unit(1, 1):
                return False
            numerator -= denominator
        return self._chance_exp_unit(numerator, denominator)

    def _chance_exp_unit(self, numerator: int, denominator: int) -> bool:
        draws = 1
        while self.chance(numerator, denominator * draws):
            draws += 1
        return draws % 2 == 1


def discrete_gaussian(sigma: float | Fraction, size: int) -> NDArray[np.int64]:
    """Draws from N_ℤ(0, σ²): P(x) ∝ exp(-x² / 2σ²) on the integers.

    Guarantee: integer values of L2 sensitivity Δ plus these draws are
    Δ²/2σ²-zCDP, as with the continuous Gaussian. The draws cannot be repeated:
    there is no seed.

    Args:
        sigma: Scale, above 0 and at most 2^50; a float is taken for exactly its value.
        size: Number of draws.

    Returns:
        int64 [size].

    Raises:
        PrivacyError: A scale or size out of range.
    """
    if not 0 < sigma <= MAX_SIGMA:  # NaN compares false
        raise PrivacyError(f"sigma {sigma}, expected 0 to 2^50", hint="0 would be no noise")
    if isinstance(size, bool) or size < 0:
        raise PrivacyError(f"size {size}, expected 0 or more", hint="the number of draws")
    square = Fraction(sigma) ** 2
    entropy = _Entropy()
    return np.array([_draw(square, entropy) for _ in range(size)], np.int64)


def _draw(square: Fraction, entropy: _Entropy) -> int:
    """Algorithm 3: a discrete Laplace of scale t = ⌊σ⌋ + 1, thinned to a Gaussian."""
    a, b = square.numerator, square.denominator
    scale = _floor_root(a, b) + 1
    # exp(-(|y| - σ²/t)² / 2σ²) with |y|·b·t - a over b·t, squared, over 2a/b
    denominator = 2 * a * b * scale * scale
    while True:
        value = _laplace(scale, entropy)
        distance = abs(value) * b * scale - a
        if entropy.chance_exp(distance * distance, denominator):
            return value


def _laplace(scale: int, entropy: _Entropy) -> int:
    """Algorithm 2: P(x) ∝ exp(-|x| / scale) on the integers."""
    while True:
        part = entropy.below(scale)
        if not entropy.chance_exp(part, scale):
            continue
        whole = 0
        while entropy.chance_exp(1, 1):
            whole += 1
        size = part + scale * whole
        negative = entropy.word() & 1
        if negative and size == 0:
            continue  # zero has one sign, or it would come twice as often
        return -size if negative else size


def _floor_root(numerator: int, denominator: int) -> int:
    """⌊√(numerator/denominator)⌋ in integers."""
    return math.isqrt(numerator // denominator)


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
        raise PrivacyError(f"{honest} honest clients, expected 1 or more", hint="see min_honest")
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
