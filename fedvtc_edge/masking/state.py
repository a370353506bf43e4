"""What a client must remember from one step to the next, and its bytes between processes."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from .channel import Channel
from .errors import MaskingError
from .keys import SIGNED_BYTES, Advert, commitment_of, masking_key
from .messages import Kind, entries, frame, pack_members, read_shares, unframe, unpack_members
from .plan import Plan, Step
from .shamir import SECRET_BYTES, SHARE_BYTES

_KEY_BYTES = 32
_SUM_BYTES = 32


@dataclass
class State:
    """One client's side of a sum before it takes ``step``.

    It holds what the steps to come need and no more: the two secrets go with the last
    use of them, in step MASK, and channels are made anew from what is here.

    Args:
        step: Which one is due.
        seed: Secret of the self-mask, 16 bytes; empty after MASK.
        root: Secret of the key of pairwise masks, 16 bytes; empty after MASK.
        encryption: Key of the channels.
        view: Digest of all adverts, 32 bytes; empty before SHARE.
        adverts: Of the others, by index: of all in the roster, after MASK of all whose
            shares came.
        shares: Of the two secrets of each client whose shares are here, by its index;
            this client's own among them after SHARE.
        arrived: Whose vectors arrived, as it was told in CONFIRM.
        channels: Those that were opened already; never written.
    """

    step: Step
    seed: bytes
    root: bytes
    encryption: X25519PrivateKey
    view: bytes = b""
    adverts: dict[int, Advert] = field(default_factory=dict)
    shares: dict[int, tuple[int, int]] = field(default_factory=dict)
    arrived: tuple[int, ...] = ()
    channels: dict[int, Channel] = field(default_factory=dict)

    @classmethod
    def fresh(cls) -> State:
        """Before step 0, with secrets from the operating system's entropy."""
        seed, root = (secrets.token_bytes(SECRET_BYTES) for _ in range(2))
        return cls(Step.ADVERTISE, seed, root, X25519PrivateKey.generate())

    def advert(self, plan: Plan, index: int) -> Advert:
        """What client ``index`` shows of this state; before MASK."""
        return Advert(
            self.encryption.public_key().public_bytes_raw(),
            masking_key(plan, index, self.root).public_key().public_bytes_raw(),
            commitment_of(plan, index, self.seed),
        )

    def statement(self, plan: Plan) -> bytes:
        """All lists that were seen: of adverts, of whose shares came, of whose vectors came."""
        return self.view + pack_members(plan, self.shares) + pack_members(plan, self.arrived)

    def to_bytes(self, plan: Plan, client: str) -> bytes:
        """For the client's own disk; the layout is in ``docs/masking.md``. It is secret.

        Args:
            plan: Public; its digest and the client's context are in the header.
            client: Whose state it is.
        """
        parts = [bytes([self.step]), self.encryption.private_bytes_raw(), self.seed, self.root]
        if self.step >= Step.MASK:
            members = sorted({plan.index_of(client), *self.adverts})
            parts += [self.view, pack_members(plan, members)]
            parts += [self.adverts[m].to_bytes() for m in members if m in self.adverts]
            parts += [
                self.shares[m][which].to_bytes(SHARE_BYTES, "big")
                for which in (0, 1)
                for m in sorted(self.shares)
            ]
        if self.step is Step.UNMASK:
            parts.append(pack_members(plan, self.arrived))
        data = frame(plan, Kind.FROZEN, client, b"".join(parts))
        return data + hashlib.sha256(data).digest()

    @classmethod
    def from_bytes(cls, plan: Plan, client: str, data: bytes) -> State:
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
        if number[0] > Step.UNMASK:
            raise _damaged(f"step {number[0]}, expected 0 to {int(Step.UNMASK)}")
        step, index = Step(number[0]), plan.index_of(client)
        raw, body = _cut(body, _KEY_BYTES)
        secret = SECRET_BYTES if step <= Step.MASK else 0
        seed, body = _cut(body, secret)
        root, body = _cut(body, secret)
        state = cls(step, seed, root, X25519PrivateKey.from_private_bytes(raw))
        if step >= Step.MASK:
            state.view, body = _cut(body, _KEY_BYTES)
            members, body = _members(plan, body, index, range(len(plan.clients)))
            others = [m for m in members if m != index]
            adverts, body = _cut(body, SIGNED_BYTES * len(others))
            found_adverts = entries(adverts, others, SIGNED_BYTES, Kind.FROZEN)
            state.adverts = {m: Advert.from_bytes(advert) for m, advert in found_adverts.items()}
            owners = (index,) if step is Step.MASK else members
            seeds, body = _cut(body, SHARE_BYTES * len(owners))
            roots, body = _cut(body, SHARE_BYTES * len(owners))
            of_seeds, of_roots = read_shares(seeds, owners), read_shares(roots, owners)
            state.shares = {m: (of_seeds[m], of_roots[m]) for m in owners}
        if step is Step.UNMASK:
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
    plan: Plan, body: bytes, index: int, among: range | dict[int, tuple[int, int]]
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
