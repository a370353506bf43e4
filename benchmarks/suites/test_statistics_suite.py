"""Class statistics on their way: measured, encoded, added; each beside its least possible work.

Measuring stands beside matrix products on ready numbers, encoding beside a copy of the
bytes, the server's aggregation of one hundred clients beside the sum of the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from fedvtc_edge.federation.exchange import Exact
from fedvtc_edge.federation.server import Server
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics, sum_of
from fedvtc_edge.transport.channel import Delivery
from fedvtc_edge.wire import Precision, decode, encode, published
from fedvtc_edge.wire.context import Context
from fedvtc_edge.wire.framing import HEADER

SAMPLES, WIDTH, CLASSES, CLIENTS = 1000, 128, 10, 100
CONTEXTS = [Context("0" * 32, 1, f"client-{index:03d}", "anchor") for index in range(CLIENTS)]
MeasureClient = Callable[..., ClassStatistics]


@pytest.fixture(scope="module", params=["diagonal", "pooled"])
def moments(request: pytest.FixtureRequest) -> str:
    """Kind of second moments that are measured and added."""
    return str(request.param)


@pytest.fixture(scope="module")
def features() -> NDArray[np.float32]:
    """As a network gives them, [N, p]."""
    return np.random.default_rng(0).standard_normal((SAMPLES, WIDTH), dtype=np.float32)


@pytest.fixture(scope="module")
def labels() -> NDArray[np.int64]:
    """Of the features, [N]."""
    return np.random.default_rng(1).integers(0, CLASSES, SAMPLES)


@pytest.fixture(scope="module")
def member(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """One-hot labels [C, N], as products want them."""
    return np.eye(CLASSES)[labels].T.copy()


class TestMeasuring:
    """Features [N, p] to statistics."""

    @pytest.fixture
    def group(self, moments: str) -> str:
        """A group per kind of moments."""
        return f"statistics of {SAMPLES:,} × {WIDTH} features, {moments}"

    @pytest.mark.floor
    def test_bare_products(
        self,
        benchmark: BenchmarkFixture,
        features: NDArray[np.float32],
        member: NDArray[np.float64],
        moments: str,
    ) -> None:
        """Sums, and sums of squares or of outer products, of float64 that is ready."""
        wide = features.astype(np.float64)

        def products() -> NDArray[np.float64]:
            square = wide.T @ wide if moments == "pooled" else member @ np.square(wide)
            return np.concatenate([member @ wide, square])

        assert np.isfinite(benchmark(products)).all()

    def test_class_statistics(
        self,
        benchmark: BenchmarkFixture,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        member: NDArray[np.float64],
        moments: str,
    ) -> None:
        """``ClassStatistics.of``, with its checks and conversions."""
        pooled, wide = moments == "pooled", features.astype(np.float64)
        measured = benchmark(ClassStatistics.of, features, labels, classes=CLASSES, pooled=pooled)
        assert measured.count.sum() == SAMPLES
        np.testing.assert_allclose(measured.total, member @ wide)
        expected = wide.T @ wide if pooled else member @ np.square(wide)
        np.testing.assert_allclose(measured.square, expected)


@pytest.fixture(scope="module", params=["float32", "float16"])
def precision(request: pytest.FixtureRequest) -> Precision:
    """Precision in which numbers are stored."""
    chosen: Precision = request.param
    return chosen


@pytest.fixture(scope="module")
def statistics(client_statistics: MeasureClient) -> ClassStatistics:
    """One client's, in the extractor's space."""
    return client_statistics(0, pooled=True)


@pytest.fixture(scope="module")
def upload(statistics: ClassStatistics, precision: Precision) -> bytes:
    """The same, as it travels."""
    return encode(statistics, context=CONTEXTS[0], precision=precision)


@pytest.fixture(scope="module")
def arrays(upload: bytes) -> dict[str, NDArray[Any]]:
    """Arrays that safetensors reads from the upload."""
    return safetensors.numpy.load(upload[HEADER.size :])


class TestEncoding:
    """Statistics to bytes and back with every check."""

    @pytest.fixture
    def group(self, precision: Precision) -> str:
        """A group per precision."""
        return f"encoding of pooled statistics, {precision}"

    @pytest.mark.floor
    def test_copy(self, benchmark: BenchmarkFixture, upload: bytes) -> None:
        """The upload's bytes from one place to another."""
        assert benchmark(bytearray, upload) == upload

    def test_safetensors_save(
        self, benchmark: BenchmarkFixture, arrays: dict[str, NDArray[Any]], upload: bytes
    ) -> None:
        """The same arrays, ready to be written."""
        assert len(benchmark(safetensors.numpy.save, arrays)) == len(upload) - HEADER.size

    def test_safetensors_load(
        self, benchmark: BenchmarkFixture, arrays: dict[str, NDArray[Any]], upload: bytes
    ) -> None:
        """The same bytes, believed."""
        assert benchmark(safetensors.numpy.load, upload[HEADER.size :]).keys() == arrays.keys()

    def test_encode(
        self,
        benchmark: BenchmarkFixture,
        statistics: ClassStatistics,
        upload: bytes,
        precision: Precision,
    ) -> None:
        """``wire.encode``: with the conversion, and for float16 a triangular root."""
        made = benchmark(encode, statistics, context=CONTEXTS[0], precision=precision)
        assert made == upload

    def test_decode(
        self, benchmark: BenchmarkFixture, statistics: ClassStatistics, upload: bytes
    ) -> None:
        """``wire.decode``: nothing is believed before it is checked."""
        agreed = {"classes": statistics.classes, "width": statistics.width, "pooled": True}
        read = benchmark(decode, upload, **agreed, context=CONTEXTS[0])
        assert np.array_equal(read.count, statistics.count)
        np.testing.assert_allclose(read.total, statistics.total, rtol=2e-3, atol=1e-2)


@pytest.fixture(scope="module")
def parts(moments: str, client_statistics: MeasureClient) -> list[ClassStatistics]:
    """Of each client."""
    return [client_statistics(seed, pooled=moments == "pooled") for seed in range(CLIENTS)]


class TestAggregation:
    """One hundred clients' statistics become one."""

    @pytest.fixture
    def group(self, moments: str) -> str:
        """A group per kind of moments."""
        return f"aggregation of {CLIENTS} clients, {moments}"

    @pytest.mark.floor
    def test_bare_sum(self, benchmark: BenchmarkFixture, parts: list[ClassStatistics]) -> None:
        """``np.sum`` over one array with a row per client."""
        rows = np.stack([_flat(part) for part in parts])
        total = benchmark(np.sum, rows, axis=0)
        np.testing.assert_allclose(total, _flat(sum_of(parts)))

    def test_sum_of_statistics(
        self, benchmark: BenchmarkFixture, parts: list[ClassStatistics]
    ) -> None:
        """``+``, ninety-nine times."""
        total = benchmark(sum_of, parts)
        assert total.count.sum() == sum(part.count.sum() for part in parts)

    def test_server(self, benchmark: BenchmarkFixture, parts: list[ClassStatistics]) -> None:
        """From uploaded bytes to published ones: read, check, add, suppress, write."""
        classes, width, pooled = parts[0].classes, parts[0].width, bool(parts[0].pooled)
        exchange = Exact("anchor", lambda _: parts[0], classes, width, pooled)
        uploads = (
            encode(part, context=context) for context, part in zip(CONTEXTS, parts, strict=True)
        )
        sent = [
            (context, Delivery(upload, len(upload), None))
            for context, upload in zip(CONTEXTS, uploads, strict=True)
        ]
        context = replace(CONTEXTS[0], sender="server")

        def close() -> bytes:
            document, _ = Server().aggregate(
                exchange, context, sent, number=CLIENTS, quorum=CLIENTS
            )
            return document

        knowledge, expected = published(benchmark(close)), GlobalStatistics.from_sum(sum_of(parts))
        np.testing.assert_allclose(knowledge.mean, expected.mean, atol=1e-5)
        np.testing.assert_allclose(knowledge.std, expected.std, atol=1e-5)


def _flat(part: ClassStatistics) -> NDArray[np.float64]:
    return np.concatenate([part.count, part.total.ravel(), part.square.ravel()])
