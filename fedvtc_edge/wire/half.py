"""Rows of numbers as float16 with one power of two per row.

Sums over samples leave float16's range (6e-8 to 65504) at once, and a row's largest
number says nothing of another row's. So each row is scaled until its largest number
uses float16's upper end, and the exponent travels as the row's first number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .framing import HINT, WireError

Array = NDArray[np.float64]
Half = NDArray[np.float16]

LEAST, MOST = -115, 85
"""Exponents: rows whose largest number is below 2⁻¹⁰⁰ lose digits, above 2¹⁰⁰ are refused."""

_BITS = 15
"""A row's largest stored number lies in [2¹⁴, 2¹⁵): half of float16's range, so that
rounding up never overflows."""

_ZERO = -_BITS
"""Exponent of a row of zeros."""


def pack(rows: Array) -> Half:
    """[R, p] → [R, 1 + p]: each row's exponent, then its numbers divided by 2^exponent.

    The only form of its numbers: :func:`unpack` refuses every other.
    """
    with np.errstate(all="ignore"):  # what is not finite is refused where it is read
        exponent = _exponent(rows)
        stored = _scaled(rows, exponent)
        exponent += np.abs(stored).max(1, initial=0) >= 2**_BITS  # by rounding up
        stored = _scaled(rows, exponent)
        exponent[~stored.any(1)] = _ZERO
        return np.concatenate([exponent[:, None].astype(np.float16), stored], 1)


def unpack(packed: Half) -> Array:
    """What :func:`pack` was given, to 11 binary digits of each row's numbers.

    Raises:
        WireError: Not finite, or not as ``pack`` would have written it.
    """
    if not np.isfinite(packed).all():
        raise WireError("a value is not finite", hint=HINT)
    exponent = packed[:, 0].astype(np.float64)
    if ((exponent < LEAST) | (exponent > MOST) | (exponent % 1 != 0)).any():
        raise WireError(f"an exponent is not whole or not in {LEAST}…{MOST}", hint=HINT)
    rows = np.ldexp(packed[:, 1:].astype(np.float64), exponent.astype(np.int32)[:, None])
    if pack(rows).tobytes() != packed.tobytes():
        raise WireError("float16 rows that are not scaled as agreed", hint=HINT)
    return rows


def _exponent(rows: Array) -> NDArray[np.int32]:
    largest = np.abs(rows).max(1, initial=0)
    exponent: NDArray[np.int32] = np.clip(np.frexp(largest)[1] - _BITS, LEAST, MOST)
    return exponent


def _scaled(rows: Array, exponent: NDArray[np.int32]) -> Half:
    # + 0: a zero has no sign, or there were two ways to write it.
    half: Half = np.ldexp(rows, -exponent[:, None]).astype(np.float16) + np.float16(0)
    return half
