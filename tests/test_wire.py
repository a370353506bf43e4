"""Bytes: what goes out comes back, and nothing impossible comes in."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fedvtc_edge.statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.wire import (
    WireError,
    decode,
    decode_release,
    encode,
    encode_release,
    publish,
    published,
)

CLASSES, WIDTH = 3, 4


def example(*, pooled: bool, seed: int = 0, size: int = 7, scale: float = 1.0) -> ClassStatistics:
    """Class 2 is absent."""
    rng = np.random.default_rng(seed)
    z, y = rng.standard_normal((size, WIDTH)) * scale, np.arange(size) % 2
    return ClassStatistics.of(z, y, classes=CLASSES, pooled=pooled)


def upload(**changes: Any) -> bytes:
    """A diagonal upload with some arrays replaced, left out (None) or added."""
    statistics = example(pooled=False)
    arrays = {"count": statistics.count, "total": statistics.total, "square": statistics.square}
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    arrays |= changes
    return save({name: np.asarray(v) for name, v in arrays.items() if v is not None})


def raw(dtype: str, item: int, shapes: dict[str, list[int]]) -> bytes:
    """Hand-made safetensors of zeros in any type, even those that NumPy lacks."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + item * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * end


# ---------------------------------------------------------------- round trips


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 5),
    width=st.integers(1, 6),
    size=st.integers(0, 30),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    pooled=st.booleans(),
)
def test_a_round_trip_keeps_float32(
    seed: int, classes: int, width: int, size: int, scale: float, pooled: bool
) -> None:
    rng = np.random.default_rng(seed)
    z = scale * (rng.standard_normal((size, width)) + rng.standard_normal(width))
    sent = ClassStatistics.of(z, rng.integers(0, classes, size), classes=classes, pooled=pooled)
    data = encode(sent)
    for agreed in (pooled, None):
        got = decode(data, classes=classes, width=width, pooled=agreed)
        assert got.pooled == pooled
        for name in ("count", "total", "square"):
            exact = getattr(sent, name).astype(np.float32)
            np.testing.assert_array_equal(getattr(got, name), exact.astype(np.float64))
        assert encode(got) == data
    with pytest.raises(WireError):
        decode(data, classes=classes, width=width, pooled=not pooled)


@pytest.mark.parametrize("pooled", [False, True])
def test_published_bytes_keep_float32(pooled: bool) -> None:
    world = GlobalStatistics.from_sum(example(pooled=pooled), floor=0.1)
    again = published(publish(world))
    assert (again.covariance is None) == (not pooled)
    for name in ("count", "mean", "std", *(["covariance"] if pooled else [])):
        expected = getattr(world, name).astype(np.float32).astype(np.float64)
        np.testing.assert_array_equal(getattr(again, name), expected)
        assert getattr(again, name).dtype == np.float64
    assert publish(again) == publish(world)


@pytest.mark.parametrize(
    ("pooled", "size", "digest"),
    [
        (False, 300, "077cbd76e7cca35f83b26fad0ab33ac7eb92ad0e0ab8f4e673bdce2ddfa4a052"),
        (True, 292, "716343308223f97253d929d17dd45cb180d40a2d50177abc3ff645edc915ac7c"),
    ],
)
def test_golden_upload(pooled: bool, size: int, digest: str) -> None:
    """The byte format: changing it breaks every client in the field."""
    data = encode(golden(pooled=pooled))
    assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)


@pytest.mark.parametrize(
    ("pooled", "size", "digest"),
    [
        (False, 300, "1e47ee7c2dc946db301b19250a39ec48303b9df51165f217980c1b7fc2dc4673"),
        (True, 404, "65b41a20a44f70a12d42b65dc5911a38b0975027d55edd8b05700550695f5526"),
    ],
)
def test_golden_publication(pooled: bool, size: int, digest: str) -> None:
    data = publish(GlobalStatistics.from_sum(golden(pooled=pooled), floor=0.25))
    assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)


def golden(*, pooled: bool) -> ClassStatistics:
    """Whole numbers and exact quotients only, so that no platform rounds differently."""
    z = np.array([[1.0, -2, 3, 0], [3, 2, 1, 4], [0, 8, -8, 16], [2, 2, 2, 2]])
    return ClassStatistics.of(z, [0, 0, 1, 1], classes=CLASSES, pooled=pooled)


@pytest.mark.parametrize("pooled", [False, True])
def test_the_payload_is_as_small_as_promised(pooled: bool) -> None:
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((40, 128)), np.arange(40) % 10
    data = encode(ClassStatistics.of(z, y, classes=10, pooled=pooled))
    payload = 4 * (10 + 10 * 128 + (128 * 129 // 2 if pooled else 10 * 128))
    assert payload < len(data) < payload + 300


# ---------------------------------------------------------------- hostile bytes


def is_sound(statistics: ClassStatistics, *, pooled: bool | None) -> bool:
    return (
        statistics.count.shape == (CLASSES,)
        and statistics.total.shape == (CLASSES, WIDTH)
        and statistics.square.shape == ((WIDTH, WIDTH) if statistics.pooled else (CLASSES, WIDTH))
        and (pooled is None or statistics.pooled == pooled)
        and bool((statistics.count >= 0).all())
        and all(np.isfinite(v).all() for v in (statistics.total, statistics.square))
    )


def try_decode(data: bytes, *, pooled: bool | None) -> bool:
    """Whether the bytes were taken; any error but WireError escapes."""
    try:
        statistics = decode(data, classes=CLASSES, width=WIDTH, pooled=pooled)
    except WireError:
        return False
    assert is_sound(statistics, pooled=pooled)
    # Whatever was believed must also be publishable together with an honest upload.
    honest = example(pooled=bool(statistics.pooled))
    published(publish(GlobalStatistics.from_sum(statistics + statistics + honest)))
    return True


@pytest.mark.parametrize("pooled", [False, True])
def test_every_truncation_is_refused(pooled: bool) -> None:
    data = encode(example(pooled=pooled))
    assert try_decode(data, pooled=pooled)
    for length in range(len(data)):
        assert not try_decode(data[:length], pooled=pooled)
    for tail in (b"\0", b"\0" * 4, data):
        assert not try_decode(data + tail, pooled=pooled)


@pytest.mark.parametrize("pooled", [False, True])
def test_mutations_are_refused_or_harmless(pooled: bool) -> None:
    rng = np.random.default_rng(2508)
    original = encode(example(pooled=pooled))
    taken = 0
    for trial in range(2500):
        data = bytearray(original)
        for _ in range(int(rng.integers(1, 5))):
            place = int(rng.integers(len(data)))
            kind = rng.integers(4)
            if kind == 0:
                data[place] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                data[place] = int(rng.integers(256))
            elif kind == 2:
                del data[place]
            else:
                data.insert(place, int(rng.integers(256)))
        taken += try_decode(bytes(data), pooled=pooled if trial % 2 else None)
    assert taken  # flips in the low bits of a float are honest noise


def test_mutated_publications_are_refused_or_harmless() -> None:
    rng = np.random.default_rng(1669)
    original = publish(GlobalStatistics.from_sum(example(pooled=True)))
    for length in range(len(original)):
        with pytest.raises(WireError):
            published(original[:length])
    taken = 0
    for _ in range(2500):
        data = bytearray(original)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            world = published(bytes(data))
        except WireError:
            continue
        taken += 1
        assert world.mean.shape == world.std.shape == (*world.count.shape, world.mean.shape[1])
        assert np.isfinite(world.mean).all()
        assert (world.std >= 0).all()
        assert (world.count >= 0).all()
    assert taken


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 64, b"{}", b"\x80\x04N.", b"\0" * 200])
def test_noise_is_refused(data: bytes) -> None:
    assert not try_decode(data, pooled=None)
    with pytest.raises(WireError):
        published(data)


def test_oversize_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(data: bytes) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr("fedvtc_edge.wire.load", never)
    with pytest.raises(WireError, match=r"\d+ bytes, expected at most \d+"):
        decode(b"\0" * 5000, classes=CLASSES, width=WIDTH)


def counts(*values: float) -> Any:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"count": counts(4, np.nan, 0)}, "not finite"),
        ({"total": np.full((CLASSES, WIDTH), np.inf, np.float32)}, "not finite"),
        ({"square": np.full((CLASSES, WIDTH), 3e38, np.float32)}, "beyond 1e\\+30"),
        ({"count": counts(4, -3, 0)}, "negative count"),
        ({"count": counts(0, 3, 0)}, "no samples"),
        ({"count": None}, "keys"),
        ({"extra": counts(1)}, "keys"),
        ({"count": np.ones(CLASSES)}, "float64"),
        ({"count": np.ones(CLASSES, np.int32)}, "int32"),
        ({"total": np.ones((CLASSES, WIDTH), np.float16)}, "float16"),
        ({"count": counts(4, 3)}, "shapes"),
        ({"total": np.zeros((WIDTH, CLASSES), np.float32)}, "shapes"),
        ({"square": np.zeros((WIDTH, WIDTH), np.float32)}, "shapes"),
        ({"square": np.zeros(CLASSES * WIDTH, np.float32)}, "shapes"),
        ({"square": np.zeros((CLASSES, WIDTH), np.float32)}, "second moment"),
        ({"square": np.full((CLASSES, WIDTH), -1, np.float32)}, "samples|second moment"),
    ],
)
def test_impossible_uploads_are_refused(changes: dict[str, Any], reason: str) -> None:
    assert try_decode(upload(), pooled=False)
    with pytest.raises(WireError, match=reason):
        decode(upload(**changes), classes=CLASSES, width=WIDTH)


@pytest.mark.parametrize("name", ["total", "square"])
def test_a_class_without_samples_has_no_sums(name: str) -> None:
    """Else a client could widen σ of a class while claiming to have nothing of it."""
    array = getattr(example(pooled=False), name).astype(np.float32)
    array[2] = 5.0
    with pytest.raises(WireError, match="no samples"):
        decode(upload(**{name: array}), classes=CLASSES, width=WIDTH)


def test_the_least_second_moment_is_that_of_equal_samples() -> None:
    """Jensen: n samples of mean μ have a sum of squares of n μ² at least."""
    total = np.zeros((CLASSES, WIDTH), np.float32)
    total[0] = 8.0
    for factor, possible in ((1.0, True), (0.9999, True), (0.99, False)):
        square = np.zeros((CLASSES, WIDTH), np.float32)
        square[0] = 8.0**2 / 4 * factor
        data = upload(count=counts(4, 0, 0), total=total, square=square)
        assert try_decode(data, pooled=False) == possible


def test_a_pooled_second_moment_is_checked_against_all_classes_together() -> None:
    statistics = example(pooled=True)
    triangle = statistics.square[np.triu_indices(WIDTH)].astype(np.float32)
    assert try_decode(upload(square=triangle), pooled=True)
    least = (np.square(statistics.total[:2]) / statistics.count[:2, None]).sum(0)
    diagonal = np.flatnonzero(np.equal(*np.triu_indices(WIDTH)))
    triangle[diagonal[1]] = 0.9 * least[1]
    with pytest.raises(WireError, match="second moment"):
        decode(upload(square=triangle), classes=CLASSES, width=WIDTH, pooled=True)
    zeros = {"count": counts(0, 0, 0), "total": np.zeros((CLASSES, WIDTH), np.float32)}
    assert try_decode(upload(**zeros, square=np.zeros_like(triangle)), pooled=True)
    with pytest.raises(WireError, match="no samples"):
        decode(upload(**zeros, square=triangle), classes=CLASSES, width=WIDTH)


def test_other_classes_or_another_width_than_agreed_are_refused() -> None:
    data = encode(example(pooled=False))
    for classes, width in ((CLASSES + 1, WIDTH), (CLASSES, WIDTH + 1), (WIDTH, CLASSES)):
        with pytest.raises(WireError):
            decode(data, classes=classes, width=width)


TYPES = [("C64", 8), ("BF16", 2), ("F16", 2), ("F64", 8), ("I64", 8), ("U8", 1), ("BOOL", 1)]


@pytest.mark.parametrize(("dtype", "item"), TYPES)
def test_types_other_than_float32_are_refused(dtype: str, item: int) -> None:
    matrix, vector = [CLASSES, WIDTH], [CLASSES]
    with pytest.raises(WireError):
        decode(
            raw(dtype, item, {"count": vector, "total": matrix, "square": matrix}),
            classes=CLASSES,
            width=WIDTH,
        )
    with pytest.raises(WireError):
        published(raw(dtype, item, {"count": vector, "mean": matrix, "std": matrix}))


@pytest.mark.parametrize(
    "changes",
    [
        {"count": np.ones(2)},
        {"mean": np.ones(3)},
        {"mean": np.full((CLASSES, WIDTH), np.nan)},
        {"std": np.full((CLASSES, WIDTH), -0.1)},
        {"count": np.full(CLASSES, -1.0)},
        {"std": np.ones((CLASSES, WIDTH + 1))},
        {"covariance": np.ones((CLASSES, WIDTH))},
        {"covariance": np.full((WIDTH, WIDTH), np.inf)},
        {"extra": np.ones(1)},
        {"mean": None},
        {"std": None},
    ],
)
def test_damaged_publications_are_refused(changes: dict[str, Any]) -> None:
    shapes = {"count": (CLASSES,), "mean": (CLASSES, WIDTH), "std": (CLASSES, WIDTH)}
    arrays: dict[str, Any] = {name: np.ones(shape) for name, shape in shapes.items()} | changes
    data = save({k: v.astype(np.float32) for k, v in arrays.items() if v is not None})
    with pytest.raises(WireError):
        published(data)


# ---------------------------------------------------------------- private releases

LARGEST = 2**49


@hypothesis_settings(deadline=None, max_examples=60)
@given(values=st.lists(st.integers(-LARGEST, LARGEST), max_size=40))
def test_a_release_keeps_every_integer(values: list[int]) -> None:
    data = encode_release(np.array(values, np.int64))
    got = decode_release(data, size=len(values))
    assert got.dtype == np.int64
    assert got.tolist() == values
    assert encode_release(got) == data


def test_a_release_is_as_long_as_its_size_alone() -> None:
    made = [np.zeros(50, np.int64), np.full(50, LARGEST), np.arange(100)[::2] - 7]
    assert {len(encode_release(release)) for release in made} == {len(encode_release(made[0]))}
    assert len(encode_release(made[0])) < 8 * 50 + 120


def test_golden_release() -> None:
    """The byte format: changing it breaks every client in the field."""
    data = encode_release(np.array([0, 1, -1, LARGEST, -LARGEST], np.int64))
    digest = "a068b06a3a19846dc6d09caa093d54fc859ac14cf5cabd44d06983b56d0b8946"
    assert (len(data), hashlib.sha256(data).hexdigest()) == (112, digest)


def test_every_truncated_release_is_refused() -> None:
    data = encode_release(np.arange(5))
    for length in range(len(data)):
        with pytest.raises(WireError):
            decode_release(data[:length], size=5)
    with pytest.raises(WireError):
        decode_release(data + bytes(8), size=5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"release": np.arange(4)}, "expected int64"),
        ({"release": np.arange(6)}, "expected int64"),
        ({"release": np.zeros((5, 1), np.int64)}, "expected int64"),
        ({"release": np.zeros(5)}, "expected int64"),
        ({"release": np.zeros(5, np.int32)}, "expected int64"),
        ({"release": np.zeros(5, np.uint64)}, "expected int64"),
        ({"noise": np.arange(5)}, "expected release"),
        ({}, "expected release"),
        ({"release": np.arange(5), "more": np.arange(2)}, "expected release"),
        ({"release": np.full(5, LARGEST + 1)}, "a value beyond"),
        ({"release": np.full(5, -LARGEST - 1)}, "a value beyond"),
        ({"release": np.full(5, np.iinfo(np.int64).min)}, "a value beyond"),
        ({"release": np.zeros(500, np.int64)}, "expected at most"),
    ],
)
def test_what_is_no_release(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(WireError, match=message) as refused:
        decode_release(save(arrays), size=5)
    assert refused.value.hint


def test_mutated_releases_are_refused_or_harmless() -> None:
    rng = np.random.default_rng(4)
    original, taken = encode_release(np.arange(5)), 0
    for _ in range(2000):
        data = bytearray(original)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            release = decode_release(bytes(data), size=5)
        except WireError:
            continue
        taken += 1
        assert release.shape == (5,)
        assert np.abs(release).max() <= LARGEST
    assert taken


def test_ten_thousand_hostile_releases_add_up() -> None:
    """The most that a federation may have; a sum that wraps would be anything."""
    assert 10_000 * LARGEST < 2**63
