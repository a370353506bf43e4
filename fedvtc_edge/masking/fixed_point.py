"""Real numbers on a public grid of integers; what does not fit is refused, never clipped."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .keys import Vector
from .plan import MaskingError, MaskingPlan

_FINEST = 60
_LARGEST = 2.0**62


def grid_bound(bound: float, *, scale_bits: int) -> int:
    """The bound of a plan for values of magnitude up to ``bound``, in steps of the grid.

    Args:
        bound: Largest magnitude of one client's value; public.
        scale_bits: The grid has 2^scale_bits steps per unit; 0 to 60.

    Raises:
        MaskingError: A grid or a bound out of range.
    """
    if type(scale_bits) is not int or not 0 <= scale_bits <= _FINEST:
        raise MaskingError(
            f"scale_bits {scale_bits!r:.80}, expected 0 to {_FINEST}", hint="20 is a fine grid"
        )
    steps = float(np.rint(float(bound) * 2.0**scale_bits))  # a power of two: exact but for rint
    if not 1 <= steps <= _LARGEST:  # a NaN compares false
        raise MaskingError(
            f"a bound of {bound:g} is {steps:g} steps of the grid, expected 1 to 2^62",
            hint="choose fewer scale_bits or another bound",
        )
    return int(steps)


def encode_fixed(values: ArrayLike, *, scale_bits: int, bound: float) -> NDArray[np.int64]:
    """Values rounded to the nearest step of the grid, ties to even.

    Args:
        values: Real numbers of any shape.
        scale_bits: The grid has 2^scale_bits steps per unit; 0 to 60.
        bound: Largest magnitude allowed, in units of the values; public.

    Returns:
        int64 of the same shape, each at most ``grid_bound(bound, …)`` in magnitude.

    Raises:
        MaskingError: A value beyond the bound or not finite. Clipping it silently would
            make the sum wrong without anybody's knowing.
    """
    grid_bound(bound, scale_bits=scale_bits)
    real = np.asarray(values, np.float64)
    beyond = ~(np.abs(real) <= bound)  # a NaN compares false
    if beyond.any():
        raise MaskingError(
            f"{int(beyond.sum())} of {real.size} values are not finite or beyond {bound:g}",
            hint="raise the public bound for everybody, or bound the values before",
        )
    return np.rint(real * 2.0**scale_bits).astype(np.int64)


def decode_fixed(total: NDArray[np.int64], *, scale_bits: int) -> NDArray[np.float64]:
    """Back from the grid: exact for sums below 2^53 steps, else rounded to float64.

    Args:
        total: int64 of any shape, in steps of the grid.

    Raises:
        MaskingError: A grid out of range.
    """
    grid_bound(1.0, scale_bits=scale_bits)
    real: NDArray[np.float64] = np.asarray(total, np.int64).astype(np.float64) / 2.0**scale_bits
    return real


def reduced(plan: MaskingPlan, vector: NDArray[np.int64]) -> Vector:
    """A client's vector modulo the plan's modulus; refused where its sum could wrap around.

    Args:
        plan: Public.
        vector: Integers [size], each at most ``plan.bound`` in magnitude.

    Raises:
        MaskingError: Another type or shape, or a number beyond the bound.
    """
    given = np.asarray(vector)
    if given.dtype != np.int64 or given.shape != (plan.size,):
        raise MaskingError(
            f"{given.dtype} {given.shape}, expected int64 ({plan.size},)",
            hint="encode_fixed makes integers of real numbers",
        )
    # Not through abs, which leaves the least of all int64 negative.
    beyond = (given > plan.bound) | (given < -plan.bound)
    if beyond.any():
        raise MaskingError(
            f"{int(beyond.sum())} of {plan.size} numbers are beyond the bound {plan.bound}",
            hint="raise the public bound for everybody; nothing is clipped",
        )
    return given.astype(plan.dtype)  # two's complement: modulo 2^32 or 2^64
