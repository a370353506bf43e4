"""Transport of an upload from a client to the server: in the clear, or sealed and counted once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from fedvtc_edge.config import TransportSettings
from fedvtc_edge.errors import EnvelopeError
from fedvtc_edge.sealing import Inbox, overhead, seal, unseal
from fedvtc_edge.transport.keyring import KeyRing
from fedvtc_edge.wire.context import Context

INBOX = "inbox"


class Delivery(NamedTuple):
    """An upload as it arrived.

    Args:
        payload: The bytes that the client encoded.
        size: Bytes that travelled.
        fingerprint: Of the identity that sealed it, or None where nothing is sealed.
    """

    payload: bytes
    size: int
    fingerprint: str | None


class Transport(Protocol):
    """Carries one upload at a time."""

    @property
    def overhead(self) -> int:
        """Bytes that travel beside each upload's own."""

    def carry(self, payload: bytes, context: Context) -> Delivery:
        """Bring ``payload`` from the client that ``context`` names to the server."""

    def carry_all(self, uploads: Sequence[tuple[Context, bytes]]) -> list[Delivery | EnvelopeError]:
        """Bring several payloads of one round to the server, with one wait for the disk.

        Returns:
            For each what :meth:`carry` returns, or the refusal that it raises.
        """

    def relay(self, payload: bytes, context: Context) -> Delivery:
        """The same for a message that has a meaning for this moment only: it is not kept."""

    def close(self, round_: int) -> None:
        """Forget what ``round_`` received: its result is on the disk."""

    def end(self) -> None:
        """The run is done: keep no key."""


class Plain:
    """Bytes as they are: within one process there is nobody to hide them from.

    Args:
        folder: Where keys may lie that masking signs with.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @property
    def overhead(self) -> int:
        """No overhead: 0 bytes."""
        return 0

    def carry(self, payload: bytes, context: Context) -> Delivery:
        """Deliver the payloads as they are."""
        return Delivery(payload, len(payload), None)

    relay = carry

    def carry_all(self, uploads: Sequence[tuple[Context, bytes]]) -> list[Delivery | EnvelopeError]:
        """Deliver the payloads as they are."""
        return [self.carry(payload, context) for context, payload in uploads]

    def close(self, round_: int) -> None:
        """Keep nothing."""

    def end(self) -> None:
        """Delete the keys that masking signed with, if any."""
        _delete(self._folder)


class Sealed:
    """Envelopes to the server, signed by each client, and an inbox that outlives a crash.

    Args:
        run: Public name of the run.
        folder: For the inbox; None keeps nothing.
    """

    def __init__(self, parties: KeyRing, run: str, folder: Path | None) -> None:
        self.parties = parties
        self._run = run
        self._folder = folder

    @property
    def overhead(self) -> int:
        """Bytes that an envelope to the server adds."""
        return overhead(self.parties.server.public)

    @cached_property
    def inbox(self) -> Inbox | None:
        """Envelopes that the server acknowledged in the open round."""
        if self._folder is None:
            return None
        return Inbox(
            self._folder / INBOX,
            run=self._run,
            recipient=self.parties.server,
            trusted=self.parties.trusted,
        )

    def carry(self, payload: bytes, context: Context) -> Delivery:
        """Seal, receive and open ``payload``.

        What was acknowledged before a crash is not sent again: the server has it.

        Raises:
            EnvelopeError: The envelope cannot be opened, or its sender is not trusted.
            RunError: The inbox cannot be written, or is damaged.
        """
        (delivery,) = self.carry_all([(context, payload)])
        if isinstance(delivery, EnvelopeError):
            raise delivery
        return delivery

    def carry_all(self, uploads: Sequence[tuple[Context, bytes]]) -> list[Delivery | EnvelopeError]:
        """Seal, receive and open several payloads.

        Raises:
            RunError: As :meth:`carry`.
        """
        inbox = self.inbox
        if inbox is None:
            return [_refused(self.relay, payload, context) for context, payload in uploads]
        newest = max((context.round for context, _ in uploads), default=0)
        if newest > inbox.round:
            inbox.close(newest - 1)
        found = [inbox.find(context) for context, _ in uploads]
        sent = [
            (context, self._seal(payload, context))
            for (context, payload), kept in zip(uploads, found, strict=True)
            if kept is None
        ]
        receipts = zip(inbox.receive_all(sent), sent, strict=True)
        deliveries: list[Delivery | EnvelopeError] = []
        for (context, _), kept in zip(uploads, found, strict=True):
            fingerprint = self.parties.clients[context.sender].fingerprint
            if kept is not None:
                deliveries.append(Delivery(*kept, fingerprint))
                continue
            receipt, (_, envelope) = next(receipts)
            if isinstance(receipt, EnvelopeError):
                deliveries.append(receipt)
            else:
                deliveries.append(Delivery(receipt.payload, len(envelope), fingerprint))
        return deliveries

    def _seal(self, payload: bytes, context: Context) -> bytes:
        sender, server = self.parties.clients[context.sender], self.parties.server.public
        return seal(payload, recipient=server, sender=sender, context=context)

    def relay(self, payload: bytes, context: Context) -> Delivery:
        """Seal and open ``payload``; a restarted server asks for it again.

        Raises:
            EnvelopeError: The sender is not trusted.
        """
        envelope, trusted = self._seal(payload, context), self.parties.trusted
        opened = unseal(envelope, recipient=self.parties.server, trusted=trusted, context=context)
        fingerprint = self.parties.clients[context.sender].fingerprint
        return Delivery(opened, len(envelope), fingerprint)

    def close(self, round_: int) -> None:
        """Accept nothing of ``round_`` any more, and delete its envelopes."""
        inbox = vars(self).get("inbox")  # a method that uploads nothing needs no keys
        if inbox is not None:
            inbox.close(round_)

    def end(self) -> None:
        """Delete keys, trust list and inbox: nothing of this run will be opened any more."""
        vars(self).pop("inbox", None)
        _delete(self._folder)


def _refused(
    way: Callable[[bytes, Context], Delivery], payload: bytes, context: Context
) -> Delivery | EnvelopeError:
    try:
        return way(payload, context)
    except EnvelopeError as error:
        return error


def _delete(folder: Path | None) -> None:
    if folder is not None and folder.exists():
        shutil.rmtree(folder)


def transport_of(
    settings: TransportSettings, parties: KeyRing, run: str, folder: Path | None
) -> Transport:
    """Transport for one process that plays all parties.

    Args:
        settings: Sealed or not.
        run: Public name of the run.
        folder: For the inbox; None keeps nothing.
    """
    return Sealed(parties, run, folder) if settings.seal else Plain(folder)
