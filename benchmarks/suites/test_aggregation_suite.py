"""One hundred clients' statistics become one, beside the sum of the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from fedvtc_edge.federation.exchange import Exact
from fedvtc_edge.federation.server import Server
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics, sum_of
from fedvtc_edge.transport.channel import Delivery
from fedvtc_edge.wire import encode, published
from fedvtc_edge.wire.context import Context

CLIENTS = 100


@pytest.fixture(scope="module", params=["diagonal", "pooled"])
def moments(request: pytest.FixtureRequest) -> str:
    """Which second moments are added."""
    return str(request.param)


@pytest.fixture
def group(moments: str) -> str:
    """A group per kind of moments."""
    return f"aggregation of {CLIENTS} clients, {moments}"


@pytest.fixture(scope="module")
def parts(moments: str, client_statistics: Callable[..., ClassStatistics]) -> list[ClassStatistics]:
    """Of each client."""
    return [client_statistics(seed, pooled=moments == "pooled") for seed in range(CLIENTS)]


@pytest.fixture(scope="module")
def uploads(parts: list[ClassStatistics]) -> list[tuple[Context, bytes]]:
    """The same, as they travel."""
    contexts = [Context("0" * 32, 1, f"client-{index:03d}", "anchor") for index in range(CLIENTS)]
    return [
        (context, encode(part, context=context))
        for context, part in zip(contexts, parts, strict=True)
    ]


@pytest.mark.floor
def test_bare_sum(benchmark: BenchmarkFixture, parts: list[ClassStatistics]) -> None:
    """``np.sum`` over one array with a row per client."""
    rows = np.stack([_flat(part) for part in parts])
    total = benchmark(np.sum, rows, axis=0)
    np.testing.assert_allclose(total, _flat(sum_of(parts)))


def test_sum_of_statistics(benchmark: BenchmarkFixture, parts: list[ClassStatistics]) -> None:
    """``+``, ninety-nine times."""
    total = benchmark(sum_of, parts)
    assert total.count.sum() == sum(part.count.sum() for part in parts)


def test_server(
    benchmark: BenchmarkFixture,
    parts: list[ClassStatistics],
    uploads: list[tuple[Context, bytes]],
) -> None:
    """From uploaded bytes to published ones: read, check, add, suppress, write."""
    classes, width, pooled = parts[0].classes, parts[0].width, bool(parts[0].pooled)
    exchange = Exact("anchor", lambda _: parts[0], classes, width, pooled)
    sent = {context.sender: Delivery(upload, len(upload), None) for context, upload in uploads}
    context = replace(uploads[0][0], sender="server")

    def close() -> bytes:
        published, _ = Server().aggregate(
            exchange, context, sent, lambda own: sent[own.sender], quorum=CLIENTS
        )
        return published

    knowledge, expected = published(benchmark(close)), GlobalStatistics.from_sum(sum_of(parts))
    np.testing.assert_allclose(knowledge.mean, expected.mean, atol=1e-5)
    np.testing.assert_allclose(knowledge.std, expected.std, atol=1e-5)


def _flat(part: ClassStatistics) -> NDArray[np.float64]:
    return np.concatenate([part.count, part.total.ravel(), part.square.ravel()])
