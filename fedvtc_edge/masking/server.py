"""The server's side: it relays, counts, and in the end takes the masks off the sum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .keys import (
    SECRET_BYTES,
    SIGNED_BYTES,
    Advert,
    Vector,
    agree,
    combine,
    commitment_of,
    masking_key,
    pair_mask,
    self_mask,
    verified_advert,
)
from .messages import SIZES, Kind, entries, exactly, frame, pack_members, read_shares, unframe
from .plan import SERVER, MaskingError, MaskingPlan, MaskingStep

Transcript = Callable[[MaskingStep, str, bytes], None]
"""Told of every message before it is opened: step, sender, bytes."""


class MaskedSum(NamedTuple):
    """Result of a masked sum.

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
    after the last step :meth:`finish`. It keeps nothing on disk, and of masked vectors their
    sum alone.

    A message that is refused changes nothing: whoever moves the bytes may go on as if
    its sender had dropped out. Too few clients, or secrets that cannot be rebuilt, end
    the round for good.

    Args:
        plan: Public, the same for everybody.
        transcript: Called with every message before it is opened: all that a curious
            server sees, for the audit.
    """

    def __init__(self, plan: MaskingPlan, *, transcript: Transcript | None = None) -> None:
        self.plan = plan
        self._transcript = transcript
        self._step: MaskingStep | None = MaskingStep.ADVERTISE
        self._members = tuple(range(len(plan.clients)))
        self._inbox: dict[int, bytes] = {}
        self._view = b""
        self._adverts: dict[int, Advert] = {}
        self._dealers: tuple[int, ...] = ()
        self._sum = np.zeros(plan.size, plan.dtype)
        self._arrived: tuple[int, ...] = ()

    @property
    def step(self) -> MaskingStep | None:
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
        if step is MaskingStep.ADVERTISE:
            verified_advert(self.plan, sender, exactly(body, SIZES[kind], kind))
        elif step is MaskingStep.MASK:
            vector = exactly(body, self.plan.size * self.plan.dtype.itemsize, kind)
            self._sum += np.frombuffer(vector, self.plan.dtype)
            body = b""  # added and forgotten: memory does not grow with the clients' vectors
        elif step is MaskingStep.UNMASK:
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
        if step is MaskingStep.UNMASK:
            raise MaskingError("no step follows UNMASK", hint="call finish")
        inbox, before = self._close(), self._members
        self._members = tuple(sorted(inbox))
        if step is MaskingStep.ADVERTISE:
            replies = self._roster(inbox)
        elif step is MaskingStep.SHARE:
            self._dealers = self._members
            replies = self._relayed(Kind.MAILBOX, inbox, before)
        elif step is MaskingStep.MASK:
            self._arrived = self._members
            body = pack_members(self.plan, self._members)
            replies = dict.fromkeys(self._members, frame(self.plan, Kind.ARRIVED, SERVER, body))
        else:
            replies = self._relayed(Kind.CONFIRMED, inbox, before)
        self._step = MaskingStep(step + 1)
        return {self.plan.clients[index]: reply for index, reply in replies.items()}

    def finish(self) -> MaskedSum:
        """Rebuild the secrets, check each against its commitment, and take off the masks.

        Raises:
            MaskingError: Too few shares, secrets that are not what was committed to, or
                a sum out of range; the round has ended and there is no sum.
        """
        if self._awaited() is not MaskingStep.UNMASK:
            raise MaskingError("the sum is not ready", hint="call advance after each step")
        inbox = self._close()
        self._step = None  # whatever follows, no second try with other shares
        suspects: set[int] = set()
        total = unmasked_sum(
            self.plan,
            self._view,
            self._adverts,
            self._sum,
            self._arrived,
            [index for index in self._dealers if index not in self._arrived],
            {sender: read_shares(body, self._dealers) for sender, body in inbox.items()},
            suspects,
        )
        return MaskedSum(total, self._named(self._arrived), self._named(suspects))

    def _awaited(self) -> MaskingStep:
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

    def _named(self, indices: Iterable[int]) -> tuple[str, ...]:
        return tuple(self.plan.clients[index] for index in sorted(indices))


# ---------------------------------------------------------------- arithmetic
# The server's arithmetic: secrets from shares, masks from secrets, the sum without masks.

Shares = Mapping[int, Mapping[int, int]]
"""Shares by the client that sent them, then by the client whose secret they are of."""


def rebuild(
    plan: MaskingPlan, shares: Mapping[int, int], right: Callable[[bytes], bool], suspects: set[int]
) -> bytes | None:
    """The one secret that fits what its owner committed to, or None.

    One wrong share is found where more than t are there: without it the others give
    the right secret. Whoever sent it is added to ``suspects`` (it sent a wrong share,
    or the owner dealt it one) and is left out of the next attempts.

    Args:
        plan: Public.
        shares: Share by sender.
        right: Whether 16 bytes are the secret.
        suspects: Senders of wrong shares; added to.
    """
    threshold = plan.threshold
    # Those under suspicion come last, and are used only where nobody else is left.
    senders = sorted(shares, key=lambda sender: (sender in suspects, sender))
    attempts: list[int | None] = [None]
    if len(senders) > threshold:
        attempts += senders[:threshold]
    for left_out in attempts:
        chosen = [sender for sender in senders if sender != left_out][:threshold]
        value = combine({sender + 1: shares[sender] for sender in chosen})
        if value.bit_length() > 8 * SECRET_BYTES:
            continue
        secret = value.to_bytes(SECRET_BYTES, "big")
        if right(secret):
            if left_out is not None:
                suspects.add(left_out)
            return secret
    return None


def unmasked_sum(
    plan: MaskingPlan,
    view: bytes,
    adverts: Mapping[int, Advert],
    masked: Vector,
    arrived: Sequence[int],
    dropped: list[int],
    shares: Shares,
    suspects: set[int],
) -> NDArray[np.int64]:
    """Σ x_u over those whose vectors arrived, exactly.

    Args:
        plan: Public.
        view: Digest of all adverts.
        adverts: Of everybody who advertised.
        masked: Sum [size] of the masked vectors that arrived.
        dropped: Clients whose shares were dealt and whose vectors did not arrive.
        shares: What the survivors sent in the last step.
        suspects: Senders of wrong shares; added to.

    Raises:
        MaskingError: A secret that cannot be rebuilt, or a sum that no vectors within
            the bound have.
    """

    def secret_of(
        owner: int, what: str, right: Callable[[MaskingPlan, int, bytes, bytes], bool]
    ) -> bytes:
        shown = adverts[owner].commitment if what == "seed" else adverts[owner].masking
        secret = rebuild(
            plan,
            {sender: found[owner] for sender, found in shares.items()},
            lambda candidate: right(plan, owner, candidate, shown),
            suspects,
        )
        if secret is None:
            raise MaskingError(
                f"the shares of {plan.clients[owner]}'s {what} do not give what it committed to",
                hint="it dealt wrong shares, or several survivors sent wrong ones; begin again",
            )
        return secret

    total = masked.copy()
    for index in arrived:
        total -= self_mask(plan, index, secret_of(index, "seed", _is_seed))
    for index in dropped:
        key = masking_key(plan, index, secret_of(index, "key", _is_root))
        for other in arrived:
            pair = (min(index, other), max(index, other))
            mask = pair_mask(plan, view, agree(key, adverts[other].masking), pair)
            # What the survivor added or subtracted is taken back.
            (np.subtract if other < index else np.add)(total, mask, out=total)
    signed = total.view(np.dtype(f"<i{plan.dtype.itemsize}")).astype(np.int64)
    most = len(arrived) * plan.bound
    if ((signed > most) | (signed < -most)).any():  # a mask is left: almost surely huge somewhere
        raise MaskingError(
            "a sum beyond what the bound allows", hint="a client masked wrongly; begin a new sum"
        )
    return signed


def _is_seed(plan: MaskingPlan, owner: int, candidate: bytes, commitment: bytes) -> bool:
    return commitment_of(plan, owner, candidate) == commitment


def _is_root(plan: MaskingPlan, owner: int, candidate: bytes, public: bytes) -> bool:
    return masking_key(plan, owner, candidate).public_key().public_bytes_raw() == public
