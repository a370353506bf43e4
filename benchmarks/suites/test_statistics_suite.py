"""From features to class statistics, beside the bare matrix products on ready numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from fedvtc_edge.statistics.class_statistics import ClassStatistics

SAMPLES, WIDTH, CLASSES = 1000, 128, 10


class Ready(NamedTuple):
    """Features [N, p] and labels [N], as the network gives them and as products want them.

    Args:
        features: float32.
        labels: int64.
        wide: The same features as float64.
        member: One-hot labels [C, N].
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    wide: NDArray[np.float64]
    member: NDArray[np.float64]


@pytest.fixture(scope="module", params=["diagonal", "pooled"])
def moments(request: pytest.FixtureRequest) -> str:
    """Which second moments are measured."""
    return str(request.param)


@pytest.fixture
def group(moments: str) -> str:
    """A group per kind of moments."""
    return f"statistics of {SAMPLES:,} × {WIDTH} features, {moments}"


@pytest.fixture(scope="module")
def ready() -> Ready:
    """Made once."""
    draw = np.random.default_rng(0)
    features = draw.standard_normal((SAMPLES, WIDTH), dtype=np.float32)
    labels = draw.integers(0, CLASSES, SAMPLES)
    member = np.eye(CLASSES)[labels].T.copy()
    return Ready(features, labels, features.astype(np.float64), member)


@pytest.mark.floor
def test_bare_products(benchmark: BenchmarkFixture, ready: Ready, moments: str) -> None:
    """Sums, and sums of squares or of outer products."""
    member, wide = ready.member, ready.wide

    def products() -> NDArray[np.float64]:
        square = wide.T @ wide if moments == "pooled" else member @ np.square(wide)
        return np.concatenate([member @ wide, square])

    assert np.isfinite(benchmark(products)).all()


def test_class_statistics(benchmark: BenchmarkFixture, ready: Ready, moments: str) -> None:
    """``ClassStatistics.of``, with its checks and conversions."""
    pooled = moments == "pooled"
    measured = benchmark(
        ClassStatistics.of, ready.features, ready.labels, classes=CLASSES, pooled=pooled
    )
    assert measured.count.sum() == SAMPLES
    np.testing.assert_allclose(measured.total, ready.member @ ready.wide)
    if pooled:
        np.testing.assert_allclose(measured.square, ready.wide.T @ ready.wide)
    else:
        np.testing.assert_allclose(measured.square, ready.member @ np.square(ready.wide))
