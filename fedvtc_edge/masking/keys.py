"""Keys of one masked sum: made anew for it, bound to it, each used for one thing.

Everything is derived by HKDF-SHA256 (RFC 5869) with a label and the digest of the plan,
which holds run, round and kind: no two sums ever have a key in common, so no
pseudo-random stream masks two vectors.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedvtc_edge.signing import is_signed, sign

from .errors import MaskingError
from .plan import Plan

Vector = NDArray[np.unsignedinteger]

Pair = tuple[int, int]
"""Indices of two clients, the lower one first."""

_LABEL = b"fedvtc-edge masking 1 "
PAIR = struct.Struct(">HH")
SIGNED_BYTES, ADVERT_BYTES = 96, 160


@dataclass(frozen=True)
class Advert:
    """What a client shows of itself in step 0.

    Args:
        encryption: X25519 public key for the shares, 32 bytes.
        masking: X25519 public key for the pairwise masks, 32 bytes.
        commitment: SHA-256 of the self-mask's seed, 32 bytes.
    """

    encryption: bytes
    masking: bytes
    commitment: bytes

    def to_bytes(self) -> bytes:
        """The 96 bytes that are signed."""
        return self.encryption + self.masking + self.commitment

    @classmethod
    def from_bytes(cls, data: bytes) -> Advert:
        """Read what :meth:`to_bytes` wrote; the signature after it is left alone."""
        return cls(data[:32], data[32:64], data[64:SIGNED_BYTES])


def signed_advert(plan: Plan, client: str, advert: Advert, identity: Ed25519PrivateKey) -> bytes:
    """The advert and the identity's signature over label, plan, context and keys, 160 bytes."""
    body = advert.to_bytes()
    return body + sign(identity, _to_be_signed(plan, client, body))


def verified_advert(plan: Plan, client: str, data: bytes) -> Advert:
    """Read an advert of 160 bytes and check whose it is.

    Raises:
        MaskingError: It is not signed by the client's trusted key for this very plan.
    """
    body = data[:SIGNED_BYTES]
    key = plan.raw_keys[plan.index_of(client)]
    if not _is_signed(key, data[SIGNED_BYTES:], _to_be_signed(plan, client, body)):
        raise MaskingError(
            f"the keys of {client} are not signed by its identity for this sum",
            hint="another run, round, kind or list of clients, or somebody in between",
        )
    return Advert.from_bytes(body)


def _to_be_signed(plan: Plan, client: str, body: bytes) -> bytes:
    return _LABEL + b"advert\0" + plan.digest + plan.contexts[client] + body


@lru_cache(maxsize=4096)
def _is_signed(key: bytes, signature: bytes, data: bytes) -> bool:
    """Remembered: where one process plays all clients, each signature is checked once.

    All three are public and the answer depends on nothing else, so that nobody's
    remembered answer can be wrong for somebody else. A device never asks twice.
    """
    return is_signed(Ed25519PublicKey.from_public_bytes(key), signature, data)


def forget_signatures() -> None:
    """Forget which signatures were right, for measuring what checking them costs."""
    _is_signed.cache_clear()


def commitment_of(plan: Plan, index: int, seed: bytes) -> bytes:
    """SHA-256 of a self-mask's seed: 128 random bits need no further blinding."""
    return hashlib.sha256(
        _LABEL + b"seed\0" + plan.digest + PAIR.pack(index, index) + seed
    ).digest()


def masking_key(plan: Plan, index: int, root: bytes) -> X25519PrivateKey:
    """The key pair for pairwise masks, from the 16 bytes that are shared in its stead."""
    derived = derive(root, b"masking key", plan.digest + PAIR.pack(index, index), 32)
    return X25519PrivateKey.from_private_bytes(derived)


def self_mask(plan: Plan, index: int, seed: bytes) -> Vector:
    """PRG(b_u), [size]."""
    return _expand(plan, derive(seed, b"self mask", plan.digest + PAIR.pack(index, index), 32))


def pair_mask(plan: Plan, view: bytes, secret: bytes, pair: Pair) -> Vector:
    """PRG(s_uv), [size], the same for both of the pair.

    Args:
        plan: Public.
        view: Digest of all adverts.
        secret: What their masking keys agree on.
        pair: Both, the lower index first.
    """
    info = plan.digest + view + PAIR.pack(*pair)
    return _expand(plan, derive(secret, b"pair mask", info, 32))


Agreement = Callable[[X25519PrivateKey, bytes], bytes]
"""A private key and another's public one to the secret that both agree on."""


def agree(own: X25519PrivateKey, theirs: bytes) -> bytes:
    """X25519 (RFC 7748), 32 bytes; to be derived from, never used as a key itself.

    Raises:
        MaskingError: A public key of small order, with which no secret can be agreed on.
    """
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:  # RFC 7748, section 6.1: the all-zero result is refused
        raise MaskingError(
            "a public key with which no secret can be agreed on",
            hint="its sender is broken or lies",
        ) from None


def derive(secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 of a secret, for one labelled purpose."""
    return HKDF(hashes.SHA256(), length, None, _LABEL + label + b"\0" + info).derive(secret)


def _expand(plan: Plan, key: bytes) -> Vector:
    """ChaCha20's key stream as numbers of the plan's modulus.

    Counter and nonce are zero: the key was derived for this one stream.
    """
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(plan.size * plan.dtype.itemsize)), plan.dtype)
