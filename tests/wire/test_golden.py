"""Golden vectors: changing one byte of the format breaks every client in the field."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.wire import (
    LARGEST_RELEASE,
    Precision,
    context_of,
    decode,
    decode_release,
    decode_weights,
    encode,
    encode_release,
    encode_weights,
)
from fedvtc_edge.wire.context import Context

FOLDER = Path(__file__).parent / "golden"
PAGE = Path(__file__).parents[2] / "docs" / "wire-format.md"
CONTEXT = Context("00112233445566778899aabbccddeeff", 3, "client-07", "anchor")


def statistics(*, pooled: bool) -> ClassStatistics:
    """Three classes of two features, the last one absent; no platform rounds these numbers.

    Means (1, −2) and (0, 3) of five and three samples; scatter within classes
    [[4, 2], [2, 10]] per sample, whose root is [[2, 0], [1, 3]].
    """
    count = np.array([5.0, 3.0, 0.0])
    mean = np.array([[1.0, -2.0], [0.0, 3.0], [0.0, 0.0]])
    total = mean * count[:, None]
    if pooled:
        return ClassStatistics(count, total, total.T @ mean + 8 * np.array([[4.0, 2], [2, 10]]))
    variance = np.array([[4.0, 0.25], [9.0, 0.0], [0.0, 0.0]])
    return ClassStatistics(count, total, (np.square(mean) + variance) * count[:, None])


def _statistics(pooled: bool, precision: Precision, context: Context | None) -> bytes:
    return encode(statistics(pooled=pooled), context=context, precision=precision)


RELEASE = np.array([0, 1, -1, LARGEST_RELEASE, -LARGEST_RELEASE], np.int64)
WEIGHTS = {"up.weight": np.array([[1.0, -0.5]], np.float32), "up.bias": np.float32([0.25])}

VECTORS: dict[str, Callable[[], bytes]] = {
    "diagonal-float32": lambda: _statistics(False, "float32", CONTEXT),
    "diagonal-float16": lambda: _statistics(False, "float16", CONTEXT),
    "pooled-float32": lambda: _statistics(True, "float32", CONTEXT),
    "pooled-float16": lambda: _statistics(True, "float16", CONTEXT),
    "without-context": lambda: _statistics(False, "float32", None),
    "release": lambda: encode_release(RELEASE, context=CONTEXT),
    "weights": lambda: encode_weights(WEIGHTS, context=CONTEXT),
}


@pytest.mark.parametrize("name", VECTORS)
def test_golden_bytes(name: str) -> None:
    stored = (FOLDER / f"{name}.upload").read_bytes()
    assert VECTORS[name]() == stored
    assert context_of(stored) == (None if name == "without-context" else CONTEXT)


@pytest.mark.parametrize("name", ["diagonal", "pooled"])
def test_golden_statistics_read_back(name: str) -> None:
    expected = statistics(pooled=name == "pooled")
    for precision in ("float32", "float16"):
        data = (FOLDER / f"{name}-{precision}.upload").read_bytes()
        got = decode(data, classes=3, width=2, pooled=name == "pooled", context=CONTEXT)
        np.testing.assert_array_equal(got.count, expected.count)
        np.testing.assert_array_equal(got.total, expected.total)
        np.testing.assert_array_equal(got.square, expected.square)


def test_golden_release_and_weights_read_back() -> None:
    data = (FOLDER / "release.upload").read_bytes()
    assert decode_release(data, size=5, context=CONTEXT).tolist() == RELEASE.tolist()
    data = (FOLDER / "weights.upload").read_bytes()
    got = decode_weights(data, like=WEIGHTS, context=CONTEXT)
    assert {name: value.tolist() for name, value in got.items()} == {
        name: value.tolist() for name, value in WEIGHTS.items()
    }


def test_the_page_lists_the_vectors() -> None:
    rows = re.findall(
        r"\| `([a-z0-9-]+)\.upload` \| (\d+) \| `([0-9a-f]{64})` \|", PAGE.read_text()
    )
    files = {path.name.removesuffix(".upload"): path.read_bytes() for path in FOLDER.iterdir()}
    assert {name: (int(size), digest) for name, size, digest in rows} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
    }
    assert set(files) == set(VECTORS)
