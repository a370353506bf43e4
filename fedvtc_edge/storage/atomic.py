"""Files and folders that are either whole or absent."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

OWNER_ONLY, OWNER_ONLY_FOLDER = 0o600, 0o700
"""Permissions of what nobody else on the machine may read."""


def write_atomic(path: Path, data: bytes, *, durable: bool = True, mode: int = 0o644) -> None:
    """Write ``data`` under a temporary name, flush it to the disk, rename it.

    After a crash at any moment ``path`` holds the old content or the new, never a
    mixture. On failure (a full disk, say) the temporary file is removed and the
    error goes on.

    Args:
        path: The file.
        durable: False leaves the flush to the operating system: a killed process
            loses nothing, a power cut may. For what can be made again.
        mode: Permissions of the file.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(name, mode)  # mkstemp's 0600 would hide reports from a group
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    if durable:
        _sync(path.parent)  # the rename itself


def append_line(path: Path, line: bytes, *, durable: bool = True, mode: int = 0o644) -> None:
    """Append one line in one write: a killed process leaves all of it or nothing.

    Args:
        path: The file; made where there is none.
        durable: As of :func:`write_atomic`.
        mode: Permissions of a file that is made.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
    try:
        if os.write(descriptor, line + b"\n") != len(line) + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_tail(path: Path, at: int, data: bytes, *, before: bytes = b"") -> None:
    """Put ``data`` where a file's bytes from ``at`` on were, in one write, on disk when it returns.

    A process killed meanwhile leaves some of ``data``, or all: who reads the file must know
    a tail that was being written from one that is damaged.

    Args:
        path: A file that exists.
        at: Offset in bytes.
        before: What stood there, put back where the disk does not take ``data``.

    Raises:
        OSError: The disk does not take it, or the file is shorter than it was.
    """
    with path.open("r+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END) < at + len(before):
            raise OSError(errno.EIO, "the file was cut by somebody else")
        file.seek(at)
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.truncate()
            os.fsync(file.fileno())
        except OSError:
            file.seek(at)
            file.write(before)
            file.truncate()
            raise


def sync_files(paths: Sequence[Path]) -> None:
    """Flush files and their names to the disk: what was written without being durable is then.

    Each by itself would be a wait of its own; from :data:`_FEW` on, the file system that they
    lie in is flushed once, where the operating system can (Linux).

    Args:
        paths: Files that exist, of one file system.
    """
    if len(paths) > _FEW and sys.platform == "linux":
        _sync_file_system(paths[0].parent)
        return
    for path in paths:
        _sync(path)
    for folder in sorted({path.parent for path in paths}):
        _sync(folder)


_FEW = 4


def _sync_file_system(folder: Path) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if library.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk, where folders can be opened (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(path: Path, mode: int = 0o755) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its name when all went well.

    What stood under that name before is replaced as a whole: whoever opens ``path``
    sees the old folder, the new one or, for an instant, none; never a mixture. A killed
    process leaves ``.NAME.…`` folders; see :func:`recover_folder`.
    """
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        os.chmod(scratch, mode)  # mkdtemp's 0700 would hide the result from a group
        yield scratch
        for file in scratch.iterdir():
            _sync(file)  # a rename that outlives a power cut must not find empty files
        _sync(scratch)
        old = _old(path)
        if path.exists():
            os.rename(path, old)
        os.rename(scratch, path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        recover_folder(path)
        raise


def recover_folder(path: Path) -> None:
    """Undo what a process killed inside :func:`new_folder` left; harmless otherwise."""
    old = _old(path)
    if os.path.exists(old) and not os.path.exists(path):  # False for a name that is too long
        os.rename(old, path)
    for leftover in [old, *path.parent.glob(f".{glob.escape(path.name)}.new-*")]:
        if os.path.isdir(leftover) and not os.path.islink(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
