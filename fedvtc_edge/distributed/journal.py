"""Which phases of the open round are closed, and with whom: on disk before anybody is told.

What a phase published follows from the envelopes in the inbox and from who was in when it
closed. A server that is killed closes the same phases again with the same clients, so that
no client is asked to take part in a second, other sum.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fedvtc_edge.errors import RunError
from fedvtc_edge.files import write_atomic

SCHEMA = 1


class Journal:
    """The closings of one round.

    Args:
        path: The file; made with the first closing.
        run: Public name of the run.

    Raises:
        RunError: The file is damaged, or another run's.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path = path
        self._run = run
        self._round = -1
        self._closings: list[tuple[str, ...]] = []
        if path.is_file():
            self._read()

    def closed(self, number: int, phase: int) -> tuple[str, ...] | None:
        """Who was heard in a phase of a round that is closed; None for an open one."""
        if number != self._round or phase >= len(self._closings):
            return None
        return self._closings[phase]

    def close(self, number: int, phase: int, heard: Sequence[str]) -> None:
        """Close a phase; with the first one of a round the round before is forgotten.

        Raises:
            RunError: The disk does not take it.
            ValueError: A phase out of order.
        """
        before = self._closings if number == self._round else []
        if phase != len(before):
            raise ValueError(f"phase {phase} of round {number} after {len(before)}")
        closings = [*before, tuple(heard)]
        document = {"schema": SCHEMA, "run": self._run, "round": number, "closed": closings}
        try:
            write_atomic(self.path, (json.dumps(document) + "\n").encode())
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror}", hint="make room, then resume"
            ) from None
        self._round, self._closings = number, closings

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text("utf-8"))
            if (found["schema"], found["run"]) != (SCHEMA, self._run):
                raise ValueError("another run")
            self._round = int(found["round"])
            self._closings = [tuple(map(str, heard)) for heard in found["closed"]]
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(
                f"{self.path} does not say which phases of run {self._run} are closed",
                hint="restore it from a copy, or start a new run",
            ) from None
