"""The statistics that a bundle's graphs take as inputs: bytes, and newer ones in their place."""

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
from safetensors.numpy import load, save

from fedvtc_edge.errors import BundleError, VerificationError
from fedvtc_edge.export.codes import Codes
from fedvtc_edge.statistics.class_statistics import GlobalStatistics

CLASSES, LATENT, ANCHOR = 3, 2, 4
KINDS = [None, "diagonal", "covariance"]


def published(
    moments: str | None, *, classes: int = CLASSES, width: int = ANCHOR, seed: int = 0
) -> GlobalStatistics:
    """Multiples of 1/8, which float32 holds exactly; class 1 is absent."""
    draw = np.random.Generator(np.random.Philox(key=seed))
    mean = draw.integers(-40, 40, (classes, width)) / 8
    root = draw.integers(-4, 4, (width, width)) / 2
    covariance = root @ root.T if moments == "covariance" else None
    std = draw.integers(0, 40, (classes, width)) / 8
    if covariance is not None:
        std = np.sqrt(np.diag(covariance))[None].repeat(classes, 0)
    count = np.where(np.arange(classes) == 1, 0.0, 5.0)
    return GlobalStatistics(count, mean, std, covariance)


def example(
    moments: str | None = "diagonal",
    *,
    classes: int = CLASSES,
    latent: int = LATENT,
    width: int = ANCHOR,
    seed: int = 0,
) -> Codes:
    draw = np.random.Generator(np.random.Philox(key=seed + 1))
    mean = (draw.integers(-40, 40, (classes, latent)) / 8).astype(np.float32)
    std = (draw.integers(0, 40, (classes, latent)) / 8).astype(np.float32)
    knowledge = (
        None if moments is None else published(moments, classes=classes, width=width, seed=seed)
    )
    return Codes(mean, std, np.arange(classes) != 1, knowledge)


def read(data: bytes, *, anchor: int | None = ANCHOR) -> Codes:
    return Codes.from_bytes(data, classes=CLASSES, latent=LATENT, anchor=anchor)


def same(one: Codes, other: Codes) -> None:
    for name in ("mean", "std", "known"):
        a, b = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert (one.knowledge is None) == (other.knowledge is None)
    if one.knowledge is None or other.knowledge is None:
        return
    np.testing.assert_array_equal(one.knowledge.present, other.knowledge.present)
    np.testing.assert_array_equal(one.knowledge.mean, other.knowledge.mean)
    np.testing.assert_allclose(one.knowledge.std, other.knowledge.std, rtol=1e-12)
    assert (one.knowledge.covariance is None) == (other.knowledge.covariance is None)
    if one.knowledge.covariance is not None:
        np.testing.assert_array_equal(one.knowledge.covariance, other.knowledge.covariance)


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    ("moments", "size", "digest"),
    [
        (None, 302, "9b51cef93e6a21cac73a5118c34ddc66327a7fd2ed49f0a695a143de564a3800"),
        ("diagonal", 534, "e7241e8d0f1634ab3cc538f4825e2709e0b411f4f3cf080d0bfae60525639f8b"),
        ("covariance", 534, "de5a0af4e618742bb78f79e332944c8869c290b8a71a71fa77fa0da68370b932"),
    ],
)
def test_golden_statistics(moments: str | None, size: int, digest: str) -> None:
    """The byte format: changing it ends every bundle in the field.

    The digests are of version 0.1.0, which wrote in ``own`` which classes the client had.
    """
    arrays = load(golden(moments).to_bytes())
    assert arrays["own"].tolist() == [1, 1, 1]
    data = save(arrays | {"own": np.array([0, 0, 1], np.uint8)})
    assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)


def golden(moments: str | None) -> Codes:
    """By hand, so that no change of a generator moves it."""
    mean = np.array([[1, -2], [0, 0], [0.5, 4]], np.float32)
    anchor = np.array([[1.0, -2, 3, 0], [0, 0, 0, 0], [0, 8, -8, 16]])
    covariance = np.diag([4.0, 3, 2, 1]) + 0.25
    std = np.sqrt(np.diag(covariance))[None].repeat(3, 0) if moments == "covariance" else anchor**2
    knowledge = None
    if moments is not None:
        pooled = covariance if moments == "covariance" else None
        knowledge = GlobalStatistics(np.array([7.0, 0, 2]), anchor, std, pooled)
    return Codes(mean, np.abs(mean), np.array([True, False, True]), knowledge)


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    moments=st.sampled_from(KINDS),
    classes=st.integers(2, 5),
    latent=st.integers(1, 6),
    width=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_a_round_trip_changes_nothing(
    moments: str | None, classes: int, latent: int, width: int, seed: int
) -> None:
    codes = example(moments, classes=classes, latent=latent, width=width, seed=seed)
    data = codes.to_bytes()
    anchor = None if moments is None else width
    again = Codes.from_bytes(data, classes=classes, latent=latent, anchor=anchor)
    same(again, codes)
    assert again.to_bytes() == data


@pytest.mark.parametrize("moments", ["diagonal", "covariance"])
def test_how_many_samples_there_were_stays_at_home(moments: str) -> None:
    knowledge = read(example(moments).to_bytes()).knowledge
    assert knowledge is not None
    np.testing.assert_array_equal(knowledge.count, [1, 0, 1])


# ---------------------------------------------------------------- hostile bytes


def stored(**changes: Any) -> bytes:
    """An anchored bundle's statistics with some arrays replaced, left out (None) or added."""
    codes = example()
    assert codes.knowledge is not None
    arrays: dict[str, Any] = {
        "mean": codes.mean,
        "std": codes.std,
        "known": codes.known.astype(np.uint8),
        "own": np.ones(CLASSES, np.uint8),
        "anchor.mean": codes.knowledge.mean.astype(np.float32),
        "anchor.std": codes.knowledge.std.astype(np.float32),
    }
    arrays |= {name.replace("_", "."): value for name, value in changes.items()}
    return save({name: np.asarray(v) for name, v in arrays.items() if v is not None})


def full(value: float, *shape: int) -> Any:
    return np.full(shape, value, np.float32)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mean": full(np.nan, CLASSES, LATENT)}, "mean is .* not finite"),
        ({"std": full(np.inf, CLASSES, LATENT)}, "std is .* not finite"),
        ({"anchor_mean": full(-np.inf, CLASSES, ANCHOR)}, "anchor.mean is .* not finite"),
        ({"std": full(-1, CLASSES, LATENT)}, "std is negative"),
        ({"anchor_std": full(-0.1, CLASSES, ANCHOR)}, "anchor.std is negative"),
        ({"mean": np.zeros((CLASSES, LATENT))}, "mean is float64"),
        ({"mean": np.zeros((CLASSES, LATENT), np.float16)}, "mean is float16"),
        ({"known": np.ones(CLASSES, np.int64)}, "known is int64"),
        ({"known": np.ones(CLASSES, bool)}, "known is bool"),
        ({"own": full(1, CLASSES)}, "own is float32"),
        ({"mean": full(0, LATENT, CLASSES)}, r"\[2, 3\].*expected float32 \[3, 2\]"),
        ({"mean": full(0, CLASSES * LATENT)}, r"\[6\]"),
        ({"own": np.ones(CLASSES + 1, np.uint8)}, r"own is uint8 \[4\]"),
        ({"mean": None}, "expected .*mean"),
        ({"own": None}, "expected .*own"),
        ({"anchor_std": None}, "expected .*anchor.std"),
        ({"anchor_covariance": full(1, 10)}, "statistics hold"),
        ({"anchor_std": None, "anchor_covariance": full(1, 9)}, r"\[9\].* expected .*\[10\]"),
        ({"anchor_std": None, "anchor_covariance": full(np.nan, 10)}, "not finite"),
        ({"extra": full(1)}, "statistics hold"),
    ],
)
def test_impossible_statistics_are_refused(changes: dict[str, Any], reason: str) -> None:
    read(stored())
    with pytest.raises(VerificationError, match=reason):
        read(stored(**changes))


@pytest.mark.parametrize(("held", "expected"), [(None, ANCHOR), ("diagonal", None)])
def test_an_anchor_is_there_or_not_as_the_manifest_says(
    held: str | None, expected: int | None
) -> None:
    with pytest.raises(VerificationError, match="statistics hold"):
        read(example(held).to_bytes(), anchor=expected)


@pytest.mark.parametrize(("dtype", "item"), [("BF16", 2), ("F8_E4M3", 1), ("C64", 8), ("X", 4)])
def test_types_that_numpy_lacks_are_refused(dtype: str, item: int) -> None:
    header = {"mean": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * item]}}
    text = json.dumps(header).encode()
    with pytest.raises(VerificationError):
        read(struct.pack("<Q", len(text)) + text + b"\0" * 2 * item)


@pytest.mark.parametrize("data", [b"", b"\0", b"{}", b"\xff" * 64, b"\x80\x04N.", b"\0" * 200])
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(VerificationError):
        read(data)


def test_mutations_are_refused_or_harmless() -> None:
    rng = np.random.default_rng(2508)
    original = example("covariance").to_bytes()
    taken = 0
    for _ in range(2000):
        data = bytearray(original)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            codes = read(bytes(data))
        except VerificationError:
            continue
        taken += 1
        assert codes.mean.shape == codes.std.shape == (CLASSES, LATENT)
        assert codes.knowledge is not None
        assert np.isfinite(codes.knowledge.std).all()
        codes.to_bytes()
    assert taken


def test_which_classes_a_client_had_is_not_written_and_not_asked() -> None:
    """Bundles of version 0.1.0 say it; what they say of it changes nothing."""
    older = read(stored(own=np.array([1, 0, 0], np.uint8)))
    same(older, example())
    assert load(older.to_bytes())["own"].tolist() == [1, 1, 1]


# ---------------------------------------------------------------- newer ones


@pytest.mark.parametrize("moments", ["diagonal", "covariance"])
def test_anchored_bundles_take_over_the_anchors_statistics_alone(moments: str) -> None:
    codes, newer = example(moments), published(moments, seed=9)
    new = codes.refreshed(newer)
    np.testing.assert_array_equal(new.mean, codes.mean)
    np.testing.assert_array_equal(new.std, codes.std)
    assert new.knowledge is newer
    same(read(new.to_bytes()), new)


def test_all_others_take_over_prototypes_and_deviations() -> None:
    codes, newer = example(None), published("diagonal", width=LATENT, seed=9)
    new = codes.refreshed(newer)
    np.testing.assert_array_equal(new.mean, newer.mean.astype(np.float32))
    np.testing.assert_array_equal(new.std, newer.std.astype(np.float32))
    assert new.knowledge is None
    same(read(new.to_bytes(), anchor=None), new)


@pytest.mark.parametrize("moments", KINDS)
def test_a_class_that_someone_now_has_becomes_known(moments: str | None) -> None:
    width = LATENT if moments is None else ANCHOR
    newer = published(moments, width=width)
    newer.count[:] = [0, 2, 2]
    new = example(moments).refreshed(newer)
    np.testing.assert_array_equal(new.known, [False, True, True])


@pytest.mark.parametrize(
    ("held", "newer", "reason"),
    [
        ("diagonal", published("diagonal", classes=4), "4 classes and 4 features, .* 3 and 4"),
        ("diagonal", published("diagonal", width=LATENT), "3 classes and 2 features"),
        (None, published("diagonal"), "3 classes and 4 features, the bundle has 3 and 2"),
        ("diagonal", published("covariance"), "other moments"),
        ("covariance", published("diagonal"), "other moments"),
        (None, published("covariance", width=LATENT), "pooled statistics of an anchor"),
    ],
)
def test_statistics_of_another_kind_are_refused(
    held: str | None, newer: GlobalStatistics, reason: str
) -> None:
    with pytest.raises(BundleError, match=reason):
        example(held).refreshed(newer)
