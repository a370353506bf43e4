"""Statistics to bytes and back with every check, beside a copy of the bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.wire import Precision, decode, encode
from fedvtc_edge.wire.context import Context
from fedvtc_edge.wire.framing import HEADER

CONTEXT = Context("0" * 32, 0, "client-00", "anchor")


@pytest.fixture(scope="module", params=["float32", "float16"])
def precision(request: pytest.FixtureRequest) -> Precision:
    """How numbers are stored."""
    chosen: Precision = request.param
    return chosen


@pytest.fixture
def group(precision: Precision) -> str:
    """A group per precision."""
    return f"encoding of pooled statistics, {precision}"


@pytest.fixture(scope="module")
def statistics(client_statistics: Callable[..., ClassStatistics]) -> ClassStatistics:
    """One client's, in the anchor's space."""
    return client_statistics(0, pooled=True)


@pytest.fixture(scope="module")
def upload(statistics: ClassStatistics, precision: Precision) -> bytes:
    """The same, as it travels."""
    return encode(statistics, context=CONTEXT, precision=precision)


@pytest.fixture(scope="module")
def arrays(upload: bytes) -> dict[str, NDArray[Any]]:
    """What safetensors finds in it."""
    return safetensors.numpy.load(upload[HEADER.size :])


@pytest.mark.floor
def test_copy(benchmark: BenchmarkFixture, upload: bytes) -> None:
    """The upload's bytes from one place to another."""
    assert benchmark(bytearray, upload) == upload


def test_safetensors_save(
    benchmark: BenchmarkFixture, arrays: dict[str, NDArray[Any]], upload: bytes
) -> None:
    """The same arrays, ready to be written."""
    assert len(benchmark(safetensors.numpy.save, arrays)) == len(upload) - HEADER.size


def test_safetensors_load(
    benchmark: BenchmarkFixture, arrays: dict[str, NDArray[Any]], upload: bytes
) -> None:
    """The same bytes, believed."""
    assert benchmark(safetensors.numpy.load, upload[HEADER.size :]).keys() == arrays.keys()


def test_encode(
    benchmark: BenchmarkFixture, statistics: ClassStatistics, upload: bytes, precision: Precision
) -> None:
    """``wire.encode``: with the conversion, and for float16 a triangular root."""
    assert benchmark(encode, statistics, context=CONTEXT, precision=precision) == upload


def test_decode(benchmark: BenchmarkFixture, statistics: ClassStatistics, upload: bytes) -> None:
    """``wire.decode``: nothing is believed before it is checked."""
    agreed = {"classes": statistics.classes, "width": statistics.width, "pooled": True}
    read = benchmark(decode, upload, **agreed, context=CONTEXT)
    assert np.array_equal(read.count, statistics.count)
    np.testing.assert_allclose(read.total, statistics.total, rtol=2e-3, atol=1e-2)
