"""Counted once: a journal of accepted envelopes that survives ``kill -9``.

The journal is lines of JSON. The first names the run and the round that is open; each
further one is an envelope of that round. Every line ends with a check over itself and the
line before, so that a changed, lost or inserted line is seen. A line without its newline
was being written when the process died: nobody was told that it counts, and it is cut off.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from fedvtc_edge.context import Context, ContextError
from fedvtc_edge.errors import ReplayError, RunError
from fedvtc_edge.files import write_atomic

SCHEMA = 1
_CHECK = 16  # hexadecimal digits: against damage; who can write here can write anything
_LARGEST_FILE = 67_108_864
_LARGEST_LINE = 512

Slot = tuple[str, str]
"""Sender and kind: what one envelope of a round can fill."""


class ReplayGuard:
    """Says of each envelope whether it is new, in the one round of one run that is open.

    Rounds open in order, from 0: :meth:`close` opens the next. What it holds in memory and
    on disk is the open round's. Threads may share it; processes may not.

    Args:
        path: Of the journal; made when there is none.
        run: Name of the run, 32 hexadecimal digits.

    Raises:
        RunError: The journal is another run's, damaged, or cannot be written.
    """

    def __init__(self, path: Path, *, run: str) -> None:
        self.path = path
        self.run = Context(run, 0, "x", "x").run
        self.round = 0
        self._accepted: dict[Slot, str] = {}
        self._check = ""
        self._size = 0
        self._lock = threading.Lock()
        if os.path.lexists(path):
            self._read()
        else:
            self._begin(0)

    def check(self, context: Context, envelope: bytes) -> bool:
        """As :meth:`accept`, but nothing is noted.

        Raises:
            ReplayError: As :meth:`accept`.
        """
        return self._is_new(context, hashlib.sha256(envelope).hexdigest())

    def accept(self, context: Context, envelope: bytes) -> bool:
        """Note that ``envelope`` counts; on disk before this returns.

        Only for envelopes that :func:`~fedvtc_edge.sealing.unseal` opened: else a
        stranger could take a client's place.

        Returns:
            True if it is new. False if exactly this one was accepted before: acknowledge
            it again, count it no more.

        Raises:
            ReplayError: Another envelope of this sender and kind counts already; another
                run, or a round that is not open.
            RunError: The disk does not take it.
        """
        digest = hashlib.sha256(envelope).hexdigest()
        with self._lock:
            if not self._is_new(context, digest):
                return False
            self._append(context, digest)
            return True

    def accepted(self) -> dict[Slot, str]:
        """The open round's envelopes: sender and kind, and the SHA-256 in hexadecimal."""
        with self._lock:
            return dict(self._accepted)

    def close(self, round_: int) -> None:
        """End ``round_`` and all before it: nothing of them is accepted any more.

        Call it when the round's result is on the disk: what the round received is forgotten.
        A round that is closed already stays closed.

        Raises:
            ContextError: No such round.
            RunError: The disk does not take it.
        """
        Context(self.run, round_, "x", "x")
        with self._lock:
            # The last one may be closed again: the disk may not have taken it for good.
            if round_ >= self.round or (round_ + 1 == self.round and not self._accepted):
                self._begin(round_ + 1)

    def _is_new(self, context: Context, digest: str) -> bool:
        if context.run != self.run:
            raise ReplayError(
                f"an upload for run {context.run}, expected {self.run}", hint="join the run anew"
            )
        if context.round != self.round:
            raise ReplayError(
                f"an upload for round {context.round}, open is round {self.round}",
                hint="late uploads do not count; the next round does",
            )
        known = self._accepted.get((context.sender, context.kind))
        if known not in (None, digest):
            raise ReplayError(
                f"another {context.kind} of {context.sender} counts in round {self.round}",
                hint="a retry sends the same envelope: sealing again makes another",
            )
        return known is None

    def _begin(self, round_: int) -> None:
        head = {"schema": SCHEMA, "run": self.run, "round": round_}
        line, check = _line(head, "")
        try:
            write_atomic(self.path, line)
        except OSError as error:
            with contextlib.suppress(RunError):
                self._read()  # the old journal or, if only the last flush failed, the new one
            raise self._unwritable(error) from None
        self.round, self._accepted, self._check, self._size = round_, {}, check, len(line)

    def _append(self, context: Context, digest: str) -> None:
        fields = {"sender": context.sender, "kind": context.kind, "sha256": digest}
        line, check = _line(fields, self._check)
        try:
            with self.path.open("r+b", buffering=0) as file:
                if file.seek(0, os.SEEK_END) < self._size:
                    raise OSError(errno.EIO, "the journal was cut by somebody else")
                try:
                    file.truncate(self._size)  # what an interrupt left of another line
                    file.seek(self._size)
                    if file.write(line) != len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(self._size)  # not acknowledged: must not count after a restart
                    raise
        except OSError as error:
            raise self._unwritable(error) from None
        self._accepted[context.sender, context.kind] = digest
        self._check = check
        self._size += len(line)

    def _read(self) -> None:
        try:
            if not self.path.is_file() or self.path.stat().st_size > _LARGEST_FILE:
                raise ValueError("no such file")
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            first, *lines = whole.splitlines(keepends=True)
            head, self._check = _parse(first, "")
            if (head["schema"], head["run"]) != (SCHEMA, self.run):
                raise ValueError("another run")
            self.round = Context(self.run, head["round"], "x", "x").round
            self._accepted = {}
            for line in lines:
                fields, self._check = _parse(line, self._check)
                context = Context(self.run, self.round, fields["sender"], fields["kind"])
                if not self._is_new(context, fields["sha256"]):
                    raise ValueError("a line twice")
                self._accepted[context.sender, context.kind] = fields["sha256"]
            if len(whole) < len(data):
                os.truncate(self.path, len(whole))
        except OSError as error:
            raise self._unwritable(error) from None
        except (ValueError, KeyError, TypeError, RecursionError, ContextError, ReplayError):
            raise RunError(
                f"{self.path} does not say what run {self.run} received",
                hint="what counted is not known any more: start a new run",
            ) from None
        self._size = len(whole)

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"cannot write {self.path}: {error.strerror}", hint="make room, or check the folder"
        )


def _line(fields: dict[str, Any], before: str) -> tuple[bytes, str]:
    body = json.dumps(fields)
    check = hashlib.sha256(f"{before}{body}".encode()).hexdigest()[:_CHECK]
    return f"{body} {check}\n".encode(), check


def _parse(line: bytes, before: str) -> tuple[dict[str, Any], str]:
    """One line's fields and check, if it is exactly as it was written."""
    if len(line) > _LARGEST_LINE:
        raise ValueError("too long")
    fields = json.loads(line[: -_CHECK - 2])
    again, check = _line(fields, before)
    if again != line:
        raise ValueError("damaged")
    return fields, check
