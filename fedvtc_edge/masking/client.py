"""The client's side: five messages, each made once, and silence after the first doubt."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from .channel import Channel, open_channel
from .fixed_point import reduced
from .keys import (
    SECRET_BYTES,
    SHARE_BYTES,
    SIGNED_BYTES,
    Advert,
    Agreement,
    agree,
    commitment_of,
    masking_key,
    pair_mask,
    self_mask,
    signed_advert,
    split,
    verified_advert,
)
from .messages import (
    SIZES,
    Kind,
    entries,
    frame,
    membered,
    pack_members,
    read_shares,
    unframe,
    unpack_members,
)
from .plan import MaskingError, MaskingPlan, MaskingStep


class MaskingClient:
    """One client in one masked sum.

    The methods of the steps are called in the order in which they stand here, each once,
    with what the server sent. Whatever is refused ends this client's part: it then answers
    nothing any more, and its keys are dropped (Python cannot wipe them from memory).

    Guarantee: see ``docs/masking.md``. Nothing that depends on the vector leaves but in
    :meth:`mask`; and for each other client at most one kind of share leaves, of its
    seed or of its key.

    Args:
        plan: Public, the same for everybody.
        identity: Its private key, of the trusted public key in the plan.
        agreeing: X25519; a simulation that plays all clients gives one that remembers.

    Raises:
        MaskingError: A client that is not invited, or another's identity.
    """

    def __init__(
        self,
        plan: MaskingPlan,
        client: str,
        identity: Ed25519PrivateKey,
        *,
        agreeing: Agreement = agree,
    ) -> None:
        self.plan, self.client = plan, client
        self.index = plan.index_of(client)
        if identity.public_key().public_bytes_raw() != plan.raw_keys[self.index]:
            raise MaskingError(
                f"the identity is not the one trusted as {client}", hint="check the key file"
            )
        self._identity, self._agree = identity, agreeing
        self._state: MaskingState | None = MaskingState.fresh()

    @property
    def step(self) -> MaskingStep | None:
        """The step that is due; None once this client's part is over."""
        return self._state.step if self._state else None

    def freeze(self) -> bytes:
        """All that the next step needs, for another process on this device.

        The state moves: this object says no more. Two that go on from the same bytes
        would break the promise of one answer per step; see :class:`Vault`.

        Returns:
            Secret bytes, for a file that only this client reads.

        Raises:
            MaskingError: This client's part is over.
        """
        state, self._state = self._state, None
        if state is None:
            raise MaskingError(
                f"{self.client}: nothing to keep, its part in the sum is over",
                hint="it ends with the last step or with anything refused; begin a new sum",
            )
        return state.to_bytes(self.plan, self.client)

    @classmethod
    def thaw(
        cls,
        plan: MaskingPlan,
        client: str,
        identity: Ed25519PrivateKey,
        data: bytes,
        *,
        agreeing: Agreement = agree,
    ) -> MaskingClient:
        """Go on where :meth:`freeze` stopped; the same bytes must never be thawed twice.

        Args:
            plan: This and the others are the frozen client's.
            identity: Its private key.
            data: What ``freeze`` returned.
            agreeing: X25519.

        Raises:
            MaskingError: Bytes of another plan or client, or damaged ones.
        """
        thawed = cls(plan, client, identity, agreeing=agreeing)
        thawed._state = MaskingState.from_bytes(plan, client, data)
        return thawed

    def answer(self, step: MaskingStep, message: bytes, vector: NDArray[np.int64]) -> bytes:
        """Take the step of that name.

        Args:
            message: What the server sent for it; ADVERTISE reads none.
            vector: For MASK; the others do not look at it.

        Raises:
            MaskingError: As the step's own method.
        """
        match step:
            case MaskingStep.ADVERTISE:
                return self.advertise()
            case MaskingStep.SHARE:
                return self.share(message)
            case MaskingStep.MASK:
                return self.mask(message, vector)
            case MaskingStep.CONFIRM:
                return self.confirm(message)
            case MaskingStep.UNMASK:
                return self.unmask(message)

    def advertise(self) -> bytes:
        """Step 0: fresh public keys and a commitment to the self-mask, signed."""
        with self._taking(MaskingStep.ADVERTISE) as state:
            return frame(self.plan, Kind.ADVERT, self.client, self._own(state))

    def share(self, roster: bytes) -> bytes:
        """Step 1: shares of both secrets, sealed for each of the others.

        Args:
            roster: The server's list of all adverts.

        Raises:
            MaskingError: Too few clients, a signature that is wrong, or one's own
                advert changed.
        """
        with self._taking(MaskingStep.SHARE) as state:
            members, adverts = membered(self.plan, roster, Kind.ROSTER, SIZES[Kind.ROSTER])
            self._check_members(members, range(len(self.plan.clients)))
            if adverts[self.index] != self._own(state):
                raise MaskingError(
                    "the server shows another advert than was sent", hint="do not trust it"
                )
            # Everybody must have been shown the same keys: the digest enters every key.
            state.view = hashlib.sha256(roster).digest()
            others = [m for m in members if m != self.index]
            for m in others:
                state.adverts[m] = verified_advert(self.plan, self.plan.clients[m], adverts[m])
            points = tuple(m + 1 for m in members)  # 0 is where the secret lies
            dealt = [split(s, points, self.plan.threshold) for s in (state.seed, state.root)]
            shares = dict(zip(members, zip(*dealt, strict=True), strict=True))
            state.shares[self.index] = shares[self.index]
            body = b"".join(self._channel(state, m).seal_shares(*shares[m]) for m in others)
            return frame(self.plan, Kind.SHARES, self.client, body)

    def mask(self, mailbox: bytes, vector: NDArray[np.int64]) -> bytes:
        """Step 2: the vector under this client's own mask and one mask per other client.

        Args:
            mailbox: What the others sealed for this client.
            vector: Integers [size], each at most ``plan.bound`` in magnitude.

        Raises:
            MaskingError: A vector of another type or shape or beyond the bound, which
                would wrap around; too few clients; shares that cannot be opened.
        """
        with self._taking(MaskingStep.MASK) as state:
            numbers = reduced(self.plan, vector)
            members, sealed = membered(
                self.plan, mailbox, Kind.MAILBOX, SIZES[Kind.MAILBOX], but=self.index
            )
            self._check_members(members, [self.index, *state.adverts])
            for m, message in sealed.items():
                state.shares[m] = self._channel(state, m).open_shares(message)
            masked = numbers + self_mask(self.plan, self.index, state.seed)
            key = masking_key(self.plan, self.index, state.root)
            for m in sealed:
                pair = (min(m, self.index), max(m, self.index))
                secret = self._agree(key, state.adverts[m].masking)
                mask = pair_mask(self.plan, state.view, secret, pair)
                # The lower one adds what the higher one subtracts.
                (np.add if self.index < m else np.subtract)(masked, mask, out=masked)
            # What no later step needs goes: who steals it cannot take this mask off.
            state.seed = state.root = b""
            state.adverts = {m: state.adverts[m] for m in sealed}
            return frame(self.plan, Kind.MASKED, self.client, masked.tobytes())

    def confirm(self, arrived: bytes) -> bytes:
        """Step 3: tell every other client, past the server, whose vectors have arrived.

        Raises:
            MaskingError: Too few clients, or one that did not take part.
        """
        with self._taking(MaskingStep.CONFIRM) as state:
            members, _ = membered(self.plan, arrived, Kind.ARRIVED, 0)
            self._check_members(members, state.shares)
            state.arrived = members
            statement = state.statement(self.plan)
            body = b"".join(
                self._channel(state, m).confirmation(statement) for m in members if m != self.index
            )
            return frame(self.plan, Kind.CONFIRMATION, self.client, body)

    def unmask(self, confirmed: bytes) -> bytes:
        """Step 4: a share of the seed of each who arrived, of the key of each who did not.

        Only for the one list that was confirmed in step 3, and only if t clients saw
        the same: two lists for which t clients stand cannot both exist, so that a
        server cannot collect shares of both secrets of one client.

        Raises:
            MaskingError: Fewer than t confirmations, or one of another list.
        """
        with self._taking(MaskingStep.UNMASK) as state:
            members, tags = membered(
                self.plan, confirmed, Kind.CONFIRMED, SIZES[Kind.CONFIRMED], but=self.index
            )
            self._check_members(members, state.arrived)
            statement = state.statement(self.plan)
            for m, tag in tags.items():
                if not self._channel(state, m).confirms(tag, statement):
                    raise MaskingError(
                        f"{self.plan.clients[m]} did not see the same clients arrive",
                        hint="the server shows clients different lists, or one of them lies",
                    )
            arrived = set(state.arrived)
            body = b"".join(
                state.shares[m][0 if m in arrived else 1].to_bytes(SHARE_BYTES, "big")
                for m in sorted(state.shares)
            )
            return frame(self.plan, Kind.UNMASKING, self.client, body)

    @contextmanager
    def _taking(self, step: MaskingStep) -> Iterator[MaskingState]:
        """A step is begun once; unless it ends well, nothing is left for another."""
        state, self._state = self._state, None
        if state is None or state.step is not step:
            due = state.step.name if state else "nothing more"
            raise MaskingError(
                f"{self.client}: {step.name} where {due} is due",
                hint="every step is taken once, in order; begin a new sum",
            )
        yield state
        if step < MaskingStep.UNMASK:
            state.step = MaskingStep(step + 1)
            self._state = state

    def _own(self, state: MaskingState) -> bytes:
        # An Ed25519 signature is the same whenever it is made: nothing to remember.
        advert = state.advert(self.plan, self.index)
        return signed_advert(self.plan, self.client, advert, self._identity)

    def _channel(self, state: MaskingState, other: int) -> Channel:
        if other not in state.channels:
            secret = self._agree(state.encryption, state.adverts[other].encryption)
            state.channels[other] = open_channel(self.plan, state.view, secret, self.index, other)
        return state.channels[other]

    def _check_members(self, members: tuple[int, ...], among: Collection[int]) -> None:
        if self.index not in members or not set(members) <= set(among):
            raise MaskingError(
                f"a list of clients without {self.client}, or with one that dropped out",
                hint="the server counts wrongly, or lies",
            )
        if len(members) < self.plan.threshold:
            raise MaskingError(
                f"{len(members)} clients, expected {self.plan.threshold} at least",
                hint="too many dropped out; begin a new sum",
            )


# ---------------------------------------------------------------- state between steps
# Kept by a client from one step to the next, and its bytes between processes.

_KEY_BYTES = 32
_SUM_BYTES = 32


@dataclass
class MaskingState:
    """One client's side of a sum before it takes ``step``.

    It holds what the steps to come need and no more: the two secrets go with the last
    use of them, in step MASK, and channels are made anew from what is here.

    Args:
        seed: Secret of the self-mask, 16 bytes; empty after MASK.
        root: Secret of the key of pairwise masks, 16 bytes; empty after MASK.
        view: Digest of all adverts, 32 bytes; empty before SHARE.
        adverts: Of the others, by index: of all in the roster, after MASK of all whose
            shares came.
        shares: Of the two secrets of each client whose shares are here, by its index;
            this client's own among them after SHARE.
        arrived: Whose vectors arrived, as it was told in CONFIRM.
        channels: Those that were opened already; never written.
    """

    step: MaskingStep
    seed: bytes
    root: bytes
    encryption: X25519PrivateKey
    view: bytes = b""
    adverts: dict[int, Advert] = field(default_factory=dict)
    shares: dict[int, tuple[int, int]] = field(default_factory=dict)
    arrived: tuple[int, ...] = ()
    channels: dict[int, Channel] = field(default_factory=dict)

    @classmethod
    def fresh(cls) -> MaskingState:
        """Before step 0, with secrets from the operating system's entropy."""
        seed, root = (secrets.token_bytes(SECRET_BYTES) for _ in range(2))
        return cls(MaskingStep.ADVERTISE, seed, root, X25519PrivateKey.generate())

    def advert(self, plan: MaskingPlan, index: int) -> Advert:
        """Public advert of client ``index``; before MASK."""
        return Advert(
            self.encryption.public_key().public_bytes_raw(),
            masking_key(plan, index, self.root).public_key().public_bytes_raw(),
            commitment_of(plan, index, self.seed),
        )

    def statement(self, plan: MaskingPlan) -> bytes:
        """All lists that were seen: of adverts, of whose shares came, of whose vectors came."""
        return self.view + pack_members(plan, self.shares) + pack_members(plan, self.arrived)

    def to_bytes(self, plan: MaskingPlan, client: str) -> bytes:
        """For the client's own disk; the layout is in ``docs/masking.md``. It is secret.

        Args:
            plan: Public; its digest and the client's context are in the header.
        """
        parts = [bytes([self.step]), self.encryption.private_bytes_raw(), self.seed, self.root]
        if self.step >= MaskingStep.MASK:
            members = sorted({plan.index_of(client), *self.adverts})
            parts += [self.view, pack_members(plan, members)]
            parts += [self.adverts[m].to_bytes() for m in members if m in self.adverts]
            parts += [
                self.shares[m][which].to_bytes(SHARE_BYTES, "big")
                for which in (0, 1)
                for m in sorted(self.shares)
            ]
        if self.step is MaskingStep.UNMASK:
            parts.append(pack_members(plan, self.arrived))
        data = frame(plan, Kind.FROZEN, client, b"".join(parts))
        return data + hashlib.sha256(data).digest()

    @classmethod
    def from_bytes(cls, plan: MaskingPlan, client: str, data: bytes) -> MaskingState:
        """Read what :meth:`to_bytes` wrote, for this client in this very plan.

        Raises:
            MaskingError: Anything else: another plan or client, damage, a list that no
                honest sum has.
        """
        body = unframe(plan, data, Kind.FROZEN, client)
        body, found = body[:-_SUM_BYTES], body[-_SUM_BYTES:]
        if hashlib.sha256(data[:-_SUM_BYTES]).digest() != found:
            raise _damaged("its checksum is wrong")
        number, body = _cut(body, 1)
        if number[0] > MaskingStep.UNMASK:
            raise _damaged(f"step {number[0]}, expected 0 to {int(MaskingStep.UNMASK)}")
        step, index = MaskingStep(number[0]), plan.index_of(client)
        raw, body = _cut(body, _KEY_BYTES)
        secret = SECRET_BYTES if step <= MaskingStep.MASK else 0
        seed, body = _cut(body, secret)
        root, body = _cut(body, secret)
        state = cls(step, seed, root, X25519PrivateKey.from_private_bytes(raw))
        if step >= MaskingStep.MASK:
            state.view, body = _cut(body, _KEY_BYTES)
            members, body = _members(plan, body, index, range(len(plan.clients)))
            others = [m for m in members if m != index]
            adverts, body = _cut(body, SIGNED_BYTES * len(others))
            found_adverts = entries(adverts, others, SIGNED_BYTES, Kind.FROZEN)
            state.adverts = {m: Advert.from_bytes(advert) for m, advert in found_adverts.items()}
            owners = (index,) if step is MaskingStep.MASK else members
            seeds, body = _cut(body, SHARE_BYTES * len(owners))
            roots, body = _cut(body, SHARE_BYTES * len(owners))
            of_seeds, of_roots = read_shares(seeds, owners), read_shares(roots, owners)
            state.shares = {m: (of_seeds[m], of_roots[m]) for m in owners}
        if step is MaskingStep.UNMASK:
            state.arrived, body = _members(plan, body, index, state.shares)
        if body:
            raise _damaged(f"{len(body)} bytes too many")
        return state


def _cut(body: bytes, length: int) -> tuple[bytes, bytes]:
    """The first ``length`` bytes, and what follows them."""
    if len(body) < length:
        raise _damaged(f"{len(body)} bytes left, expected {length} at least")
    return body[:length], body[length:]


def _members(
    plan: MaskingPlan, body: bytes, index: int, among: range | dict[int, tuple[int, int]]
) -> tuple[tuple[int, ...], bytes]:
    """A list that the client itself is on, of enough and of nobody else than ``among``."""
    members, rest = unpack_members(plan, body, Kind.FROZEN)
    if index not in members or len(members) < plan.threshold or not set(members) <= set(among):
        raise _damaged("a list of clients that cannot be")
    return members, rest


def _damaged(what: str) -> MaskingError:
    return MaskingError(
        f"the state of a masked sum is damaged: {what}",
        hint="this client's part in the sum is over; it may take part in the next one",
    )
