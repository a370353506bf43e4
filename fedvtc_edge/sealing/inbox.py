"""The inbox: what the server acknowledged is on its disk, once, whatever happens to it.

The order is: open and verify, write the envelope, note it in the journal, acknowledge.
A process killed before the journal's line leaves an envelope that nobody was told of; it
is swept away when the inbox opens, and the client sends again. After the line, the
envelope is there. Envelopes lie as they came, sealed: a copied disk shows no statistics
without the server's key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import EnvelopeError, ReplayError, RunError
from fedvtc_edge.storage.atomic import replace_tail, sync_files, write_atomic
from fedvtc_edge.wire.context import Context, ContextError

from .envelope import MAX_ENVELOPE_BYTES, unseal
from .identity import Identity
from .trust import TrustList

JOURNAL = "journal"
_ENDING = ".envelope"
_OURS = re.compile(r"[0-9a-f]{64}\.envelope|\.([0-9a-f]{64}\.envelope|journal)\..+")
# The hidden ones are write_atomic's, of a process that was killed.


@dataclass(frozen=True)
class Receipt:
    """An upload that was received and may be acknowledged.

    Args:
        new: False for a retry, which must not be counted again.
    """

    payload: bytes
    new: bool


class Inbox:
    """A folder of the open round's envelopes and the journal of what counts.

    Nothing is stored before a trusted client's signature was verified, and one envelope
    for each client and kind: a stranger fills no disk, a client fills
    :data:`MAX_ENVELOPE_BYTES` a kind. Threads may share it; processes may not.

    Args:
        folder: Made when there is none.
        run: Name of the run, 32 hexadecimal digits.
        recipient: Who opens envelopes, and may be set anew when a key is replaced: the
            previous identity stays in it until the round is closed.
        trusted: The clients; may be set anew.
        kinds: The kinds of upload that there are, or None for any.

    Raises:
        RunError: Another run's folder, a damaged journal, or an envelope that was
            acknowledged and is not there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run: str,
        recipient: Identity | Sequence[Identity],
        trusted: TrustList,
        kinds: Sequence[str] | None = None,
    ) -> None:
        self.folder = folder
        self.recipient = recipient
        self.trusted = trusted
        self.kinds = kinds
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None
        self._guard = ReplayGuard(folder / JOURNAL, run=run)
        self._sweep()
        for digest in self._guard.accepted().values():
            self._stored(digest)

    @property
    def round(self) -> int:
        """The round that is open."""
        return self._guard.round

    def receive(
        self,
        context: Context,
        envelope: bytes,
        *,
        check: Callable[[bytes], object] | None = None,
    ) -> Receipt:
        """Open, verify, store and note an envelope; acknowledge it when this returns.

        Args:
            context: What is expected; its round must be :attr:`round`.
            envelope: Untrusted bytes.
            check: Called with the payload before anything is stored; what it raises goes
                on, and the client may send something better.

        Raises:
            EnvelopeError: It cannot be opened, or is of a kind that is not collected.
            ReplayError: Another one counts already, or the round is not open.
            RunError: The disk does not take it: do not acknowledge.
        """
        payload = self._opened(context, envelope)
        with self._lock:
            if not self._guard.check(context, envelope):
                return Receipt(payload, new=False)
            if check is not None:
                check(payload)
            self._store([(context, envelope)])
            return Receipt(payload, new=True)

    def receive_all(
        self, arrived: Sequence[tuple[Context, bytes]]
    ) -> list[Receipt | EnvelopeError]:
        """Receive several envelopes, with one wait for the disk; acknowledge them then.

        Returns:
            For each what :meth:`receive` returns, or the refusal that it raises.

        Raises:
            RunError: The disk does not take them: acknowledge none.
        """
        outcomes: list[Receipt | EnvelopeError] = []
        with self._lock:
            fresh: dict[Context, bytes] = {}
            for context, envelope in arrived:
                try:
                    payload = self._opened(context, envelope)
                    if context in fresh:  # noted first, so that it is known what counts
                        self._store([*fresh.items()])
                        fresh = {}
                    new = self._guard.check(context, envelope)
                except EnvelopeError as error:
                    outcomes.append(error)
                    continue
                outcomes.append(Receipt(payload, new))
                if new:
                    fresh[context] = envelope
            self._store([*fresh.items()])
        return outcomes

    def _opened(self, context: Context, envelope: bytes) -> bytes:
        payload = unseal(envelope, recipient=self.recipient, trusted=self.trusted, context=context)
        if self.kinds is not None and context.kind not in self.kinds:
            raise EnvelopeError(
                f"{context.kind} is not collected", hint=f"expected {', '.join(self.kinds)}"
            )
        return payload

    def _store(self, fresh: Sequence[tuple[Context, bytes]]) -> None:
        """Put new envelopes on the disk, and then into the journal."""
        paths = [self._path(hashlib.sha256(envelope).hexdigest()) for _, envelope in fresh]
        try:
            for path, (_, envelope) in zip(paths, fresh, strict=True):
                write_atomic(path, envelope, durable=False, mode=0o600)
            sync_files(paths)
        except OSError as error:
            raise self._unwritable(error) from None
        # Should this fail, the envelopes stay until the next sweep: the lines may have
        # reached the disk after all, and would then miss their envelopes.
        self._guard.accept_all(fresh)

    def uploads(self) -> Iterator[tuple[Context, bytes]]:
        """The open round's uploads, by sender and kind; also those of before a restart.

        Whoever was revoked since is left out. One payload is in memory at a time.

        Raises:
            EnvelopeError: An envelope that :attr:`recipient` cannot open any more.
            RunError: An envelope is missing or damaged.
        """
        round_ = self.round
        for (sender, kind), digest in sorted(self._guard.accepted().items()):
            if self.trusted.is_revoked(sender):
                continue
            context = Context(self._guard.run, round_, sender, kind)
            yield (
                context,
                unseal(
                    self._stored(digest),
                    recipient=self.recipient,
                    trusted=self.trusted,
                    context=context,
                ),
            )

    def find(self, context: Context, *, counted: bool = False) -> tuple[bytes, int] | None:
        """The payload and the envelope's size of what was acknowledged, or None.

        Args:
            counted: Whether something followed from it already: then it is found though
                its sender was revoked since, and else it is not.

        Raises:
            EnvelopeError: :attr:`recipient` cannot open it any more.
            RunError: It is missing or damaged.
        """
        digest = None
        if (context.run, context.round) == (self._guard.run, self.round):
            digest = self._guard.counted(context.sender, context.kind)
        revoked = self.trusted.is_revoked(context.sender)
        if digest is None or (revoked and not counted):
            return None
        envelope = self._stored(digest)
        known = self.trusted.before_revocations() if revoked else self.trusted
        payload = unseal(envelope, recipient=self.recipient, trusted=known, context=context)
        return payload, len(envelope)

    def close(self, round_: int) -> None:
        """End ``round_`` and open the next; call it when the round's result is on the disk.

        Raises:
            RunError: The disk does not take it.
        """
        with self._lock:
            self._guard.close(round_)
            self._sweep()

    def _stored(self, digest: str) -> bytes:
        path = self._path(digest)
        try:
            if path.stat().st_size > MAX_ENVELOPE_BYTES:
                raise OSError
            envelope = path.read_bytes()
        except OSError:
            envelope = b""
        if hashlib.sha256(envelope).hexdigest() != digest:
            raise RunError(
                f"{path} is not the envelope that was acknowledged",
                hint="an upload is lost: restore the folder, or start a new run",
            )
        return envelope

    def _sweep(self) -> None:
        """Remove envelopes that do not count: closed, or never acknowledged."""
        counted = {self._path(digest).name for digest in self._guard.accepted().values()}
        try:
            for path in self.folder.iterdir():
                if _OURS.fullmatch(path.name) and path.name not in counted:
                    path.unlink()
        except OSError as error:
            raise self._unwritable(error) from None

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}{_ENDING}"

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"cannot write {self.folder}: {error.strerror}", hint="make room, or check the folder"
        )


# ---------------------------------------------------------------- journal
# Accepted envelopes, each counted once; survives ``kill -9``.
#
# The journal is lines of JSON. The first names the run and the round that is open; each
# further one is an envelope of that round. Every line ends with a check over itself and the
# line before, so that a changed, lost or inserted line is seen. A line without its newline
# was being written when the process died: nobody was told that it counts, and it is cut off.

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
        """Check as :meth:`accept_all` does, and note nothing.

        Raises:
            ReplayError: As :meth:`accept_all`.
        """
        return self._is_new(context, hashlib.sha256(envelope).hexdigest())

    def accept_all(self, envelopes: Sequence[tuple[Context, bytes]]) -> list[bool]:
        """Note in one write that envelopes count: all of them, on disk when this returns, or none.

        Only for envelopes that :func:`~fedvtc_edge.sealing.unseal` opened: else a
        stranger could take a client's place.

        Returns:
            For each True if it is new. False if exactly this one was accepted before:
            acknowledge it again, count it no more.

        Raises:
            ReplayError: Another envelope of one's sender and kind counts already or is among
                them; another run, or a round that is not open.
            RunError: The disk does not take it.
        """
        with self._lock:
            new: dict[Slot, str] = {}
            outcomes = []
            for context, envelope in envelopes:
                digest = hashlib.sha256(envelope).hexdigest()
                outcomes.append(self._is_new(context, digest, new))
                new[context.sender, context.kind] = digest
            self._append(
                {slot: digest for slot, digest in new.items() if slot not in self._accepted}
            )
            return outcomes

    def counted(self, sender: str, kind: str) -> str | None:
        """SHA-256 in hexadecimal of a sender's envelope of the open round, or None."""
        return self._accepted.get((sender, kind))

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

    def _is_new(
        self, context: Context, digest: str, more: Mapping[Slot, str] = MappingProxyType({})
    ) -> bool:
        if context.run != self.run:
            raise ReplayError(
                f"an upload for run {context.run}, expected {self.run}", hint="join the run anew"
            )
        if context.round != self.round:
            raise ReplayError(
                f"an upload for round {context.round}, open is round {self.round}",
                hint="late uploads do not count; the next round does",
            )
        slot = context.sender, context.kind
        known = self._accepted.get(slot, more.get(slot))
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

    def _append(self, new: Mapping[Slot, str]) -> None:
        lines, check = b"", self._check
        for (sender, kind), digest in new.items():
            line, check = _line({"sender": sender, "kind": kind, "sha256": digest}, check)
            lines += line
        if not lines:
            return
        try:
            # What an interrupt left of other lines goes; what fails is not acknowledged, and
            # must not count after a restart.
            replace_tail(self.path, self._size, lines)
        except OSError as error:
            raise self._unwritable(error) from None
        self._accepted.update(new)
        self._check = check
        self._size += len(lines)

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
    fields = parse_json(line[: -_CHECK - 2])
    again, check = _line(fields, before)
    if again != line:
        raise ValueError("damaged")
    return fields, check
