"""The files of an image folder, whether it is a directory or a .zip file of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedvtc_edge.errors import DataError

from .archives import MAX_MEMBERS, opened, read_member

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
    """How names in a folder of a tree begin."""
    return f"{folder}/" if folder else ""


def is_image_folder(path: Path) -> bool:
    """Whether `path` is a directory with a ``train`` directory in it or one level down."""
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
