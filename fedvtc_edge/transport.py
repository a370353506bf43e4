"""How an upload gets from a client to the server: as it is, or sealed and counted once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from .context import Context
from .sealing import Identity, Inbox, TrustList, seal, unseal
from .sealing.suites import DEFAULT

KEY = "identity.key"
TRUST = "trust.json"
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

    def carry(self, payload: bytes, context: Context) -> Delivery:
        """Bring ``payload`` from the client that ``context`` names to the server."""

    def close(self, round_: int) -> None:
        """Forget what ``round_`` received: its result is on the disk."""


class Plain:
    """Bytes as they are: within one process there is nobody to hide them from."""

    def carry(self, payload: bytes, context: Context) -> Delivery:
        """The same bytes."""
        return Delivery(payload, len(payload), None)

    def close(self, round_: int) -> None:
        """Nothing was kept."""


class Parties:
    """Identities of the clients and the server of one run, made when they are first needed.

    In a simulation one process plays all parties. Each private key lies with its party,
    for the owner's eyes (0600), so that a run that was killed goes on with the same keys.

    Args:
        clients: Ids of the clients.
        folder: The run directory, laid out; None keeps keys for the time of the process.
    """

    def __init__(self, clients: Sequence[str], folder: Path | None) -> None:
        self._ids = tuple(clients)
        self._folder = folder

    @cached_property
    def clients(self) -> dict[str, Identity]:
        """Each client's identity."""
        return {name: self._identity("clients", name) for name in self._ids}

    @cached_property
    def server(self) -> Identity:
        """Who opens envelopes."""
        return self._identity("server")

    @cached_property
    def trusted(self) -> TrustList:
        """Whom the server believes: the clients of this run, in ``server/trust.json``.

        Raises:
            TrustError: The file is damaged.
        """
        if self._folder is not None and (path := self._folder / "server" / TRUST).exists():
            return TrustList.load(path)  # somebody may have been revoked since
        trusted = TrustList()
        for name, identity in self.clients.items():
            trusted.add(name, identity.public)
        if self._folder is not None:
            trusted.save(self._folder / "server" / TRUST)
        return trusted

    def _identity(self, *place: str) -> Identity:
        if self._folder is None:
            return Identity.generate(DEFAULT)
        path = self._folder.joinpath(*place, KEY)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # A killed process may have left the public half, which is written first.
            path.with_name(KEY + ".pub").unlink(missing_ok=True)
            Identity.generate(DEFAULT).save(path)
        return Identity.load(path)


class Sealed:
    """Envelopes to the server, signed by each client, and an inbox that outlives a crash.

    Args:
        parties: Who seals and who opens.
        run: Public name of the run.
        folder: The run directory, for ``server/inbox``; None keeps nothing.
    """

    def __init__(self, parties: Parties, run: str, folder: Path | None) -> None:
        self.parties = parties
        self._run = run
        self._folder = folder

    @cached_property
    def inbox(self) -> Inbox | None:
        """What the server acknowledged in the round that is open."""
        if self._folder is None:
            return None
        return Inbox(
            self._folder / "server" / INBOX,
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
        sender = self.parties.clients[context.sender]
        fingerprint, inbox = sender.fingerprint, self.inbox
        if inbox is not None:
            if context.round > inbox.round:
                inbox.close(context.round - 1)
            kept = inbox.find(context)
            if kept is not None:
                return Delivery(*kept, fingerprint)
        envelope = seal(
            payload, recipient=self.parties.server.public, sender=sender, context=context
        )
        if inbox is not None:
            opened = inbox.receive(context, envelope).payload
        else:
            opened = unseal(
                envelope,
                recipient=self.parties.server,
                trusted=self.parties.trusted,
                context=context,
            )
        return Delivery(opened, len(envelope), fingerprint)

    def close(self, round_: int) -> None:
        """Nothing of ``round_`` is accepted any more, and its envelopes are deleted."""
        inbox = vars(self).get("inbox")  # a method that uploads nothing needs no keys
        if inbox is not None:
            inbox.close(round_)
