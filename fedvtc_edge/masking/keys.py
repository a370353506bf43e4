"""Keys of one masked sum: made anew for it, bound to it, each used for one thing.

Everything is derived by HKDF-SHA256 (RFC 5869) with a label and the digest of the plan,
which holds run, round and kind: no two sums ever have a key in common, so no
pseudo-random stream masks two vectors.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import mul

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedvtc_edge.sealing import points
from fedvtc_edge.sealing.signing import is_signed, sign

from .plan import MaskingError, MaskingPlan

Vector = NDArray[np.unsignedinteger]

Pair = tuple[int, int]
"""Indices of two clients, the lower one first."""

_LABEL = b"fedvtc-edge masking 1 "
PAIR = struct.Struct(">HH")
SIGNED_BYTES, ADVERT_BYTES = 96, 160


@dataclass(frozen=True)
class Advert:
    """Public keys and commitment that a client sends in step 0.

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


def signed_advert(
    plan: MaskingPlan, client: str, advert: Advert, identity: Ed25519PrivateKey
) -> bytes:
    """The advert and the identity's signature over label, plan, context and keys, 160 bytes."""
    body = advert.to_bytes()
    return body + sign(identity, _to_be_signed(plan, client, body))


def verified_advert(plan: MaskingPlan, client: str, data: bytes) -> Advert:
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


def _to_be_signed(plan: MaskingPlan, client: str, body: bytes) -> bytes:
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


def commitment_of(plan: MaskingPlan, index: int, seed: bytes) -> bytes:
    """SHA-256 of a self-mask's seed: 128 random bits need no further blinding."""
    return hashlib.sha256(
        _LABEL + b"seed\0" + plan.digest + PAIR.pack(index, index) + seed
    ).digest()


def masking_key(plan: MaskingPlan, index: int, root: bytes) -> X25519PrivateKey:
    """The key pair for pairwise masks, from the 16 bytes that are shared in its stead."""
    derived = derive(root, b"masking key", plan.digest + PAIR.pack(index, index), 32)
    return X25519PrivateKey.from_private_bytes(derived)


def self_mask(plan: MaskingPlan, index: int, seed: bytes) -> Vector:
    """PRG(b_u), [size]."""
    return _expand(plan, derive(seed, b"self mask", plan.digest + PAIR.pack(index, index), 32))


def pair_mask(plan: MaskingPlan, view: bytes, secret: bytes, pair: Pair) -> Vector:
    """PRG(s_uv), [size], the same for both of the pair.

    Args:
        plan: Public.
        view: Digest of all adverts.
    """
    info = plan.digest + view + PAIR.pack(*pair)
    return _expand(plan, derive(secret, b"pair mask", info, 32))


Agreement = Callable[[X25519PrivateKey, bytes], bytes]
"""A private key and another's public one to the secret that both agree on."""


def agree(own: X25519PrivateKey, theirs: bytes) -> bytes:
    """X25519 (RFC 7748), 32 bytes; to be derived from, never used as a key itself.

    Raises:
        MaskingError: A public key of small order, with which no secret can be agreed on, or in
            another spelling than its own.
    """
    try:
        if not points.is_agreement_key(theirs):
            raise ValueError(theirs)
        return own.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:  # RFC 7748, section 6.1: the all-zero result is refused
        raise MaskingError(
            "a public key with which no secret can be agreed on",
            hint="its sender is broken or lies",
        ) from None


def derive(secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 of a secret, for one labelled purpose."""
    return HKDF(hashes.SHA256(), length, None, _LABEL + label + b"\0" + info).derive(secret)


def _expand(plan: MaskingPlan, key: bytes) -> Vector:
    """ChaCha20's key stream as numbers of the plan's modulus.

    Counter and nonce are zero: the key was derived for this one stream.
    """
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(plan.size * plan.dtype.itemsize)), plan.dtype)


# ---------------------------------------------------------------- secret sharing
# Shamir's secret sharing (1979) of 16-byte secrets, over the integers modulo 2^130 - 5.
#
# Written here because the libraries are too slow for a hundred clients
# (docs/decisions/0015): each of them interpolates anew for every secret, and for a
# hundred secrets shared among the same clients the weights are the same. Nothing in it
# is a cipher: it is the evaluation of a polynomial, and its security does not rest on
# anything that is hard to compute.

PRIME = 2**130 - 5
"""Above 2^128, so that every secret is an element; Poly1305's, known to be prime."""

SECRET_BYTES, SHARE_BYTES = 16, 17


def split(secret: bytes, points: tuple[int, ...], threshold: int) -> list[int]:
    """One share per point; any ``threshold`` of them give the secret, fewer tell nothing.

    Guarantee: for every set of threshold - 1 points the shares are uniform and
    independent of the secret: the polynomial's other coefficients are drawn afresh and
    uniformly from the operating system's entropy.

    Args:
        secret: 16 bytes.
        points: Distinct, 1 to 65,535; never 0, where the polynomial is the secret.
        threshold: Number of shares that rebuild it, at least 1.

    Returns:
        Shares in the order of the points, each below the prime.
    """
    # Not Horner's rule: a sum of products runs in C, and one reduction at its end is enough.
    coefficients = [
        int.from_bytes(secret, "big"),
        *(secrets.randbelow(PRIME) for _ in range(threshold - 1)),
    ]
    return [sum(map(mul, coefficients, _powers(point, threshold))) % PRIME for point in points]


def combine(shares: Mapping[int, int]) -> int:
    """The polynomial of degree below ``len(shares)`` through all of them, at 0.

    Args:
        shares: Share by point; exactly as many as the threshold.

    Returns:
        0 to the prime - 1; a number of 2^128 or more was no secret.
    """
    value: int = sum(map(mul, shares.values(), _weights(tuple(shares)))) % PRIME
    return value


@lru_cache(maxsize=2048)  # points and powers are public
def _powers(point: int, count: int) -> tuple[int, ...]:
    powers = [1]
    for _ in range(count - 1):
        powers.append(powers[-1] * point % PRIME)
    return tuple(powers)


@lru_cache(maxsize=256)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights for the value at 0: Π x_m / (x_m - x_j) over m ≠ j."""
    weights = []
    for here in points:
        above = below = 1
        for other in points:
            if other != here:
                above = above * other % PRIME
                below = below * (other - here) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
