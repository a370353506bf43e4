"""Refresh of a bundle's statistics, without torch and without a new export."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedvtc_edge import wire
from fedvtc_edge.errors import BundleError
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.storage.atomic import new_folder, recover_folder, write_atomic

from .codes import Codes
from .manifest import STATISTICS, File, Manifest, write_manifest
from .verification import verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from fedvtc_edge.sealing.signing import PublicKey

_SLACK = 4096


def refresh(
    path: str | os.PathLike[str],
    statistics: str | os.PathLike[str],
    *,
    signing_key: Ed25519PrivateKey | None = None,
    public_key: PublicKey | None = None,
    trust_unsigned: bool = False,
) -> Manifest:
    """Put what a server published later into a bundle, and raise its revision.

    The bundle is replaced as a whole: a device sees the old one, the new one or, for
    an instant, none; never a mixture.

    Args:
        path: The bundle's folder.
        statistics: A ``statistics.safetensors`` as a run publishes it.
        signing_key: Signs the new manifest; needed where the old one is signed.
        public_key: Of the old signature, which must then be there; None takes the
            public part of ``signing_key`` if it is.
        trust_unsigned: Sign a bundle that nobody signed so far. Whoever strips a
            signature must not get a new one for the asking.

    Returns:
        The new manifest.

    Raises:
        BundleError: Statistics that do not fit; a signed bundle without a key, or a
            key for an unsigned one without ``trust_unsigned``.
        VerificationError: The bundle is not what was exported or signed.
        WireError: The statistics are damaged.
    """
    folder = Path(path).resolve()  # "." has no name to replace, and a link is none to rename
    recover_folder(folder)
    verified = verify(folder, public_key)
    if signing_key is not None and not verified.signed and not trust_unsigned:
        raise BundleError(
            f"{path} is not signed: to sign it now would vouch for whatever it holds",
            hint="export it again with --sign, or say --trust-unsigned",
        )
    if verified.signed:
        if signing_key is None:
            raise BundleError(
                f"{path} is signed, and would lose its signature",
                hint="sign it again: --sign KEY",
            )
        verified = verify(folder, public_key or signing_key.public_key())
    manifest = verified.manifest
    if STATISTICS not in manifest.files:
        raise BundleError(
            f"{path}: the method {manifest.method!r} published no statistics",
            hint="only bundles of method.name = fedvtc hold any",
        )
    codes = Codes.read(verified).refreshed(_published(Path(statistics), manifest))
    # What was measured of the combined prediction holds for the statistics it was measured with.
    accuracy = {k: v for k, v in manifest.accuracy.items() if not k.startswith("calibrated")}
    with new_folder(folder) as scratch:
        for name in manifest.files:
            if name != STATISTICS:
                shutil.copyfile(folder / name, scratch / name)
        write_atomic(scratch / STATISTICS, codes.to_bytes())
        renewed = replace(
            manifest,
            revision=manifest.revision + 1,
            files=manifest.files | {STATISTICS: File.of(scratch / STATISTICS)},
            accuracy=accuracy,
        )
        write_manifest(scratch, renewed, signing_key)
        verify(scratch, signing_key.public_key() if signing_key else None)
    return renewed


def _published(path: Path, manifest: Manifest) -> GlobalStatistics:
    classes, width = len(manifest.classes), manifest.anchor or manifest.latent
    limit = 4 * (classes + 2 * classes * width + width * (width + 1) // 2) + _SLACK
    try:
        if not path.is_file():
            raise BundleError(f"{path}: no such file", hint="give a run's statistics.safetensors")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}", hint="check the path") from None
    if len(data) > limit:
        raise BundleError(
            f"{path}: over {limit} bytes, more than statistics of this bundle's shape have",
            hint="give the statistics.safetensors of a run with the same settings",
        )
    return wire.published(data)
