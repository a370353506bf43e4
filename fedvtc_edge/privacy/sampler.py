"""The exact discrete Gaussian (Canonne, Kamath and Steinke 2020), from the system's entropy.

Floating-point noise betrays its input in its low bits; integers drawn by exact
rational arithmetic do not. Nothing here rounds: every probability is a ratio of
integers, compared with random bits until the comparison is decided.
"""

from __future__ import annotations

import os
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.errors import PrivacyError

MAX_SIGMA = 2.0**50
"""Beyond it a draw could leave int64; nothing private needs a grid so fine."""

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
    from math import isqrt

    return isqrt(numerator // denominator)


# ---------------------------------------------------------------- section
# The integer grid on which sums are released, and how coarse its noise must be.

GRID = 2**20
"""Steps of the integer grid per unit of the clip bound's space."""

MARGIN = 1.0 + 2.0**-14
"""Noise over what the accountant asks for. It accounts for continuous noise, and discrete
noise of at least LEAST_SIGMA in up to 2^18 numbers differs from that, rounded, by less."""

LEAST_SIGMA, LARGEST_SIGMA = 2.0**12, 2.0**44
"""Scales of the noise in grid steps under which the claim holds and the sums fit the wire."""
