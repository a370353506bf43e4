"""Identities that seal and sign: an Ed25519 key and an HPKE key, in one file of PEM blocks.

A private file holds PKCS #8 blocks, the public one beside it SubjectPublicKeyInfo:
first Ed25519, then X25519 and, in the hybrid suite, ML-KEM-768. Other tools, and
:mod:`fedvtc_edge.sealing.signing`, read the first block and take the file for a signing key.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
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
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedvtc_edge.errors import KeyFileError

from . import points, signing

# ---------------------------------------------------------------- cipher suites
# The two cipher suites of envelopes: HPKE (RFC 9180), base mode, single shot.

DEFAULT = "hybrid"
"""Stands as long as either ML-KEM-768 or X25519 does: uploads kept today stay closed."""

X25519_BYTES = 32
MLKEM_BYTES = 1184

SEED_BYTES = X25519_BYTES + 64
"""Secret bytes of which a suite's keys follow: X25519's own, and ML-KEM's d and z (FIPS 203)."""

PrivateParts = tuple[X25519PrivateKey] | tuple[X25519PrivateKey, MLKEM768PrivateKey]
PublicParts = tuple[X25519PublicKey] | tuple[X25519PublicKey, MLKEM768PublicKey]
SealingPrivateKey = X25519PrivateKey | MLKEM768X25519PrivateKey
SealingPublicKey = X25519PublicKey | MLKEM768X25519PublicKey


def _curve(seed: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(seed[:X25519_BYTES])


@dataclass(frozen=True)
class Suite:
    """Algorithms by which is sealed to an identity, which has one suite for good.

    Args:
        number: In files and envelopes, 1…255.
        kem: Key encapsulation; the rest is HKDF-SHA256 and AES-256-GCM for all.
        public_bytes: Length of a raw public key: X25519, then ML-KEM.
        parts: Makes the private keys that it consists of, of :data:`SEED_BYTES` bytes.
    """

    name: str
    number: int
    kem: KEM
    public_bytes: int
    encapsulated_bytes: int
    parts: Callable[[bytes], PrivateParts]

    @cached_property
    def hpke(self) -> Hpke:
        """The primitive itself: ``encrypt`` and ``decrypt``."""
        return Hpke(self.kem, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

    def keys_of(self, seed: bytes) -> PrivateParts:
        """Private keys that follow from :data:`SEED_BYTES` secret bytes.

        Raises:
            KeyFileError: The installed OpenSSL has no ML-KEM.
        """
        try:
            return self.parts(seed)
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
            lambda seed: (_curve(seed), MLKEM768PrivateKey.from_seed_bytes(seed[X25519_BYTES:])),
        ),
        Suite("x25519", 2, KEM.X25519, X25519_BYTES, 32, lambda seed: (_curve(seed),)),
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


_ED25519_BYTES = 32
_LABEL = b"fedvtc-edge identity v1\0"
_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]{1,40})-----[^-]{1,16384}-----END \1-----\s*")
_HINT = "make an identity that signs and seals: fedvtc-edge keys new FILE"


@dataclass(frozen=True)
class PublicIdentity:
    """Public half of an :class:`Identity`: verifies what it signs, seals to it.

    Args:
        suite: ``hybrid`` or ``x25519``.
        verifying: Raw Ed25519 public key, 32 bytes.
        sealing: Raw HPKE public key: X25519 (32 bytes), then ML-KEM-768 (1184, hybrid only).

    Raises:
        KeyFileError: An unknown suite, or bytes that are no such keys; see :mod:`.points`.
    """

    suite: str
    verifying: bytes
    sealing: bytes

    def __post_init__(self) -> None:
        if not (len(self.verifying) == _ED25519_BYTES and self._valid()):
            raise KeyFileError("the bytes are no public identity", hint=_HINT)

    def _valid(self) -> bool:
        if not points.is_signing_key(self.verifying):
            return False
        if not points.is_agreement_key(self.sealing[:X25519_BYTES]):
            return False
        try:
            # Of small order, all secrets shared with such a key are zero: nobody's, so everybody's.
            X25519PrivateKey.generate().exchange(self._parts[0])
            return self._parts is not None and self.key is not None
        except ValueError:
            return False

    @cached_property
    def _parts(self) -> PublicParts:
        if len(self.sealing) != self.scheme.public_bytes:
            raise ValueError(len(self.sealing))
        curve = X25519PublicKey.from_public_bytes(self.sealing[:X25519_BYTES])
        if len(self.sealing) == X25519_BYTES:
            return (curve,)
        try:
            lattice = MLKEM768PublicKey.from_public_bytes(self.sealing[X25519_BYTES:])
        except UnsupportedAlgorithm:
            raise KeyFileError(
                "this installation of cryptography cannot use keys of suite hybrid",
                hint="pip install --upgrade cryptography",
            ) from None
        return curve, lattice

    @cached_property
    def scheme(self) -> Suite:
        """The suite itself."""
        return named(self.suite)

    @cached_property
    def key(self) -> Ed25519PublicKey:
        """Verifies what this identity signs."""
        return Ed25519PublicKey.from_public_bytes(self.verifying)

    @cached_property
    def sealing_key(self) -> SealingPublicKey:
        """Key that seals to this identity."""
        return combined_public(self._parts)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over a label and :meth:`to_bytes`: suite and both keys, 32 bytes."""
        return hashlib.sha256(_LABEL + self.to_bytes()).digest()

    @property
    def fingerprint(self) -> str:
        """``SHA256:`` and the base64 :attr:`digest`: short enough to read aloud."""
        return "SHA256:" + base64.b64encode(self.digest).decode().rstrip("=")

    def to_bytes(self) -> bytes:
        """Suite (1 byte), Ed25519 (32), HPKE (32 or 1216); the suite fixes the length."""
        return bytes([self.scheme.number]) + self.verifying + self.sealing

    @classmethod
    def from_bytes(cls, data: bytes) -> PublicIdentity:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            KeyFileError: No such bytes.
        """
        for suite in SUITES.values():
            if data[:1] == bytes([suite.number]):
                cut = 1 + _ED25519_BYTES
                return cls(suite.name, data[1:cut], data[cut:])
        raise KeyFileError("the bytes are no public identity", hint=_HINT)

    def to_pem(self) -> bytes:
        """Its keys as SubjectPublicKeyInfo in PEM: Ed25519, X25519, ML-KEM-768."""
        return b"".join(signing.public_pem(key) for key in (self.key, *self._parts))

    @classmethod
    def load(cls, path: Path) -> PublicIdentity:
        """Read a ``.pub`` file.

        Raises:
            KeyFileError: Missing, damaged, a private file, or a key that only signs.
        """
        data = signing.read(path)
        if b"PRIVATE KEY" in data:
            signing.load_public(path)  # refuses, and says what to give instead
        blocks = _blocks(data, path, b"PUBLIC KEY")
        try:
            keys = [serialization.load_pem_public_key(block) for block in blocks]
        except (ValueError, UnsupportedAlgorithm):
            raise _damaged(path) from None
        _check_kinds(keys, (Ed25519PublicKey, X25519PublicKey, MLKEM768PublicKey), path)
        verifying, *sealing = (key.public_bytes_raw() for key in keys)  # type: ignore[union-attr]
        return cls(_suite_of(sealing), verifying, b"".join(sealing))

    def save(self, path: Path) -> None:
        """Write the public file alone; an existing one is not replaced.

        Raises:
            KeyFileError: It exists, or cannot be written.
        """
        signing.write_new({path: (self.to_pem(), 0o644)})


class Identity:
    """A signing key and the private half of a sealing key: one party of a federation.

    Args:
        signing_key: Signs what this party sends, and bundles.
        parts: X25519 and, in the hybrid suite, ML-KEM-768: opens what is sealed to it.
    """

    def __init__(self, signing_key: Ed25519PrivateKey, parts: PrivateParts) -> None:
        self.signing_key = signing_key
        self.sealing_key: SealingPrivateKey = combined_private(parts)
        self._parts = parts
        self.public = PublicIdentity(
            _suite_of(parts),
            signing_key.public_key().public_bytes_raw(),
            b"".join(part.public_key().public_bytes_raw() for part in parts),
        )

    def __repr__(self) -> str:
        return f"<Identity {self.public.fingerprint}>"  # a secret in a log would be one no more

    @property
    def fingerprint(self) -> str:
        """Fingerprint of :attr:`public`."""
        return self.public.fingerprint

    @classmethod
    def generate(cls, suite: str = DEFAULT) -> Identity:
        """A new one from the operating system's entropy.

        Args:
            suite: ``hybrid`` or ``x25519``.

        Raises:
            KeyFileError: An unknown suite, or one that the installation lacks.
        """
        return cls(signing.generate(), named(suite).keys_of(secrets.token_bytes(SEED_BYTES)))

    @classmethod
    def derive(cls, secret: bytes, name: str, suite: str = DEFAULT) -> Identity:
        """The identity of a name: the same whenever it is asked for, and of no use without secret.

        Args:
            secret: 32 bytes of entropy, which stand for the identities of all names.
            name: Any text; other names have identities that are independent of it.
            suite: ``hybrid`` or ``x25519``.

        Raises:
            KeyFileError: An unknown suite, or one that the installation lacks.
        """
        label = b"fedvtc-edge identity of\0" + name.encode()
        seed = HKDF(hashes.SHA256(), _ED25519_BYTES + SEED_BYTES, None, label).derive(secret)
        signing_key = Ed25519PrivateKey.from_private_bytes(seed[:_ED25519_BYTES])
        return cls(signing_key, named(suite).keys_of(seed[_ED25519_BYTES:]))

    def save(self, path: Path, *, passphrase: str | None = None) -> Path:
        """Write ``path`` (0600) and the public file beside it, as ``.pub``; replaces nothing.

        Args:
            path: Of the private file.
            passphrase: Encrypts each block; None or empty leaves that to the permissions.

        Returns:
            The path of the public file.

        Raises:
            KeyFileError: One of the files exists or cannot be written; a passphrase
                that is too long.
        """
        blocks = [signing.private_pem(key, passphrase) for key in (self.signing_key, *self._parts)]
        return signing.save_pair(path, b"".join(blocks), self.public.to_pem())

    @classmethod
    def load(cls, path: Path, *, passphrase: str | None = None) -> Identity:
        """Read a private file.

        Raises:
            KeyFileError: Missing, damaged, locked, or a key that only signs.
        """
        blocks = _blocks(signing.read(path), path, b"PRIVATE KEY", b"ENCRYPTED PRIVATE KEY")
        keys = [signing.unlock(block, path, passphrase) for block in blocks]
        _check_kinds(keys, (Ed25519PrivateKey, X25519PrivateKey, MLKEM768PrivateKey), path)
        signing_key, *parts = keys
        signing.warn_if_open(path)
        return cls(signing_key, tuple(parts))  # type: ignore[arg-type]


def _suite_of(keys: Sequence[object]) -> str:
    return "x25519" if len(keys) == 1 else "hybrid"


def _blocks(data: bytes, path: Path, *labels: bytes) -> list[bytes]:
    """The PEM blocks of a file that holds nothing else.

    Text between them is refused: a damaged BEGIN line would otherwise hide a block, and
    a hybrid identity without its last block is an identity of the other suite.
    """
    found, end = [], 0
    while match := _BLOCK.match(data, end):
        if match[1] not in labels:
            raise _damaged(path)
        found.append(match[0])
        end = match.end()
    if not found or end != len(data):
        raise _damaged(path)
    return found


def _check_kinds(keys: Sequence[object], kinds: tuple[type, ...], path: Path) -> None:
    if len(keys) > len(kinds) or not all(map(isinstance, keys, kinds)):
        raise _damaged(path)
    if len(keys) == 1:
        raise KeyFileError(f"{path} signs but does not seal", hint=_HINT)


def _damaged(path: Path) -> KeyFileError:
    return KeyFileError(f"{path} is not an identity in PEM", hint=_HINT)
