"""Zip archives from strangers: bounded before anything is decompressed, never extracted."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fedvtc_edge.errors import DataError

MAX_BYTES = 4 * 2**30  # of all members, decompressed
MAX_MEMBERS = 1_000_000

# What zipfile is known to raise on damaged or hostile bytes.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)

_DAMAGED_HINT = "the file is truncated or damaged: copy or download it again"


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive and check its directory.

    Raises:
        DataError: Not a zip file, encrypted, or with a member name, compression method,
            number of members or total size that is refused.
    """
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise DataError(
            f"{path}: cannot be read as a zip file: {error}", hint=_DAMAGED_HINT
        ) from None
    with archive:
        _check_directory(path, archive.infolist())
        yield archive


def read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """The decompressed bytes of one member, at most `limit` of them.

    Raises:
        DataError: Too large, truncated, or its checksum does not match.
    """
    if info.file_size > limit:
        raise DataError(
            f"{path}: {info.filename}: {info.file_size} bytes; expected at most {limit}",
            hint="leave that file out of the archive",
        )
    with reading(path, info.filename), archive.open(info) as member:
        # With a length, zipfile decompresses no further; without, a header that lies
        # about the size is believed only after everything was decompressed.
        return member.read(info.file_size)


@contextmanager
def reading(path: Path, member: str) -> Iterator[None]:
    """Turn what zipfile and numpy raise on damaged bytes into an error that names the member.

    Raises:
        DataError: The body raised one of `DAMAGE`.
    """
    try:
        yield
    except DAMAGE as error:
        raise DataError(f"{path}: {member}: {error}", hint=_DAMAGED_HINT) from None


def _check_directory(path: Path, members: list[zipfile.ZipInfo]) -> None:
    total = sum(info.file_size for info in members)
    if len(members) > MAX_MEMBERS or total > MAX_BYTES:
        raise DataError(
            f"{path}: {len(members)} members of {total} bytes in all once decompressed; "
            f"expected at most {MAX_MEMBERS} of {MAX_BYTES}",
            hint="store a smaller part of the data set",
        )
    for info in members:
        _check_member(path, info)


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    name = info.filename
    # Nothing is ever extracted; but an archive with such names was made to deceive.
    if ".." in PurePosixPath(name).parts or name.startswith("/") or "\\" in name or ":" in name[:2]:
        raise DataError(
            f"{path}: {name!r}: expected a relative path with forward slashes and no '..'",
            hint="do not trust this archive; pack the folder again yourself",
        )
    if info.flag_bits & 0x1:
        raise DataError(
            f"{path}: {name!r} is encrypted; expected a plain zip file",
            hint="unpack it with its password and pack it again without",
        )
    # zipfile bounds its output only for these two: bzip2 and lzma members can be bombs
    # that decompress whole before their declared size is looked at.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{path}: {name!r}: compression method {info.compress_type}; "
            "expected stored (0) or deflated (8)",
            hint="pack it again with an ordinary zip tool",
        )
