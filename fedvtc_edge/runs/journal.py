"""Append-only files of lines, whose newest lines a checkpoint holds until they are on the disk.

A round appends its lines after its checkpoint was written, which holds the same lines and how
long the file was before them. So a file is never written anew, costs one flush per round, and a
killed process leaves it with a torn tail at most, which :meth:`Journal.restore` drops.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedvtc_edge.errors import RunError
from fedvtc_edge.storage.atomic import write_atomic


class Journal:
    """One file of lines.

    Args:
        path: Made with the first line.

    Attributes:
        size: Bytes of the file.
        lines: Lines of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.lines = 0

    def append(self, lines: Sequence[str]) -> None:
        """Add lines in one write; not durable before the file is flushed.

        Raises:
            OSError: The disk does not take them; the file is as it was before.
        """
        if not lines:
            return
        data = "".join(f"{line}\n" for line in lines).encode()
        with self.path.open("ab") as file:
            try:
                file.write(data)
                file.flush()
            except OSError:
                os.ftruncate(file.fileno(), self.size)
                raise
        self.size += len(data)
        self.lines += len(lines)

    def check(self, size: int) -> None:
        """Refuse a file that is shorter than it was.

        Raises:
            RunError: Somebody else has cut it.
        """
        if self._there < size:
            raise RunError(
                f"{self.path} is damaged: {self._there} bytes, expected {size} at least",
                hint="restore it from a copy, or start the run again in a new folder",
            )

    def restore(self, size: int) -> None:
        """Drop what follows so many bytes.

        Raises:
            RunError: As :meth:`check`.
        """
        self.check(size)
        if self._there > size:
            os.truncate(self.path, size)
        self.size, self.lines = size, sum(1 for _ in self)

    @property
    def _there(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def replace(self, lines: Sequence[str]) -> None:
        """Write the whole file anew, on disk when this returns."""
        data = "".join(f"{line}\n" for line in lines).encode()
        write_atomic(self.path, data)
        self.size, self.lines = len(data), len(lines)

    def __iter__(self) -> Iterator[str]:
        """Lines in order, read as they are asked for."""
        if self.path.is_file():
            with self.path.open(encoding="utf-8") as file:
                for line in file:
                    yield line.removesuffix("\n")
