"""The two cipher suites of envelopes: HPKE (RFC 9180), base mode, single shot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
)
from cryptography.hazmat.primitives.hpke import Suite as Hpke

from fedvtc_edge.errors import KeyFileError

DEFAULT = "hybrid"
"""Stands as long as either ML-KEM-768 or X25519 does: uploads kept today stay closed."""

X25519_BYTES = 32
MLKEM_BYTES = 1184

PrivateParts = tuple[X25519PrivateKey] | tuple[X25519PrivateKey, MLKEM768PrivateKey]
PublicParts = tuple[X25519PublicKey] | tuple[X25519PublicKey, MLKEM768PublicKey]
SealingPrivateKey = X25519PrivateKey | MLKEM768X25519PrivateKey
SealingPublicKey = X25519PublicKey | MLKEM768X25519PublicKey


@dataclass(frozen=True)
class Suite:
    """What an identity seals with. An identity has one suite, for good.

    Args:
        name: As typed and printed.
        number: In files and envelopes, 1…255.
        kem: Key encapsulation; the rest is HKDF-SHA256 and AES-256-GCM for all.
        public_bytes: Length of a raw public key: X25519, then ML-KEM.
        encapsulated_bytes: What stands before the ciphertext.
        parts: Makes the private keys that it consists of.
    """

    name: str
    number: int
    kem: KEM
    public_bytes: int
    encapsulated_bytes: int
    parts: Callable[[], PrivateParts]

    @cached_property
    def hpke(self) -> Hpke:
        """The primitive itself: ``encrypt`` and ``decrypt``."""
        return Hpke(self.kem, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

    def generate(self) -> PrivateParts:
        """New private keys from the operating system's entropy.

        Raises:
            KeyFileError: The installed OpenSSL has no ML-KEM.
        """
        try:
            return self.parts()
        except UnsupportedAlgorithm:
            raise KeyFileError(
                f"this installation of cryptography cannot make keys of suite {self.name}",
                hint="pip install --upgrade cryptography, or take the suite x25519",
            ) from None


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "hybrid",
            1,
            KEM.MLKEM768_X25519,
            X25519_BYTES + MLKEM_BYTES,
            1088 + 32,  # ML-KEM ciphertext, X25519 public key of one use
            lambda: (X25519PrivateKey.generate(), MLKEM768PrivateKey.generate()),
        ),
        Suite("x25519", 2, KEM.X25519, X25519_BYTES, 32, lambda: (X25519PrivateKey.generate(),)),
    )
}
"""Every suite by name; there is no other, and nothing negotiates."""


def combined_private(parts: PrivateParts) -> SealingPrivateKey:
    """The key that HPKE takes."""
    if len(parts) == 1:
        return parts[0]
    return MLKEM768X25519PrivateKey(parts[1], parts[0])


def combined_public(parts: PublicParts) -> SealingPublicKey:
    """The key that HPKE takes."""
    if len(parts) == 1:
        return parts[0]
    return MLKEM768X25519PublicKey(parts[1], parts[0])


def named(name: str) -> Suite:
    """The suite of that name.

    Raises:
        KeyFileError: There is none.
    """
    if name not in SUITES:
        raise KeyFileError(
            f"suite {name!r:.80} is unknown", hint=f"expected one of {', '.join(SUITES)}"
        )
    return SUITES[name]
