"""Masked sums of statistics: exact on the grid, each message carried like an upload."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.masking import MaskingError
from fedvtc_edge.sealing import overhead
from fedvtc_edge.statistics.class_statistics import ClassStatistics, sum_of
from fedvtc_edge.transport.channel import Plain, Sealed
from fedvtc_edge.transport.keyring import KeyRing
from fedvtc_edge.transport.masked_sum import (
    LARGEST_SUM,
    SCALE_BITS,
    MaskedSums,
    from_vector,
    to_vector,
    vector_bound,
)
from fedvtc_edge.wire.context import Context

RUN = "00112233445566778899aabbccddeeff"
CONTEXT = Context(RUN, 3, "client-00", "features")
IDS = [f"client-{index:02d}" for index in range(4)]


def statistics(seed: int, *, pooled: bool, classes: int = 3, width: int = 5) -> ClassStatistics:
    draw = np.random.default_rng(seed)
    size = int(draw.integers(0, 30))
    z = draw.standard_normal((size, width))
    return ClassStatistics.of(z, draw.integers(0, classes, size), classes=classes, pooled=pooled)


@hypothesis_settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5), pooled=st.booleans())
def test_the_sum_of_vectors_is_the_vector_of_the_sum(seed: int, count: int, pooled: bool) -> None:
    parts = [statistics(seed + index, pooled=pooled) for index in range(count)]
    summed, number = from_vector(np.sum([to_vector(p) for p in parts], axis=0), like=parts[0])
    plain, step = sum_of(parts), 2.0**-SCALE_BITS
    np.testing.assert_array_equal(summed.count, plain.count)
    np.testing.assert_allclose(summed.total, plain.total, rtol=0, atol=count * step)
    np.testing.assert_allclose(summed.square, plain.square, rtol=0, atol=count * step)
    assert summed.pooled == pooled
    assert number.tolist() == np.sum([p.count > 0 for p in parts], axis=0).tolist()


def test_what_does_not_fit_is_refused_and_not_clipped() -> None:
    big = ClassStatistics([1.0], [[LARGEST_SUM * 1.01]], [[1.0]], pooled=False)
    with pytest.raises(MaskingError, match="beyond"):
        to_vector(big)
    fits = ClassStatistics([1.0], [[LARGEST_SUM]], [[1.0]], pooled=False)
    assert to_vector(fits).max() == vector_bound()


@pytest.mark.parametrize("seal", [True, False])
def test_messages_are_carried_counted_and_witnessed(seal: bool) -> None:
    parties = KeyRing(IDS, None)
    heard: list[tuple[int, str, str, int]] = []
    transport = Sealed(parties, RUN, None) if seal else Plain()
    sums = MaskedSums(
        parties, transport, lambda r, sender, kind, data: heard.append((r, sender, kind, len(data)))
    )
    draw = np.random.default_rng(1)
    vectors = {name: draw.integers(-(2**40), 2**40, 50) for name in IDS}
    total = sums.add(vectors, CONTEXT)
    np.testing.assert_array_equal(total.vector, sum(vectors.values()))
    assert total.heard == tuple(IDS)
    kinds = [f"features-mask{letter}" for letter in "abcde"]
    assert [(r, sender, kind) for r, sender, kind, _ in heard] == [
        (3, name, kind) for kind in kinds for name in IDS
    ]
    more = overhead(parties.server.public) if seal else 0
    for name in IDS:
        own = [size for _, sender, _, size in heard if sender == name]
        assert total.traffic[name].up == sum(own) + 5 * more
        assert total.traffic[name].down > 0
    masked = [size for _, _, kind, size in heard if kind.endswith("c")]
    assert min(masked) > 8 * 50, "the masked vector is among them"


def test_no_message_shows_a_vector() -> None:
    parties, seen = KeyRing(IDS, None), []
    sums = MaskedSums(parties, Plain(), lambda *heard: seen.append(heard[3]))
    vectors = {name: np.full(400, 7, np.int64) for name in IDS}
    sums.add(vectors, CONTEXT)
    plain = np.full(8, 7, np.int64).tobytes()
    assert seen
    assert not any(plain in data for data in seen)


def test_a_number_beyond_the_bound_ends_the_sum() -> None:
    sums = MaskedSums(KeyRing(IDS, None), Plain(), lambda *_: None)
    vectors = {name: np.zeros(3, np.int64) for name in IDS}
    vectors[IDS[2]][1] = 11
    with pytest.raises(MaskingError, match="beyond the bound"):
        sums.add(vectors, CONTEXT, bound=10)
