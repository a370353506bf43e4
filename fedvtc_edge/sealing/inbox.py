"""The inbox: what the server acknowledged is on its disk, once, whatever happens to it.

The order is: open and verify, write the envelope, note it in the journal, acknowledge.
A process killed before the journal's line leaves an envelope that nobody was told of; it
is swept away when the inbox opens, and the client sends again. After the line, the
envelope is there. Envelopes lie as they came, sealed: a copied disk shows no statistics
without the server's key.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedvtc_edge.context import Context
from fedvtc_edge.errors import EnvelopeError, RunError
from fedvtc_edge.files import write_atomic

from .envelope import MAX_ENVELOPE_BYTES, unseal
from .identity import Identity
from .replay import ReplayGuard
from .trust import TrustList

JOURNAL = "journal"
_ENDING = ".envelope"
_OURS = re.compile(r"[0-9a-f]{64}\.envelope|\.([0-9a-f]{64}\.envelope|journal)\..+")
# The hidden ones are write_atomic's, of a process that was killed.


@dataclass(frozen=True)
class Receipt:
    """An upload that was received and may be acknowledged.

    Args:
        payload: What was sealed.
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
        payload = unseal(envelope, recipient=self.recipient, trusted=self.trusted, context=context)
        if self.kinds is not None and context.kind not in self.kinds:
            raise EnvelopeError(
                f"{context.kind} is not collected", hint=f"expected {', '.join(self.kinds)}"
            )
        with self._lock:
            if not self._guard.check(context, envelope):
                return Receipt(payload, new=False)
            if check is not None:
                check(payload)
            path = self._path(hashlib.sha256(envelope).hexdigest())
            try:
                write_atomic(path, envelope, mode=0o600)
            except OSError as error:
                raise self._unwritable(error) from None
            # Should this fail, the envelope stays until the next sweep: the line may have
            # reached the disk after all, and would then miss its envelope.
            self._guard.accept(context, envelope)
            return Receipt(payload, new=True)

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
            context: Of the upload.
            counted: Whether something followed from it already: then it is found though
                its sender was revoked since, and else it is not.

        Raises:
            EnvelopeError: :attr:`recipient` cannot open it any more.
            RunError: It is missing or damaged.
        """
        digest = None
        if (context.run, context.round) == (self._guard.run, self.round):
            digest = self._guard.accepted().get((context.sender, context.kind))
        if digest is None or (self.trusted.is_revoked(context.sender) and not counted):
            return None
        envelope = self._stored(digest)
        known = self.trusted.before_revocations()
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
