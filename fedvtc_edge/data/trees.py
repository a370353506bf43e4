"""The files of an image folder, whether it is a directory or a .zip file of one."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fedvtc_edge.errors import DataError

MAX_FILE_BYTES = 64 * 2**20
LAYOUT_HINT = "expected train/<class>/<image> and test/<class>/<image>, images as png or jpg"


@dataclass(frozen=True)
class Tree:
    """The files below a base, in folders of classes.

    Attributes:
        origin: Directory or archive, as errors name it.
        names: Folder → names of the files in the class folders in it, from the base
            (``train`` → ``train/cat/1.png``); the empty folder is the base itself.
        read: Names → their bytes in that order.
    """

    origin: Path
    names: Callable[[str], list[str]]
    read: Callable[[Sequence[str]], Iterator[bytes]]


def below(folder: str) -> str:
    """Beginning of names in a folder of a tree."""
    return f"{folder}/" if folder else ""


def is_image_folder(path: Path) -> bool:
    """True if `path` is a directory with a ``train`` directory in it or one level down."""
    return os.path.isdir(path) and _base(path) is not None


def directory_tree(path: Path, base: Path | None = None) -> Tree:
    """The tree of a directory.

    Args:
        path: As errors name it.
        base: Where names start; None is where ``train`` lies, here or one level down.

    Raises:
        DataError: No ``train`` in it; later, a file that cannot be read or is too large.
    """
    base = _base(path) if base is None else base
    if base is None:
        raise DataError(f"{path}: no directory train/", hint=LAYOUT_HINT)

    def names(folder: str) -> list[str]:
        found: list[str] = []
        # Follows no links below a class, so that a loop of them ends.
        for kind in _directories(base / folder):
            for inner, _, files in os.walk(kind):
                relative = Path(inner).relative_to(base).as_posix()
                found.extend(f"{relative}/{file}" for file in files)
                if len(found) > MAX_MEMBERS:
                    raise DataError(
                        f"{path / folder}: more than {MAX_MEMBERS} files",
                        hint="make a folder of a smaller part of the data set",
                    )
        return found

    def read(names: Sequence[str]) -> Iterator[bytes]:
        for name in names:
            yield _read_file(base / name, f"{path}: {name}")

    return Tree(path, names, read)


def _base(path: Path) -> Path | None:
    for candidate in (path, *_directories(path)):
        if os.path.isdir(candidate / "train"):
            return candidate
    return None


def _directories(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if os.path.isdir(entry))
    except OSError:  # absent or not ours to read: then no images are found, and that is said
        return []


def _read_file(file: Path, where: str) -> bytes:
    if not os.path.isfile(file):  # opening a named pipe would wait for ever
        raise DataError(f"{where}: not a regular file", hint="leave it out of the folder")
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DataError(f"{where}: {error.strerror}", hint="make the file readable") from None
    if len(data) > MAX_FILE_BYTES:
        raise DataError(
            f"{where}: more than {MAX_FILE_BYTES} bytes", hint="leave it out of the folder"
        )
    return data


def archive_tree(path: Path, prefix: str | None = None) -> Tree:
    """The tree of a .zip file, read in memory.

    Args:
        path: The file.
        prefix: Where names start; None is where ``train`` lies, on top or one level down.

    Raises:
        DataError: What `archives.opened` and `archives.read_member` refuse.
    """
    with opened(path) as archive:
        members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    base = _prefix(members) if prefix is None else prefix

    def names(folder: str) -> list[str]:
        start = base + below(folder)
        return [name.removeprefix(base) for name in members if name.startswith(start)]

    def read(names: Sequence[str]) -> Iterator[bytes]:
        with opened(path) as archive:
            for name in names:
                yield read_member(path, archive, members[base + name], MAX_FILE_BYTES)

    return Tree(path, names, read)


def _prefix(members: Iterable[str]) -> str:
    if any(name.startswith("train/") for name in members):
        return ""
    tops = {
        parts[0] for name in members if len(parts := name.split("/")) > 2 and parts[1] == "train"
    }
    return f"{min(tops)}/" if tops else ""


# ---------------------------------------------------------------- zip archives
# Zip archives from strangers: bounded before anything is decompressed, never extracted.

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
