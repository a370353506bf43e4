"""Rows in float16 with an exponent each: eleven digits, whatever the size of the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.wire import WireError
from fedvtc_edge.wire.uploads import LEAST, MOST, pack, unpack

sizes = st.floats(-(2.0**99), 2.0**99) | st.floats(-1, 1) | st.just(0.0)


def rows(*values: float) -> np.ndarray:
    return np.array([values], np.float64)


@given(st.lists(st.lists(sizes, min_size=3, max_size=3), max_size=4))
def test_eleven_binary_digits_of_the_largest_number_of_each_row(values: list[list[float]]) -> None:
    given = np.array(values, np.float64).reshape(-1, 3)
    packed = pack(given)
    got = unpack(packed)
    largest = np.abs(given).max(1, initial=0)
    # Half a unit in the last place of each number, or of the row's smallest step.
    allowed = np.maximum(np.abs(given) * 2.0**-11, (largest * 2.0**-38)[:, None]) + 2.0**-139
    assert (np.abs(got - given) <= allowed).all()
    assert pack(got).tobytes() == packed.tobytes()


def test_the_largest_number_uses_the_upper_end_of_float16() -> None:
    assert pack(rows(1.0, -0.5)).tolist() == [[-14, 2**14, -(2**13)]]
    assert pack(rows(0.0, -0.0)).tolist() == [[-15, 0, 0]]
    assert not np.signbit(pack(rows(0.0, -0.0))[0, 1:]).any()
    assert pack(rows(-1e-30, 1.0)).tolist()[0][1] == 0
    assert pack(np.zeros((0, 2))).shape == (0, 3)


def test_rounding_up_to_the_next_power_moves_the_exponent() -> None:
    assert pack(rows(2 - 2.0**-20)).tolist() == pack(rows(2.0)).tolist() == [[-13, 2**14]]


def test_what_is_too_large_is_refused_and_what_is_too_small_is_zero() -> None:
    assert unpack(pack(rows(2.0**100 - 2.0**89))) == 2.0**100 - 2.0**89
    for value in (2.0**100, 2.0**101, 1e300, np.inf, -np.inf, np.nan):
        with pytest.raises(WireError, match=r"finite|exponent"):
            unpack(pack(rows(value, 1.0)))
    assert unpack(pack(rows(2.0**-139))) == 2.0**-139
    assert pack(rows(2.0**-141)).tolist() == [[-15, 0]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([0, 2**13], "scaled"),
        ([0, 2**15], "scaled"),
        ([0, 2**14, -0.0], "scaled"),
        ([0, 0], "scaled"),
        ([0.5, 2**14], "exponent"),
        ([MOST + 1, 2**14], "exponent"),
        ([LEAST - 1, 2**14], "exponent"),
        ([np.nan, 2**14], "finite"),
        ([0, np.inf], "finite"),
    ],
)
def test_every_other_way_to_write_a_row_is_refused(row: list[float], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        unpack(np.array([row], np.float16))
    assert unpack(np.array([[0, 2**14]], np.float16)) == 2**14


def test_every_flipped_bit_is_refused_or_another_number() -> None:
    packed = pack(np.array([[1.0, -2.0, 0.0, 1e-3], [0, 0, 0, 0], [1e20, 3e20, -1e9, 5e19]]))
    honest = unpack(packed)
    for place in range(packed.nbytes):
        for bit in range(8):
            data = bytearray(packed.tobytes())
            data[place] ^= 1 << bit
            try:
                got = unpack(np.frombuffer(data, np.float16).reshape(packed.shape))
            except WireError:
                continue
            assert not np.array_equal(got, honest)
