"""Shamir's secret sharing (1979) of 16-byte secrets, over the integers modulo 2^130 - 5.

Written here because the libraries are too slow for a hundred clients
(docs/decisions/0015): each of them interpolates anew for every secret, and for a
hundred secrets shared among the same clients the weights are the same. Nothing in it
is a cipher: it is the evaluation of a polynomial, and its security does not rest on
anything that is hard to compute.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import lru_cache
from operator import mul

PRIME = 2**130 - 5
"""Above 2^128, so that every secret is an element; Poly1305's, known to be prime."""

SECRET_BYTES, SHARE_BYTES = 16, 17


def split(secret: bytes, points: tuple[int, ...], threshold: int) -> list[int]:
    """One share per point; any ``threshold`` of them give the secret, fewer tell nothing.

    Guarantee: for every set of threshold - 1 points the shares are uniform and
    independent of the secret: the polynomial's other coefficients are drawn afresh and
    uniformly from the operating system's entropy.

    Args:
        secret: 16 bytes.
        points: Distinct, 1 to 65,535; never 0, where the polynomial is the secret.
        threshold: Number of shares that rebuild it, at least 1.

    Returns:
        Shares in the order of the points, each below the prime.
    """
    # Not Horner's rule: a sum of products runs in C, and one reduction at its end is enough.
    coefficients = [
        int.from_bytes(secret, "big"),
        *(secrets.randbelow(PRIME) for _ in range(threshold - 1)),
    ]
    return [sum(map(mul, coefficients, _powers(point, threshold))) % PRIME for point in points]


def combine(shares: Mapping[int, int]) -> int:
    """The polynomial of degree below ``len(shares)`` through all of them, at 0.

    Args:
        shares: Share by point; exactly as many as the threshold.

    Returns:
        0 to the prime - 1; a number of 2^128 or more was no secret.
    """
    value: int = sum(map(mul, shares.values(), _weights(tuple(shares)))) % PRIME
    return value


@lru_cache(maxsize=2048)  # points and powers are public
def _powers(point: int, count: int) -> tuple[int, ...]:
    powers = [1]
    for _ in range(count - 1):
        powers.append(powers[-1] * point % PRIME)
    return tuple(powers)


@lru_cache(maxsize=256)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights for the value at 0: Π x_m / (x_m - x_j) over m ≠ j."""
    weights = []
    for here in points:
        above = below = 1
        for other in points:
            if other != here:
                above = above * other % PRIME
                below = below * (other - here) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
