"""Progress from one process to another: lines of JSON in a file, appended and followed.

Flower runs the server's and the clients' code in processes of its own, whose output goes
to logs. What a user is to see is written here, and shown by the command that waits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import DeploymentError, FedVTCError
from fedvtc_edge.progress import Progress
from fedvtc_edge.storage.atomic import append_line

_LARGEST_NOTE, _LARGEST_HINT = 2000, 500
_BEGINNING = b'{"event": '
DONE, FAILED = "done", "failed"


class Writer:
    """A :class:`~fedvtc_edge.progress.Progress` whose reader is elsewhere.

    Args:
        path: The file; lines are added to what is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, total: int, what: str) -> None:
        """Begin ``total`` units called ``what``."""
        self._append("start", total=total, what=what)

    def advance(self, note: str = "") -> None:
        """One unit is done."""
        self._append("advance", note=note[:_LARGEST_NOTE])

    def say(self, text: str) -> None:
        """One line on what happens meanwhile."""
        self._append("say", note=text[:_LARGEST_NOTE])

    def close(self) -> None:
        """Close nothing: the reader shows the events."""

    def done(self) -> None:
        """All work is done, and on the disk."""
        self._append(DONE)

    def failed(self, error: BaseException) -> None:
        """The work ended with an error; one that was raised on purpose brings its hint."""
        known = isinstance(error, FedVTCError)
        hint = error.hint if isinstance(error, FedVTCError) else "see the log; this is a bug"
        text = str(error) if known else f"{type(error).__name__}: {error}"
        self._append(FAILED, note=text[:_LARGEST_NOTE], hint=hint[:_LARGEST_HINT])

    def _append(self, event: str, **fields: Any) -> None:
        append_line(self.path, json.dumps({"event": event, **fields}).encode())


class Reader:
    """Shows what a :class:`Writer` writes from now on.

    Args:
        path: The file, which need not be there yet.
        progress: Where it is shown.
    """

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._progress = progress
        self._at = path.stat().st_size if path.exists() else 0

    def relay(self) -> int:
        """Show whole lines that have come since.

        Returns:
            How many there were; -1 if the last of them says that all is done.

        Raises:
            DeploymentError: The work has failed; with the writer's words and hint.
        """
        if not self._path.exists():
            return 0
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        lines = whole.splitlines()
        for line in lines:
            if self._show(self._read(line)):
                return -1
        return len(lines)

    @staticmethod
    def _read(line: bytes) -> dict[str, Any]:
        """One event; a full disk cuts a line short, and the next one begins where it ends."""
        # Within an event no quote stands bare, so that this can only be a beginning.
        begun = line.rfind(_BEGINNING)
        try:
            return dict(parse_json(line[max(begun, 0) :]))
        except (ValueError, TypeError):
            return {"event": "torn"}

    def _show(self, line: dict[str, Any]) -> bool:
        match line["event"]:
            case "start":
                self._progress.start(line["total"], line["what"])
            case "advance":
                self._progress.advance(line["note"])
            case "say":
                self._progress.say(line["note"])
            case "failed":
                raise DeploymentError(line["note"], hint=line["hint"])
        return bool(line["event"] == DONE)
