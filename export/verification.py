"""Every byte of a bundle is what was hashed, and the manifest what was signed.

All of this happens before any graph is parsed: a parser is the part of a device
that an attacker would aim at.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from fedvtc_edge.errors import BundleError, VerificationError

from .manifest import ANCHOR, MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, Manifest

if TYPE_CHECKING:
    from fedvtc_edge.sealing.signing import PublicKey

_SIGNATURE_BYTES = 64
_HINT = "fetch the bundle again from whoever exported it, or export it again"


@dataclass(frozen=True, eq=False)
class Verified:
    """A bundle whose files were, when looked at, what its manifest says.

    Args:
        signer: Fingerprint of the key that its signature was checked with, or None.
        signed: Whether there is a signature, checked or not.
        extractor: The file that the bundle names and does not hold, where it was given.
    """

    folder: Path
    manifest: Manifest
    signer: str | None
    signed: bool
    extractor: Path | None = None

    def read(self, name: str) -> bytes:
        """Content of one file, checked again: it may have changed since.

        Raises:
            VerificationError: It has.
            BundleError: The bundle names this file, and it was not given.
        """
        expected = self.manifest.file(name)
        with self._open(name) as file:
            data = file.read(expected.size + 1)
        _compare(name, len(data), expected.size, hashlib.sha256(data), expected.sha256)
        return data

    def check(self, name: str) -> None:
        """Hash one file again, in pieces: for what is too large to be held.

        Raises:
            VerificationError: It is not what the manifest says.
            BundleError: The bundle names this file, and it was not given.
        """
        expected = self.manifest.file(name)
        with self._open(name) as file:
            size = os.fstat(file.fileno()).st_size
            # Size first: a file that grew to gigabytes is not worth hashing.
            digest = hashlib.file_digest(file, "sha256") if size == expected.size else None
        _compare(name, size, expected.size, digest, expected.sha256)

    def _open(self, name: str) -> BufferedReader:
        if name != ANCHOR or self.manifest.referenced is None:
            return _open(self.folder, name)
        if self.extractor is None:
            raise BundleError(
                f"this bundle names its extractor, sha256 {self.manifest.referenced.sha256[:16]}…, "
                "and does not hold it",
                hint="give --extractor FILE: extractor.onnx, which export wrote beside the bundles",
            )
        if not self.extractor.exists():
            raise BundleError(
                f"{self.extractor}: no such file", hint="give the extractor.onnx that export wrote"
            )
        real = self.extractor.resolve()  # a link that the user names leads where it may
        return _open(real.parent, real.name)


def verify(
    path: str | os.PathLike[str],
    public_key: PublicKey | None = None,
    *,
    extractor: str | os.PathLike[str] | None = None,
) -> Verified:
    """Check a bundle against its manifest, and that against a key.

    Args:
        path: The bundle's folder.
        public_key: Ed25519 key, its PEM, or the path of a file of it. None checks
            hashes alone: against damage, not against a forger.
        extractor: The extractor's file, where the bundle names it and does not hold it;
            without it all else is checked.

    Raises:
        BundleError: No such folder, or an extractor for a bundle that holds its own.
        KeyFileError: The key cannot be used.
        VerificationError: A file is missing, unlisted, a link, changed; the manifest
            cannot be understood; with a key, the signature is missing or wrong.
    """
    folder = Path(path)
    if not os.path.isdir(folder):  # unlike Path.is_dir, it takes names that are too long
        what = "not a folder" if os.path.exists(folder) else "no such folder"
        raise BundleError(f"{path}: {what}", hint="give a folder that export wrote")
    names = set(os.listdir(folder))
    if MANIFEST not in names:
        raise VerificationError(
            f"{path} is no bundle: {MANIFEST} is missing", hint=_no_bundle(folder)
        )
    data = _bounded(folder, MANIFEST, MAX_MANIFEST_BYTES)
    signature = None
    if SIGNATURE in names:
        signature = _bounded(folder, SIGNATURE, _SIGNATURE_BYTES)
        if len(signature) != _SIGNATURE_BYTES:
            raise VerificationError(
                f"{SIGNATURE}: {len(signature)} bytes, expected {_SIGNATURE_BYTES}", hint=_HINT
            )
    signer = None if public_key is None else _check_signature(public_key, signature, data)
    manifest = Manifest.from_bytes(data)
    _check_names(folder, names - {MANIFEST, SIGNATURE}, set(manifest.files))
    given = None if extractor is None else Path(extractor)
    verified = Verified(folder, manifest, signer, signature is not None, given)
    for name in manifest.files:
        verified.check(name)
    if given is not None:
        if manifest.referenced is None:
            raise BundleError(
                f"{path} holds all of its graphs and needs no extractor",
                hint="leave --extractor out",
            )
        verified.check(ANCHOR)
    return verified


def _check_signature(public_key: PublicKey, signature: bytes | None, data: bytes) -> str:
    from fedvtc_edge.sealing import (
        signing,  # a device that checks no signature needs no cryptography
    )

    key = signing.load_public(public_key)
    name = signing.fingerprint(key)
    if signature is None:
        raise VerificationError(
            f"{SIGNATURE} is missing: nobody signed this bundle, expected {name}",
            hint="export it with --sign, or ask whoever exported it",
        )
    if not signing.is_signed(key, signature, data):
        raise VerificationError(
            f"{SIGNATURE} is not {name}'s signature of {MANIFEST}",
            hint="it was signed by another key or changed since: do not use it",
        )
    return name


def _check_names(folder: Path, found: set[str], listed: set[str]) -> None:
    for name in sorted(found - listed):
        kind = "a link" if (folder / name).is_symlink() else "not listed in the manifest"
        raise VerificationError(f"{name[:120]}: {kind}", hint=_HINT)
    for name in sorted(listed - found):
        raise VerificationError(f"{name} is missing", hint=_HINT)


def _compare(name: str, size: int, expected: int, digest: object, sha256: str) -> None:
    if size != expected:
        raise VerificationError(f"{name}: {size} bytes, expected {expected}", hint=_HINT)
    actual = digest.hexdigest()  # type: ignore[attr-defined]
    if actual != sha256:
        raise VerificationError(
            f"{name}: SHA-256 {actual[:16]}…, expected {sha256[:16]}…", hint=_HINT
        )


def _bounded(folder: Path, name: str, limit: int) -> bytes:
    with _open(folder, name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise VerificationError(f"{name}: more than {limit} bytes", hint=_HINT)
    return data


def _open(folder: Path, name: str) -> BufferedReader:
    """Open a regular file; a link would lead out of what is verified, a pipe would block."""
    path = folder / name
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            what = "a link" if stat.S_ISLNK(mode) else "not a regular file"
            raise VerificationError(f"{name}: {what}", hint=_HINT)
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        file = os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # exchanged since the look at it
            file.close()
            raise VerificationError(f"{name}: not a regular file", hint=_HINT)
        return file
    except OSError as error:
        raise VerificationError(f"{name}: {error.strerror}", hint=_HINT) from None


def _no_bundle(folder: Path) -> str:
    inside = sorted(entry.name for entry in folder.iterdir() if (entry / MANIFEST).is_file())
    if inside:
        return f"it holds bundles; give one of them: {folder / inside[0]}"
    return "give a folder that export wrote"
