"""An envelope with all its checks, beside its cipher alone."""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from pytest_benchmark.fixture import BenchmarkFixture

from fedvtc_edge.sealing import SUITES, Identity, TrustList, overhead, seal, unseal
from fedvtc_edge.wire.context import Context

CONTEXT = Context("0" * 32, 0, "client-00", "features")
NONCE = bytes(12)
"""Of ciphertexts that nobody ever gets: a nonce is used once, elsewhere."""


class Identities(NamedTuple):
    """Keys at both ends."""

    server: Identity
    client: Identity
    trusted: TrustList


@pytest.fixture(scope="module", params=sorted(SUITES))
def suite(request: pytest.FixtureRequest) -> str:
    """How keys are agreed on."""
    return str(request.param)


@pytest.fixture(scope="module", params=[10_000, 100_000, 1_000_000], ids=["10kB", "100kB", "1MB"])
def payload(request: pytest.FixtureRequest) -> bytes:
    """What travels."""
    return os.urandom(request.param)


@pytest.fixture
def group(suite: str, payload: bytes) -> str:
    """A group per suite and size."""
    return f"sealing of {len(payload) // 1000} kB, {suite}"


@pytest.fixture(scope="module")
def identities(suite: str) -> Identities:
    """With new keys."""
    server, client, trusted = Identity.generate(suite), Identity.generate(suite), TrustList()
    trusted.add(CONTEXT.sender, client.public)
    return Identities(server, client, trusted)


@pytest.mark.floor
def test_aes_256_gcm(benchmark: BenchmarkFixture, payload: bytes) -> None:
    """The envelope's own cipher, with a key that is there."""
    cipher = AESGCM(AESGCM.generate_key(256))
    assert cipher.decrypt(NONCE, benchmark(cipher.encrypt, NONCE, payload, None), None) == payload


def test_chacha20_poly1305(benchmark: BenchmarkFixture, payload: bytes) -> None:
    """The cipher of processors without AES instructions."""
    cipher = ChaCha20Poly1305(ChaCha20Poly1305.generate_key())
    assert cipher.decrypt(NONCE, benchmark(cipher.encrypt, NONCE, payload, None), None) == payload


def test_seal(benchmark: BenchmarkFixture, payload: bytes, identities: Identities) -> None:
    """Agree on a key, encrypt, sign."""
    envelope = benchmark(
        seal, payload, recipient=identities.server.public, sender=identities.client, context=CONTEXT
    )
    benchmark.extra_info["overhead"] = len(envelope) - len(payload)  # bytes
    assert benchmark.extra_info["overhead"] == overhead(identities.server.public)


def test_unseal(benchmark: BenchmarkFixture, payload: bytes, identities: Identities) -> None:
    """Check the signature, agree on a key, decrypt."""
    server, client, trusted = identities
    envelope = seal(payload, recipient=server.public, sender=client, context=CONTEXT)
    opened = benchmark(unseal, envelope, recipient=server, trusted=trusted, context=CONTEXT)
    assert opened == payload
