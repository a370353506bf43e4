"""The server's side: it relays, counts, and in the end takes the masks off the sum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import MaskingError
from .keys import SIGNED_BYTES, Advert, verified_advert
from .messages import (
    SIZES,
    Kind,
    entries,
    exactly,
    frame,
    pack_members,
    read_shares,
    unframe,
)
from .plan import SERVER, Plan, Step
from .unmasking import unmasked_sum

Transcript = Callable[[Step, str, bytes], None]
"""Told of every message before it is opened: step, sender, bytes."""


class MaskedSum(NamedTuple):
    """What comes out.

    Args:
        total: Σ x_u over the survivors, int64 [size], exact.
        survivors: Clients whose vectors are in it, in order.
        suspects: Clients from whom wrong shares came: they lied, or were dealt wrong ones.
    """

    total: NDArray[np.int64]
    survivors: tuple[str, ...]
    suspects: tuple[str, ...]


class MaskingServer:
    """The server in one masked sum.

    Per step: :meth:`receive` what comes, then :meth:`advance` and send what it returns;
    after the last step :meth:`finish`. It keeps everything in memory and nothing else.

    A message that is refused changes nothing: whoever moves the bytes may go on as if
    its sender had dropped out. Too few clients, or secrets that cannot be rebuilt, end
    the round for good.

    Args:
        plan: Public, the same for everybody.
        transcript: Called with every message before it is opened: all that a curious
            server sees, for the audit.
    """

    def __init__(self, plan: Plan, *, transcript: Transcript | None = None) -> None:
        self.plan = plan
        self._transcript = transcript
        self._step: Step | None = Step.ADVERTISE
        self._members = tuple(range(len(plan.clients)))
        self._inbox: dict[int, bytes] = {}
        self._view = b""
        self._adverts: dict[int, Advert] = {}
        self._dealers: tuple[int, ...] = ()
        self._vectors: dict[int, bytes] = {}

    @property
    def step(self) -> Step | None:
        """The step whose messages are awaited; None once the round has ended."""
        return self._step

    @property
    def heard(self) -> tuple[str, ...]:
        """Clients whose message of this step was taken, in order."""
        return tuple(self.plan.clients[index] for index in sorted(self._inbox))

    def receive(self, message: bytes, *, sender: str) -> None:
        """Check and keep one client's message of the awaited step.

        Args:
            message: Untrusted bytes.
            sender: Whose it is, as the transport knows it; the message must say the same.

        Raises:
            MaskingError: The round has ended; a sender that is unknown, dropped out or
                was heard already; bytes that are not its message of this step.
        """
        step = self._awaited()
        if self._transcript:
            self._transcript(step, sender, message)
        index = self.plan.index_of(sender)
        if index not in self._members:
            raise MaskingError(
                f"{sender} dropped out before {step.name}", hint="it may take part in the next sum"
            )
        if index in self._inbox:
            raise MaskingError(f"{sender} sends {step.name} twice", hint="the first one counts")
        kind = Kind(step)
        body = unframe(self.plan, message, kind, sender)
        if step is Step.ADVERTISE:
            verified_advert(self.plan, sender, exactly(body, SIZES[kind], kind))
        elif step is Step.MASK:
            exactly(body, self.plan.size * self.plan.dtype.itemsize, kind)
        elif step is Step.UNMASK:
            read_shares(body, self._dealers)
        else:
            entries(body, self._others(index), SIZES[kind], kind)
        self._inbox[index] = body

    def advance(self) -> dict[str, bytes]:
        """Close the step and begin the next one.

        Returns:
            What to send, by client: all that are still in.

        Raises:
            MaskingError: Fewer than t clients were heard, which ends the round, or this
                was the last step.
        """
        step = self._awaited()
        if step is Step.UNMASK:
            raise MaskingError("no step follows UNMASK", hint="call finish")
        inbox, before = self._close(), self._members
        self._members = tuple(sorted(inbox))
        if step is Step.ADVERTISE:
            replies = self._roster(inbox)
        elif step is Step.SHARE:
            self._dealers = self._members
            replies = self._relayed(Kind.MAILBOX, inbox, before)
        elif step is Step.MASK:
            self._vectors = inbox
            body = pack_members(self.plan, self._members)
            replies = dict.fromkeys(self._members, frame(self.plan, Kind.ARRIVED, SERVER, body))
        else:
            replies = self._relayed(Kind.CONFIRMED, inbox, before)
        self._step = Step(step + 1)
        return {self.plan.clients[index]: reply for index, reply in replies.items()}

    def finish(self) -> MaskedSum:
        """Rebuild the secrets, check each against its commitment, and take off the masks.

        Raises:
            MaskingError: Too few shares, secrets that are not what was committed to, or
                a sum out of range; the round has ended and there is no sum.
        """
        if self._awaited() is not Step.UNMASK:
            raise MaskingError("the sum is not ready", hint="call advance after each step")
        inbox = self._close()
        self._step = None  # whatever follows, no second try with other shares
        suspects: set[int] = set()
        total = unmasked_sum(
            self.plan,
            self._view,
            self._adverts,
            {i: np.frombuffer(body, self.plan.dtype) for i, body in self._vectors.items()},
            [index for index in self._dealers if index not in self._vectors],
            {sender: read_shares(body, self._dealers) for sender, body in inbox.items()},
            suspects,
        )
        return MaskedSum(total, self._named(self._vectors), self._named(suspects))

    def _awaited(self) -> Step:
        if self._step is None:
            raise MaskingError("the round has ended", hint="begin a new sum")
        return self._step

    def _close(self) -> dict[int, bytes]:
        inbox, self._inbox = self._inbox, {}
        if len(inbox) < self.plan.threshold:
            step, self._step = self._awaited(), None
            raise MaskingError(
                f"{len(inbox)} clients in step {step.name}, "
                f"expected {self.plan.threshold} of {len(self.plan.clients)} at least",
                hint="too many dropped out; begin a new sum",
            )
        return dict(sorted(inbox.items()))

    def _roster(self, inbox: dict[int, bytes]) -> dict[int, bytes]:
        body = pack_members(self.plan, inbox) + b"".join(inbox.values())
        roster = frame(self.plan, Kind.ROSTER, SERVER, body)
        self._view = hashlib.sha256(roster).digest()
        self._adverts = {i: Advert.from_bytes(a[:SIGNED_BYTES]) for i, a in inbox.items()}
        return dict.fromkeys(inbox, roster)

    def _relayed(
        self, kind: Kind, inbox: dict[int, bytes], before: tuple[int, ...]
    ) -> dict[int, bytes]:
        """Each sender's entries, sorted into one message per recipient."""
        size, replies, members = SIZES[kind], {}, pack_members(self.plan, inbox)
        place = {index: at for at, index in enumerate(before)}
        for recipient in inbox:
            body = bytearray(members)
            for sender, sent in inbox.items():
                if sender != recipient:  # its own entry is not among those it sent
                    at = size * (place[recipient] - (place[recipient] > place[sender]))
                    body += sent[at : at + size]
            replies[recipient] = frame(self.plan, kind, SERVER, bytes(body))
        return replies

    def _others(self, index: int) -> list[int]:
        return [member for member in self._members if member != index]

    def _named(self, indices: dict[int, bytes] | set[int]) -> tuple[str, ...]:
        return tuple(self.plan.clients[index] for index in sorted(indices))
