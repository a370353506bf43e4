"""Secret sharing beside its slow and obvious twin: Lagrange's polynomial, written out."""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedvtc_edge.masking import keys
from fedvtc_edge.masking.keys import PRIME, combine, split


def twin(shares: dict[int, int], at: int = 0) -> int:
    """The value at ``at`` of the polynomial through the shares."""
    total = 0
    for x_j, y_j in shares.items():
        term = y_j
        for x_m in shares:
            if x_m != x_j:
                # By Fermat's little theorem, a^(p-2) is 1/a.
                term = term * (at - x_m) * pow(x_j - x_m, PRIME - 2, PRIME) % PRIME
        total += term
    return total % PRIME


def is_prime(n: int) -> bool:
    """Miller and Rabin, forty bases."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    draw = random.Random(0)
    for _ in range(40):
        x = pow(draw.randrange(2, n - 1), odd, n)
        if x in (1, n - 1):
            continue
        if not any((x := x * x % n) == n - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_modulus_is_prime_and_holds_every_secret() -> None:
    assert is_prime(PRIME)
    assert 2**128 <= PRIME < 2 ** (8 * keys.SHARE_BYTES)


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=16, max_size=16), st.integers(1, 12), st.integers(0, 6), st.randoms())
def test_any_t_shares_give_the_secret(
    secret: bytes, threshold: int, more: int, draw: random.Random
) -> None:
    points = tuple(draw.sample(range(1, 1001), threshold + more))
    shares = dict(zip(points, split(secret, points, threshold), strict=True))
    chosen = dict(draw.sample(sorted(shares.items()), threshold))
    assert combine(chosen) == twin(chosen) == int.from_bytes(secret, "big")
    # All others lie on the same polynomial.
    for point in points:
        assert twin(chosen, point) == shares[point]


def test_every_subset_of_five() -> None:
    secret = os.urandom(16)
    shares = dict(zip(range(1, 6), split(secret, (1, 2, 3, 4, 5), 3), strict=True))
    for points in itertools.combinations(shares, 3):
        assert combine({p: shares[p] for p in points}) == int.from_bytes(secret, "big")
    for points in itertools.combinations(shares, 2):
        assert combine({p: shares[p] for p in points}) != int.from_bytes(secret, "big")


def test_a_golden_polynomial() -> None:
    """7 + 5x + 3x²."""
    assert combine({1: 15, 2: 29, 3: 49}) == 7
    assert combine({9: 295, 1000: 3_005_007, 2: 29}) == 7


@pytest.mark.parametrize("secret", [bytes(16), b"\xff" * 16])
def test_shares_short_of_the_threshold_are_uniform(secret: bytes) -> None:
    """Of two shares out of three needed, and of their difference: χ² over sixteen ranges."""
    draws = 4000
    pairs = [split(secret, (1, 2, 3), 3)[:2] for _ in range(draws)]
    for values in (
        [a for a, _ in pairs],
        [b for _, b in pairs],
        [(a - b) % PRIME for a, b in pairs],
    ):
        seen = Counter(value * 16 // PRIME for value in values)
        square = sum((seen[i] - draws / 16) ** 2 / (draws / 16) for i in range(16))
        assert square < stats.chi2.isf(1e-8, 15)


def test_every_coefficient_is_fresh() -> None:
    made = {tuple(split(bytes(16), (1, 2, 3), 3)) for _ in range(50)}
    assert len(made) == 50
