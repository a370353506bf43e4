"""Releases and decoders: every integer and every float32 comes back, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.wire import (
    LARGEST_RELEASE,
    WireError,
    decode,
    decode_release,
    decode_weights,
    encode_release,
    encode_weights,
)
from fedvtc_edge.wire.context import Context

MINE = Context("00112233445566778899aabbccddeeff", 3, "client-07", "decoder")
OTHER = Context("00112233445566778899aabbccddeeff", 3, "client-08", "decoder")
LIKE = {"b.weight": np.zeros((2, 1, 3)), "a": np.zeros(()), "c": np.zeros((0, 4))}


@hypothesis_settings(deadline=None, max_examples=60)
@given(values=st.lists(st.integers(-LARGEST_RELEASE, LARGEST_RELEASE), max_size=40))
def test_a_release_keeps_every_integer(values: list[int]) -> None:
    data = encode_release(np.array(values, np.int64), context=MINE)
    got = decode_release(data, size=len(values), context=MINE)
    assert got.dtype == np.int64
    assert got.tolist() == values
    assert encode_release(got, context=MINE) == data


def test_a_release_is_as_long_as_its_size_alone() -> None:
    made = [np.zeros(50, np.int64), np.full(50, LARGEST_RELEASE), np.arange(100)[::2] - 7]
    assert {len(encode_release(release)) for release in made} == {len(encode_release(made[0]))}
    assert len(encode_release(made[0])) < 8 * 50 + 128 + 120


def test_every_truncated_release_is_refused() -> None:
    data = encode_release(np.arange(5))
    for length in range(len(data)):
        with pytest.raises(WireError):
            decode_release(data[:length], size=5)
    with pytest.raises(WireError):
        decode_release(data + bytes(8), size=5)


@pytest.mark.parametrize("value", [LARGEST_RELEASE + 1, -LARGEST_RELEASE - 1, -(2**63)])
def test_a_number_that_no_sum_can_have_is_refused(value: int) -> None:
    with pytest.raises(WireError, match="a value beyond") as refused:
        decode_release(encode_release(np.full(5, value)), size=5)
    assert refused.value.hint


@pytest.mark.parametrize("size", [0, 4, 6, 500])
def test_a_release_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(WireError, match=r"\d+ bytes, expected \d+"):
        decode_release(encode_release(np.zeros(size, np.int64)), size=5)


def test_ten_thousand_hostile_releases_add_up() -> None:
    """The most that a federation may have; a sum that wraps would be anything."""
    assert 10_000 * LARGEST_RELEASE < 2**63


def weights() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(2)
    made = {name: draw.standard_normal(value.shape) for name, value in LIKE.items()}
    return {name: np.asarray(value, np.float32) for name, value in made.items()}


def test_weights_come_back_writable_and_in_the_agreed_order() -> None:
    sent = weights()
    got = decode_weights(encode_weights(sent, context=MINE), like=LIKE, context=MINE)
    assert list(got) == list(LIKE)
    for name, value in got.items():
        assert value.flags.writeable
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, sent[name])


@pytest.mark.parametrize(
    "changes",
    [
        {"a": np.float32(np.nan)},
        {"b.weight": np.full((2, 1, 3), np.inf, np.float32)},
        {"b.weight": np.zeros((2, 3, 1), np.float32)},
        {"d": np.zeros(2, np.float32)},
    ],
    ids=["nan", "inf", "shape", "more"],
)
def test_other_weights_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        decode_weights(encode_weights(weights() | changes), like=LIKE)
    fewer = {name: value for name, value in weights().items() if name != "a"}
    with pytest.raises(WireError):
        decode_weights(encode_weights(fewer), like=LIKE)


def test_no_payload_is_taken_for_another() -> None:
    release = encode_release(np.zeros(4, np.int64))
    layers = encode_weights({"release": np.zeros(8)})
    assert len(release) == len(layers) == 128 + 72 + 32
    with pytest.raises(WireError, match="payload 3, expected 2"):
        decode_release(layers, size=4)
    with pytest.raises(WireError, match="payload 2, expected 3"):
        decode_weights(release, like={"release": np.zeros(8)})
    for data in (release, layers):
        with pytest.raises(WireError):
            decode(data, classes=1, width=1)


def read(data: bytes, context: Context | None) -> bytes:
    """Decode and encode again."""
    if data[8] == 2:
        return encode_release(decode_release(data, size=5, context=context), context=context)
    return encode_weights(decode_weights(data, like=LIKE, context=context), context=context)


@pytest.mark.parametrize(
    "data",
    [encode_release(np.arange(5), context=MINE), encode_weights(weights(), context=MINE)],
    ids=["release", "weights"],
)
def test_every_flipped_bit_is_refused_or_another_value(data: bytes) -> None:
    numbers = len(data) - (40 if data[8] == 2 else 28)
    assert read(data, MINE) == data
    with pytest.raises(WireError, match="belongs to"):
        read(data, OTHER)
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            try:
                # What is taken keeps the flip, so the number it stands in is another one.
                assert read(bytes(flipped), MINE) == flipped
                assert place >= numbers
            except WireError:
                pass
