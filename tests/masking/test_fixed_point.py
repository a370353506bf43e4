"""The grid: rounded to nearest, never clipped."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvtc_edge.masking import MaskingError, decode_fixed, encode_fixed, grid_bound


@settings(deadline=None)
@given(st.floats(-100, 100), st.integers(0, 50))
def test_rounding_agrees_with_exact_fractions(value: float, bits: int) -> None:
    encoded = int(encode_fixed([value], scale_bits=bits, bound=100.0)[0])
    assert encoded == round(Fraction(value) * 2**bits)  # ties to even, as in Python
    assert abs(encoded) <= grid_bound(100.0, scale_bits=bits)


@settings(deadline=None)
@given(st.lists(st.integers(-(2**52), 2**52)), st.integers(0, 60))
def test_there_and_back(numbers: list[int], bits: int) -> None:
    real = decode_fixed(np.array(numbers, np.int64), scale_bits=bits)
    bound = max(2.0 ** (52 - bits), 2.0**-bits)
    assert encode_fixed(real, scale_bits=bits, bound=bound).tolist() == numbers


@pytest.mark.parametrize(
    "value", [1.0000001, -1.0000001, math.nan, math.inf, -math.inf, 1e300, np.nextafter(1, 2)]
)
def test_beyond_the_bound_nothing_is_made(value: float) -> None:
    with pytest.raises(MaskingError, match="beyond 1") as refused:
        encode_fixed([0.0, value], scale_bits=20, bound=1.0)
    assert "1 of 2" in str(refused.value)
    assert refused.value.hint


def test_the_bound_itself_fits() -> None:
    assert encode_fixed([[1.0, -1.0]], scale_bits=20, bound=1.0).tolist() == [[2**20, -(2**20)]]


@pytest.mark.parametrize(
    ("bound", "bits"),
    [(1.0, -1), (1.0, 61), (1.0, True), (0.0, 20), (-1.0, 20), (math.nan, 20), (math.inf, 20)],
)
def test_impossible_grids(bound: float, bits: int) -> None:
    with pytest.raises(MaskingError):
        grid_bound(bound, scale_bits=bits)
    with pytest.raises(MaskingError):
        encode_fixed([0.0], scale_bits=bits, bound=bound)


def test_a_grid_too_fine_for_the_bound() -> None:
    assert grid_bound(4.0, scale_bits=60) == 2**62
    with pytest.raises(MaskingError, match="2\\^62"):
        grid_bound(4.1, scale_bits=60)
