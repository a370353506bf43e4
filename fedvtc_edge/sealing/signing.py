"""Ed25519 keys (RFC 8032) that sign what goes to a device, in files that other tools read.

Private keys are PKCS #8, public ones SubjectPublicKeyInfo, both PEM: ``openssl``
makes and checks the same. Only the device's side of a signature, the public key,
is no secret.
"""

from __future__ import annotations

import base64
import hashlib
import os
import warnings
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from fedvtc_edge.errors import FedVTCWarning, KeyFileError
from fedvtc_edge.storage.atomic import write_atomic

from . import points

SIGNATURE_BYTES = 64
PASSPHRASE = "FEDVTC_PASSPHRASE"  # noqa: S105  (a name, not the secret)
"""Environment variable with the passphrase of private keys: never typed on a command line."""

_LARGEST_FILE = 65_536
_LONGEST_PASSPHRASE = 1023  # in bytes; OpenSSL's limit

PublicKey = Ed25519PublicKey | bytes | str | os.PathLike[str]
"""A public key, its PEM bytes, or the path of a file of them."""


def generate() -> Ed25519PrivateKey:
    """A new key from the operating system's entropy."""
    return Ed25519PrivateKey.generate()


def save(key: Ed25519PrivateKey, path: Path, *, passphrase: str | None = None) -> Path:
    """Write the private key to ``path`` (0600) and the public one beside it, as ``.pub``.

    Args:
        path: Of the private key; neither file may exist, so that no key is ever lost.
        passphrase: Encrypts the private key at rest; None or empty leaves that to
            the file's permissions.

    Returns:
        The path of the public key.

    Raises:
        KeyFileError: A file of that name exists, or none can be written there; a
            passphrase that is too long.
    """
    return save_pair(path, private_pem(key, passphrase), public_pem(key.public_key()))


def save_pair(path: Path, private: bytes, public: bytes) -> Path:
    """Write a private key file (0600) and, beside it as ``.pub``, its public one.

    Raises:
        KeyFileError: As :func:`save`.
    """
    if os.path.isdir(path):
        raise KeyFileError(f"{path} is a folder", hint="give the name of a new file in it")
    public_path = path.with_name(path.name + ".pub")
    write_new({public_path: (public, 0o644), path: (private, 0o600)})
    return public_path


def write_new(files: dict[Path, tuple[bytes, int]]) -> None:
    """Write key files, each with its content and permissions, where none stands.

    Raises:
        KeyFileError: One exists, and then none is written; or none can be written there.
    """
    for path in reversed(files):
        if os.path.lexists(path):
            raise KeyFileError(f"{path} exists", hint="choose another name: keys are not replaced")
    for path, (data, mode) in files.items():
        try:
            write_atomic(path, data, mode=mode)
        except OSError as error:
            raise KeyFileError(
                f"cannot write {[*files][-1]}: {error.strerror}",
                hint="choose a folder that exists",
            ) from None


def private_pem(key: PrivateKeyTypes, passphrase: str | None = None) -> bytes:
    """A private key of any kind as PKCS #8 in PEM, encrypted where there is a passphrase.

    Raises:
        KeyFileError: A passphrase that is too long.
    """
    locked: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        secret = _encoded(passphrase)
        if len(secret) > _LONGEST_PASSPHRASE:
            raise KeyFileError(
                f"a passphrase of {len(secret)} bytes, expected at most {_LONGEST_PASSPHRASE}",
                hint=f"shorten {PASSPHRASE}",
            )
        locked = serialization.BestAvailableEncryption(secret)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)


def public_pem(key: PublicKeyTypes) -> bytes:
    """A public key of any kind as SubjectPublicKeyInfo in PEM."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def fingerprint(key: Ed25519PublicKey) -> str:
    """``SHA256:`` and the base64 digest of the raw 32 bytes: short enough to read aloud."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")


def load_private(path: Path, *, passphrase: str | None = None) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        KeyFileError: Missing, damaged, locked, or not an Ed25519 private key.
    """
    key = unlock(read(path), path, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(
            f"{path} holds a key of another kind, expected Ed25519",
            hint="make one: fedvtc-edge keys new FILE",
        )
    warn_if_open(path)
    return key


def unlock(data: bytes, path: Path, passphrase: str | None) -> PrivateKeyTypes:
    """The first private key in PEM bytes, of whatever kind.

    Args:
        data: PEM.
        path: Where they were read, for messages.
        passphrase: Ignored for a key that is not locked.

    Raises:
        KeyFileError: Damaged, or locked with another passphrase.
    """
    secret = _encoded(passphrase) if passphrase else None
    try:
        return serialization.load_pem_private_key(data, secret)
    except TypeError as error:  # a passphrase too few, or one too many
        if secret is None:
            raise KeyFileError(
                f"{path} is locked with a passphrase", hint=f"set it in {PASSPHRASE}"
            ) from None
        if "not encrypted" not in str(error):
            raise
        return unlock(data, path, None)
    except (ValueError, UnsupportedAlgorithm):
        if b"ENCRYPTED" in data and secret:
            raise KeyFileError(
                f"{path} cannot be unlocked with this passphrase", hint=f"check {PASSPHRASE}"
            ) from None
        raise KeyFileError(
            f"{path} is not an Ed25519 private key in PEM",
            hint="make one: fedvtc-edge keys new FILE",
        ) from None


def load_public(source: PublicKey) -> Ed25519PublicKey:
    """A public key from itself, PEM bytes or a file.

    Raises:
        KeyFileError: Missing, damaged, not an Ed25519 public key, or one of small order.
    """
    if isinstance(source, Ed25519PublicKey):
        return _sound(source, "the key")
    data, where = (
        (source, "the key") if isinstance(source, bytes) else (read(Path(source)), str(source))
    )
    if b"PRIVATE KEY" in data:
        raise KeyFileError(
            f"{where} is a private key, expected the public one",
            hint="give the file that ends in .pub; the private key stays where it signs",
        )
    key: object
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(
            f"{where} is not an Ed25519 public key in PEM",
            hint="fedvtc-edge keys new FILE writes one beside the private key, as FILE.pub",
        )
    return _sound(key, where)


def _sound(key: Ed25519PublicKey, where: str) -> Ed25519PublicKey:
    if not points.is_signing_key(key.public_bytes_raw()):
        raise KeyFileError(
            f"{where} is a key under which anybody can sign",
            hint="nobody makes such a key by chance: ask whoever gave it",
        )
    return key


def sign(key: Ed25519PrivateKey, data: bytes) -> bytes:
    """Ed25519 over exactly these bytes, [64]; the same input gives the same signature."""
    return key.sign(data)


def is_signed(key: Ed25519PublicKey, signature: bytes, data: bytes) -> bool:
    """True if ``signature`` is of ``key`` and of exactly these bytes."""
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _encoded(passphrase: str) -> bytes:
    return passphrase.encode(errors="surrogateescape")  # os.environ's way with odd bytes


def warn_if_open(path: Path) -> None:
    """Warn of a private key file that other accounts of the machine can read."""
    mode = path.stat().st_mode & 0o777
    if os.name == "posix" and mode & 0o077:
        warnings.warn(
            f"the private key {path} is open to others (mode {mode:04o}): chmod 600 {path}",
            FedVTCWarning,
            stacklevel=3,
        )


def read(path: Path) -> bytes:
    """The bytes of a key file, 65,536 at most.

    Raises:
        KeyFileError: No file, unreadable or too large.
    """
    try:
        if not path.is_file():  # a pipe or a device would be waited for
            raise FileNotFoundError(2, "no such file")
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise KeyFileError(
            f"cannot read the key {path}: {error.strerror}", hint="check the path"
        ) from None
    if len(data) > _LARGEST_FILE:
        raise KeyFileError(f"{path} is too large for a key", hint="check the path")
    return data
