"""Statistics as bytes: what goes out comes back, and nothing impossible comes in."""

from __future__ import annotations

import itertools
import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from fedvtc_edge.federation.robustness import check_norms
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.wire import Precision, WireError, decode, encode, publish, published
from fedvtc_edge.wire.context import Context
from fedvtc_edge.wire.framing import HEADER, MAGIC

CLASSES, WIDTH = 3, 4
RUN = "00112233445566778899aabbccddeeff"
MINE = Context(RUN, 3, "client-07", "features")
KINDS: list[tuple[bool, Precision]] = [
    (pooled, precision) for pooled in (False, True) for precision in ("float32", "float16")
]


def example(*, pooled: bool, seed: int = 0, size: int = 7) -> ClassStatistics:
    """Class 2 is absent."""
    z = np.random.default_rng(seed).standard_normal((size, WIDTH))
    return ClassStatistics.of(z, np.arange(size) % 2, classes=CLASSES, pooled=pooled)


def framed(body: bytes, *, pooled: bool = False, numbers: int = 1) -> bytes:
    """A header before any safetensors."""
    moments = 2 if pooled else 1
    fields = (MAGIC, 1, 1, numbers, moments, CLASSES, WIDTH, len(body), bytes(100))
    return HEADER.pack(*fields) + body


def upload(*, pooled: bool = False, **changes: Any) -> bytes:
    """A float32 upload with some arrays replaced, left out (None) or added."""
    arrays = load(encode(example(pooled=pooled))[128:]) | changes
    body = save({name: np.asarray(v) for name, v in arrays.items() if v is not None})
    return framed(body, pooled=pooled)


def raw(dtype: str, item: int, shapes: dict[str, list[int]]) -> bytes:
    """Hand-made safetensors of zeros in any type, even those that NumPy lacks."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + item * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * end


def read(data: bytes, *, pooled: bool | None = None, context: Any = None) -> ClassStatistics:
    return decode(data, classes=CLASSES, width=WIDTH, pooled=pooled, context=context)


def try_decode(data: bytes, *, pooled: bool | None, context: Any = None) -> ClassStatistics | None:
    """What the bytes were taken for; any error but WireError escapes."""
    try:
        got = read(data, pooled=pooled, context=context)
    except WireError:
        return None
    assert got.count.shape == (CLASSES,)
    assert got.total.shape == (CLASSES, WIDTH)
    assert got.square.shape == ((WIDTH, WIDTH) if got.pooled else (CLASSES, WIDTH))
    assert pooled is None or got.pooled == pooled
    assert (got.count >= 0).all()
    assert np.isfinite(got.total).all()
    assert np.isfinite(got.square).all()
    # Whatever was believed must also be publishable together with an honest upload.
    honest = example(pooled=bool(got.pooled))
    published(publish(GlobalStatistics.from_sum(got + got + honest)))
    return got


def same(one: ClassStatistics, other: ClassStatistics) -> bool:
    names = ("count", "total", "square")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


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


@st.composite
def honest(draw: Any) -> ClassStatistics:
    """Sums of real samples at their worst: single ones, constant features, a huge range."""
    classes, width = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    size, pooled = draw(st.integers(0, 12)), draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = 10.0 ** np.array(draw(st.lists(st.integers(-30, 8), min_size=width, max_size=width)))
    centre = draw(st.sampled_from([0.0, 1.0, 1e3, -1e6]))
    spread = draw(st.sampled_from([0.0, 1e-9, 1e-3, 1.0]))
    z = scale * (centre + spread * rng.standard_normal((size, width)))
    z[:, rng.random(width) < 0.2] = draw(st.sampled_from([0.0, 1.0, -7.5]))
    if size and draw(st.booleans()):  # features that depend on each other
        z = z[:, rng.integers(0, width, width)]
    labels = rng.integers(0, classes, size)
    one = ClassStatistics.of(z, labels, classes=classes, pooled=pooled)
    times = float(draw(st.sampled_from([1, 3, 2049, 2**24 + 1, 10**9 + 7])))
    if np.abs(one.square).max(initial=0) * times > 1e29:
        times = 1.0
    return ClassStatistics(one.count * times, one.total * times, one.square * times, pooled)


@hypothesis_settings(deadline=None, max_examples=400)
@given(statistics=honest(), precision=st.sampled_from(["float32", "float16"]))
def test_no_honest_upload_is_refused(statistics: ClassStatistics, precision: Precision) -> None:
    classes, width = statistics.classes, statistics.width
    data = encode(statistics, context=MINE, precision=precision)
    got = decode(data, classes=classes, width=width, pooled=bool(statistics.pooled), context=MINE)
    # float32 has 24 binary digits, a float16 has 11 of each row's largest number.
    digits = 2.0**-23 if precision == "float32" else 2.0**-10
    np.testing.assert_allclose(got.count, statistics.count, rtol=2.0**-23)
    largest = np.abs(statistics.total).max(1, keepdims=True, initial=0)
    assert (np.abs(got.total - statistics.total) <= digits * largest + 1e-38).all()
    size = np.sqrt(np.diag(statistics.square) if statistics.pooled else statistics.square)
    scale = size.max(initial=0) ** 2
    if precision == "float32":
        scale = np.outer(size, size) if statistics.pooled else statistics.square
    assert (np.abs(got.square - statistics.square) <= 4 * width * digits * scale + 1e-37).all()


@hypothesis_settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), pooled=st.booleans())
def test_sums_still_add_in_float16(seed: int, pooled: bool) -> None:
    """The law: what two clients upload adds up to what one client with all data uploads."""
    rng = np.random.default_rng(seed)
    z, y = rng.standard_normal((40, WIDTH)) + 1, rng.integers(0, CLASSES, 40)
    parts = [
        ClassStatistics.of(z[s], y[s], classes=CLASSES, pooled=pooled)
        for s in (slice(0, 13), slice(13, 40))
    ]
    sent = [read(encode(part, precision="float16")) for part in parts]
    both, whole = sent[0] + sent[1], ClassStatistics.of(z, y, classes=CLASSES, pooled=pooled)
    np.testing.assert_array_equal(both.count, whole.count)
    np.testing.assert_allclose(both.total, whole.total, atol=40 * 4 * 2.0**-11)
    np.testing.assert_allclose(both.square, whole.square, atol=40 * 40 * 2.0**-11)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_features_of_norm_root_p_pass_the_servers_bound(precision: Precision) -> None:
    rng = np.random.default_rng(1)
    for pooled, size in itertools.product((False, True), (0, 1, 2, 50)):
        z = rng.standard_normal((size, 64)) * np.geomspace(1e-4, 1, 64)
        z *= 8 / np.linalg.norm(z, axis=1, keepdims=True)
        part = ClassStatistics.of(z, rng.integers(0, 3, size), classes=3, pooled=pooled)
        check_norms(decode(encode(part, precision=precision), classes=3, width=64))


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("precision", "pooled", "width", "size"),
    [
        ("float32", False, 64, 5496),
        ("float16", False, 64, 2968),
        ("float32", True, 64, 11256),
        ("float16", True, 64, 5956),
        ("float32", True, 128, 38520),
        ("float16", True, 128, 19716),
    ],
)
def test_an_upload_is_as_long_as_promised_whatever_the_data(
    precision: Precision, pooled: bool, width: int, size: int
) -> None:
    rng = np.random.default_rng(0)
    for samples, scale in ((0, 1.0), (1, 1e9), (200, 1e-9), (3, 0.0)):
        z, y = scale * rng.standard_normal((samples, width)), rng.integers(0, 10, samples)
        statistics = ClassStatistics.of(z, y, classes=10, pooled=pooled)
        for context in (None, MINE, Context(RUN, 2**32 - 1, "c" * 64, "k" * 16)):
            data = encode(statistics, context=context, precision=precision)
            assert len(data) == size
            assert len(save(load(data[128:]))) == size - 128, "the body is plain safetensors"


def test_a_large_upload_is_refused_before_it_costs_memory() -> None:
    data = bytes(20_000_000)
    tracemalloc.start()
    try:
        for pooled in (None, True, False):
            with pytest.raises(WireError, match=r"20000000 bytes, expected \d+ or \d+"):
                read(data, pooled=pooled)
        assert tracemalloc.get_traced_memory()[1] < 100_000
        honest = encode(ClassStatistics.of(np.ones((9, 512)), [0] * 9, classes=2, pooled=True))
        tracemalloc.reset_peak()
        decode(honest, classes=2, width=512)
        # A few matrices [p, p] of float64, four times as large as the triangle of float32.
        assert tracemalloc.get_traced_memory()[1] < 60 * len(honest)
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- whose it is


def test_an_upload_of_another_context_is_refused() -> None:
    data = encode(example(pooled=False), context=MINE)
    assert same(read(data, context=MINE), example32())
    assert same(read(data), example32()), "without a context any is taken"
    for other in (
        Context("f" * 32, 3, "client-07", "features"),
        Context(RUN, 4, "client-07", "features"),
        Context(RUN, 3, "client-08", "features"),
        Context(RUN, 3, "client-07", "anchor"),
    ):
        with pytest.raises(WireError, match="belongs to") as refused:
            read(data, context=other)
        assert "round" in refused.value.hint
    with pytest.raises(WireError, match="belongs to None"):
        read(encode(example(pooled=False)), context=MINE)


def example32() -> ClassStatistics:
    one = example(pooled=False)
    arrays = (one.count, one.total, one.square)
    return ClassStatistics(*(value.astype(np.float32) for value in arrays))


# ---------------------------------------------------------------- hostile bytes


@pytest.mark.parametrize(("pooled", "precision"), KINDS)
def test_every_truncation_is_refused(pooled: bool, precision: Precision) -> None:
    data = encode(example(pooled=pooled), precision=precision)
    assert try_decode(data, pooled=pooled)
    for length in range(len(data)):
        assert not try_decode(data[:length], pooled=pooled)
    for tail in (b"\0", b"\0" * 4, data):
        assert not try_decode(data + tail, pooled=pooled)


@pytest.mark.parametrize(("pooled", "precision"), KINDS)
@pytest.mark.parametrize("context", [MINE, None])
def test_every_flipped_bit_is_refused_or_means_other_statistics(
    pooled: bool, precision: Precision, context: Context | None
) -> None:
    data = encode(example(pooled=pooled), context=context, precision=precision)
    original, begin = read(data, context=context), data.rindex(b"}}") + 2
    taken = 0
    for place, bit in itertools.product(range(len(data)), range(8)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        got = try_decode(bytes(flipped), pooled=pooled, context=context)
        if got is not None:
            assert place >= begin, "not one bit of a header is ignored"
            assert not same(got, original)
            taken += 1
    assert taken  # flips in the low bits of a number are honest noise


def test_every_byte_of_the_header_is_checked_for_every_value() -> None:
    data = encode(example(pooled=True), context=MINE)
    for place, value in itertools.product(range(128), range(256)):
        if data[place] != value:
            changed = data[:place] + bytes([value]) + data[place + 1 :]
            with pytest.raises(WireError):
                read(changed, context=MINE)


@pytest.mark.parametrize(("pooled", "precision"), KINDS)
def test_mutations_are_refused_or_harmless(pooled: bool, precision: Precision) -> None:
    rng = np.random.default_rng(2508)
    original = encode(example(pooled=pooled), precision=precision)
    taken = 0
    for trial in range(1500):
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
        taken += try_decode(bytes(data), pooled=pooled if trial % 2 else None) is not None
    assert taken


@hypothesis_settings(deadline=None, max_examples=100)
@given(st.sampled_from(KINDS), st.data())
def test_any_numbers_after_a_true_header_are_refused_or_sound(
    kind: tuple[bool, Precision], data: st.DataObject
) -> None:
    pooled, precision = kind
    honest = encode(example(pooled=pooled), precision=precision)
    begin = honest.rindex(b"}}") + 2
    begin += -begin % 8
    size = len(honest) - begin
    try_decode(honest[:begin] + data.draw(st.binary(min_size=size, max_size=size)), pooled=pooled)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signalling_nan_is_refused_wherever_it_is(kind: tuple[bool, Precision]) -> None:
    # A cast of one to another type warns, and warnings are errors here.
    pooled, precision = kind
    honest = encode(example(pooled=pooled), precision=precision)
    begin = honest.rindex(b"}}") + 2
    begin += -begin % 8
    for place in range(begin, len(honest) - 4, 2):
        for number in (b"\x01\x7d", b"\x00\x00\x81\x7f"):  # as float16 and as float32
            data = honest[:place] + number + honest[place + len(number) :]
            try_decode(data, pooled=pooled)
    with pytest.raises(WireError, match="count: a value is not finite"):
        read(honest[:begin] + b"\x00\x00\x81\x7f" + honest[begin + 4 :], pooled=pooled)


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 64, b"{}", b"\x80\x04N.", b"\0" * 200])
def test_noise_is_refused(data: bytes) -> None:
    assert not try_decode(data, pooled=None)


def test_a_safetensors_header_written_otherwise_is_refused() -> None:
    """Other spacing or order says the same to a parser; here one string of bytes does."""
    data = encode(example(pooled=False))
    body = data[128:]
    length = struct.unpack("<Q", body[:8])[0]
    text, numbers = body[8 : 8 + length], body[8 + length :]
    assert text.endswith(b" ")
    for other in (
        text[:-1] + b"\t",
        b" " + text[:-1],
        text.replace(b'"dtype":"F32",', b'"dtype": "F32"', 1),
    ):
        assert len(other) == len(text)
        with pytest.raises(WireError, match="names, types, shapes"):
            read(framed(body[:8] + other + numbers))
    assert read(framed(body)).count.sum() == 7


def counts(*values: float) -> Any:
    return np.array(values, np.float32)


SINGLE = np.float32


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"count": counts(4, np.nan, 0)}, "not finite"),
        ({"count": counts(4, 1e15, 0)}, "beyond"),
        ({"count": counts(4, 2.5, 0)}, "whole"),
        ({"count": counts(4, 3, -0.0)}, "negative"),
        ({"total": np.full((CLASSES, WIDTH), np.inf, SINGLE)}, "not finite"),
        ({"total": np.full((CLASSES, WIDTH), -0.0, SINGLE)}, "negative zero"),
        ({"square": np.full((CLASSES, WIDTH), 3e38, SINGLE)}, "beyond 1e\\+30"),
        ({"count": counts(4, -3, 0)}, "negative count"),
        ({"count": counts(0, 3, 0)}, "no samples"),
        ({"square": np.zeros((CLASSES, WIDTH), SINGLE)}, "second moment"),
        ({"square": np.full((CLASSES, WIDTH), -1, SINGLE)}, "samples|second moment"),
        ({"count": None}, "bytes, expected"),
        ({"extra": counts(1)}, "bytes, expected"),
        ({"count": np.ones(CLASSES)}, "bytes, expected"),
        ({"count": np.ones(CLASSES, np.int32)}, "names, types"),
        ({"total": np.ones((CLASSES, WIDTH), np.float16)}, "bytes, expected"),
        ({"count": counts(4, 3)}, "bytes, expected"),
        ({"total": np.zeros((WIDTH, CLASSES), SINGLE)}, "names, types"),
        ({"square": np.zeros((WIDTH, WIDTH), SINGLE)}, "bytes, expected"),
    ],
)
def test_impossible_uploads_are_refused(changes: dict[str, Any], reason: str) -> None:
    assert try_decode(upload(), pooled=False)
    with pytest.raises(WireError, match=reason):
        read(upload(**changes))


@pytest.mark.parametrize("name", ["total", "square"])
def test_a_class_without_samples_has_no_sums(name: str) -> None:
    """Else a client could widen σ of a class while claiming to have nothing of it."""
    array = getattr(example(pooled=False), name).astype(SINGLE)
    array[2] = 5.0
    with pytest.raises(WireError, match="no samples"):
        read(upload(**{name: array}))


@pytest.mark.parametrize("name", ["mean", "root"])
def test_nor_has_it_in_float16(name: str) -> None:
    data = encode(example(pooled=False), precision="float16")
    arrays = load(data[128:])
    arrays[name][2, :2] = [0, 2**14]
    with pytest.raises(WireError, match="no samples"):
        read(framed(save(arrays), numbers=2))
    empty = np.zeros((0, WIDTH))
    nothing = encode(ClassStatistics.of(empty, [], classes=3, pooled=True), precision="float16")
    arrays = load(nothing[128:])
    assert read(framed(save(arrays), pooled=True, numbers=2)).square.sum() == 0
    arrays["root"][[0, WIDTH]] = [0, 2**14]
    with pytest.raises(WireError, match="no samples"):
        read(framed(save(arrays), pooled=True, numbers=2))


def test_deviations_have_one_sign() -> None:
    for pooled in (False, True):
        arrays = load(encode(example(pooled=pooled), precision="float16")[128:])
        first = (WIDTH,) if pooled else (0, 1)
        arrays["root"][first] *= -1
        with pytest.raises(WireError, match="sign"):
            read(framed(save(arrays), pooled=pooled, numbers=2))


def test_other_classes_or_another_width_than_agreed_are_refused() -> None:
    data = encode(example(pooled=False))
    for classes, width in ((CLASSES + 1, WIDTH), (CLASSES, WIDTH + 1), (WIDTH, CLASSES)):
        with pytest.raises(WireError):
            decode(data, classes=classes, width=width)


TYPES = [("C64", 8), ("BF16", 2), ("F16", 2), ("F64", 8), ("I64", 8), ("I32", 4), ("BOOL", 1)]


@pytest.mark.parametrize(("dtype", "item"), TYPES)
def test_types_other_than_float32_are_refused(dtype: str, item: int) -> None:
    matrix, vector = [CLASSES, WIDTH], [CLASSES]
    with pytest.raises(WireError):
        read(framed(raw(dtype, item, {"count": vector, "total": matrix, "square": matrix})))
