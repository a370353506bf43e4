"""A sum that hides its parts, beside the sum itself.

Everybody's work together, in one process; set up as in ``benchmarks/studies/masking.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from fedvtc_edge.benchmarks.studies.masking import SIZE, apart, floor_seconds, simulated
from fedvtc_edge.masking import MaskingStep, threshold_of
from fedvtc_edge.sealing.signing import generate

CLIENTS = 10
Inputs = dict[str, NDArray[np.int64]]
Identities = dict[str, Ed25519PrivateKey]


@pytest.fixture
def group() -> str:
    """One group."""
    return f"masked sum of {SIZE:,} numbers of {CLIENTS} clients"


@pytest.fixture(scope="module")
def identities() -> Identities:
    """Of each client."""
    return {f"client-{index:03d}": generate() for index in range(CLIENTS)}


@pytest.fixture(scope="module")
def inputs(identities: Identities) -> Inputs:
    """Each client's vector."""
    draw = np.random.default_rng(0)
    return {name: draw.integers(-(2**48), 2**48, SIZE) for name in identities}


@pytest.mark.floor
def test_sum_modulo_2_to_64(benchmark: BenchmarkFixture, inputs: Inputs) -> None:
    """What the server would do with vectors that it may see."""
    rows = np.stack(list(inputs.values())).view(np.uint64)
    total = benchmark(np.sum, rows, axis=0)
    assert np.array_equal(total.view(np.int64), np.sum(list(inputs.values()), axis=0))


def test_key_streams_alone(benchmark: BenchmarkFixture) -> None:
    """ChaCha20 for every mask, and the additions: no protocol does with less."""
    assert benchmark(floor_seconds, CLIENTS, SIZE) >= 0


def test_one_process(benchmark: BenchmarkFixture, inputs: Inputs, identities: Identities) -> None:
    """The whole protocol as a simulation runs it; the sum is compared with the plain one."""
    assert benchmark(simulated, inputs, identities, {}) >= 0


def test_one_process_with_dropouts(
    benchmark: BenchmarkFixture, inputs: Inputs, identities: Identities
) -> None:
    """The same, as many clients silent in the third step as the threshold allows."""
    silent = dict.fromkeys(list(inputs)[: CLIENTS - threshold_of(CLIENTS)], MaskingStep.MASK)
    assert benchmark(simulated, inputs, identities, silent) >= 0


def test_devices_and_server(
    benchmark: BenchmarkFixture, inputs: Inputs, identities: Identities
) -> None:
    """Nobody profits from another's work: what devices and server spend together."""
    _, (up, down) = benchmark(apart, inputs, identities)
    assert up > 8 * SIZE
    assert down > 0
