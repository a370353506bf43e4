"""What the server publishes: plain safetensors that a device can read."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.wire import WireError, publish, published

CLASSES, WIDTH = 3, 4


def example(*, pooled: bool) -> ClassStatistics:
    """Class 2 is absent."""
    z = np.random.default_rng(0).standard_normal((7, WIDTH))
    return ClassStatistics.of(z, np.arange(7) % 2, classes=CLASSES, pooled=pooled)


def golden(*, pooled: bool) -> ClassStatistics:
    """Whole numbers and exact quotients only, so that no platform rounds differently."""
    z = np.array([[1.0, -2, 3, 0], [3, 2, 1, 4], [0, 8, -8, 16], [2, 2, 2, 2]])
    return ClassStatistics.of(z, [0, 0, 1, 1], classes=CLASSES, pooled=pooled)


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
        (False, 300, "1e47ee7c2dc946db301b19250a39ec48303b9df51165f217980c1b7fc2dc4673"),
        (True, 404, "65b41a20a44f70a12d42b65dc5911a38b0975027d55edd8b05700550695f5526"),
    ],
)
def test_golden_publication(pooled: bool, size: int, digest: str) -> None:
    data = publish(GlobalStatistics.from_sum(golden(pooled=pooled), floor=0.25))
    assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)


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


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 64, b"{}", b"\x80\x04N.", b"\0" * 200])
def test_noise_is_no_publication(data: bytes) -> None:
    with pytest.raises(WireError):
        published(data)
