"""One process at a time in a run directory: two would draw noise twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fedvtc_edge.errors import RunError

LOCK = "run.lock"
"""Name of the file that is locked; it holds nothing."""


class Busy(RunError):  # noqa: N818  (who meets it waits)
    """Another process works in the folder."""


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nobody else works in the folder ``path`` meanwhile; made where it does not exist.

    The operating system lets go of the lock when a process dies, so that a killed run
    can be taken up at once.

    Raises:
        Busy: Another process works there.
        RunError: The folder cannot be written.
    """
    lock = FileLock(path / LOCK, timeout=0)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise Busy(
            f"another process is at work in {path}", hint="wait until it is done, or stop it"
        ) from None
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}", hint="choose another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()
