"""The library's HPKE against the standard, by way of a slow twin written from RFC 9180.

The interface takes no associated data, and every published vector has some. So the twin
is held by the published vector, and library and twin open what the other seals.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedvtc_edge.sealing.identity import SUITES, combined_private

# RFC 9180, A.1.1: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM, base mode.
INFO = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
EPHEMERAL = "52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736"
RECIPIENT = "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8"
ENC = bytes.fromhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431")
SHARED = "fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc"
KEY, NONCE = "4531685d41d65f03dc48f6b8302c05b0", "56d890e5accaaf011cff4b7d"
PLAIN = bytes.fromhex("4265617574792069732074727574682c20747275746820626561757479")
AAD = b"Count-0"
CIPHER = (
    "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"
)

X25519_KEM, XWING_KEM = 0x0020, 0x647A
HKDF_SHA256, AES_128_GCM, AES_256_GCM = 1, 1, 2


def two(number: int) -> bytes:
    return number.to_bytes(2, "big")


def extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")


def expand(suite: bytes, key: bytes, label: bytes, info: bytes, size: int) -> bytes:
    block = two(size) + b"HPKE-v1" + suite + label + info
    return hmac.digest(key, block + b"\1", "sha256")[:size]  # at most 32 bytes: one block


def dhkem(secret: bytes, enc: bytes, public: bytes) -> bytes:
    suite = b"KEM" + two(X25519_KEM)
    prk = extract(suite, b"", b"eae_prk", secret)
    return expand(suite, prk, b"shared_secret", enc + public, 32)


def xwing(lattice: bytes, curve: bytes, enc: bytes, public: bytes) -> bytes:
    """The combiner of X-Wing (draft-connolly-cfrg-xwing-kem)."""
    return hashlib.sha3_256(lattice + curve + enc + public + rb"\.//^\ "[:-1]).digest()


def schedule(kem: int, aead: int, shared: bytes, info: bytes) -> tuple[bytes, bytes]:
    suite = b"HPKE" + two(kem) + two(HKDF_SHA256) + two(aead)
    hashes = [
        extract(suite, b"", label, x) for label, x in ((b"psk_id_hash", b""), (b"info_hash", info))
    ]
    context = b"\0" + b"".join(hashes)
    secret = extract(suite, shared, b"secret", b"")
    size = {AES_128_GCM: 16, AES_256_GCM: 32}[aead]
    key = expand(suite, secret, b"key", context, size)
    return key, expand(suite, secret, b"base_nonce", context, 12)


def x25519_shared(key: X25519PrivateKey, other: bytes) -> bytes:
    return key.exchange(X25519PublicKey.from_public_bytes(other))


@pytest.fixture(scope="module")
def recipient() -> Any:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(RECIPIENT))


def test_the_twin_is_the_standards(recipient: Any) -> None:
    ephemeral = X25519PrivateKey.from_private_bytes(bytes.fromhex(EPHEMERAL))
    public = recipient.public_key().public_bytes_raw()
    assert ephemeral.public_key().public_bytes_raw() == ENC
    shared = dhkem(x25519_shared(ephemeral, public), ENC, public)
    assert shared.hex() == SHARED
    assert shared == dhkem(x25519_shared(recipient, ENC), ENC, public)
    key, nonce = schedule(X25519_KEM, AES_128_GCM, shared, INFO)
    assert (key.hex(), nonce.hex()) == (KEY, NONCE)
    assert AESGCM(key).encrypt(nonce, PLAIN, AAD).hex() == CIPHER


def test_the_library_opens_what_the_twin_seals(recipient: Any) -> None:
    """The RFC's keys, ephemeral key and info, in our suite: AES-256 and no associated data."""
    public = recipient.public_key().public_bytes_raw()
    shared = dhkem(x25519_shared(recipient, ENC), ENC, public)
    key, nonce = schedule(X25519_KEM, AES_256_GCM, shared, INFO)
    sealed = ENC + AESGCM(key).encrypt(nonce, PLAIN, b"")
    hpke = SUITES["x25519"].hpke
    assert hpke.decrypt(sealed, recipient, INFO) == PLAIN
    with pytest.raises(InvalidTag):
        hpke.decrypt(sealed, recipient, INFO + b"\0")


def test_the_twin_opens_what_the_library_seals(recipient: Any) -> None:
    public = recipient.public_key()
    sealed = SUITES["x25519"].hpke.encrypt(PLAIN, public, INFO)
    enc, cipher = sealed[:32], sealed[32:]
    shared = dhkem(x25519_shared(recipient, enc), enc, public.public_bytes_raw())
    key, nonce = schedule(X25519_KEM, AES_256_GCM, shared, INFO)
    assert AESGCM(key).decrypt(nonce, cipher, b"") == PLAIN


def test_the_twin_opens_the_hybrid(recipient: Any) -> None:
    lattice = MLKEM768PrivateKey.from_seed_bytes(bytes(range(64)))
    private = combined_private((recipient, lattice))
    public = recipient.public_key().public_bytes_raw()
    suite = SUITES["hybrid"]
    sealed = suite.hpke.encrypt(PLAIN, private.public_key(), INFO)
    enc, cipher = sealed[: suite.encapsulated_bytes], sealed[suite.encapsulated_bytes :]
    curve = x25519_shared(recipient, enc[1088:])
    shared = xwing(lattice.decapsulate(enc[:1088]), curve, enc[1088:], public)
    key, nonce = schedule(XWING_KEM, AES_256_GCM, shared, INFO)
    assert AESGCM(key).decrypt(nonce, cipher, b"") == PLAIN
    assert suite.hpke.decrypt(sealed, private, INFO) == PLAIN


def test_the_published_vector_itself() -> None:
    """By a door that the library keeps for its own tests; it may be gone one day."""
    openssl = pytest.importorskip("cryptography.hazmat.bindings._rust").openssl
    open_ = getattr(openssl.hpke, "_decrypt_with_aad", None)
    if open_ is None:
        pytest.skip("this version of cryptography takes no associated data anywhere")
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
    key = X25519PrivateKey.from_private_bytes(bytes.fromhex(RECIPIENT))
    assert open_(suite, ENC + bytes.fromhex(CIPHER), key, INFO, AAD) == PLAIN
