"""The bytes of every message: a header that says where it belongs, and a body of one length.

Each body's length follows from the plan and from who takes part, and is compared before
anything is read: there is nothing in a message that could ask for memory, and no two
encodings of one content.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from enum import IntEnum

from .channel import SEALED_BYTES, TAG_BYTES
from .keys import ADVERT_BYTES, PRIME, SHARE_BYTES
from .plan import SERVER, MaskingError, MaskingPlan

_HEADER = struct.Struct(">4sBB100s32s")
_MAGIC, _VERSION = b"FVMS", 1
HEADER_BYTES = _HEADER.size


class Kind(IntEnum):
    """Type of a message: 0 to 4 from a client in that step, 16 to 19 from the server.

    FROZEN never travels: it is what a client writes for itself.
    """

    ADVERT = 0
    SHARES = 1
    MASKED = 2
    CONFIRMATION = 3
    UNMASKING = 4
    ROSTER = 16
    MAILBOX = 17
    ARRIVED = 18
    CONFIRMED = 19
    FROZEN = 32


def frame(plan: MaskingPlan, kind: Kind, sender: str, body: bytes) -> bytes:
    """Header (138 bytes: magic, version, type, context, digest of the plan) and body."""
    return _HEADER.pack(_MAGIC, _VERSION, kind, plan.contexts[sender], plan.digest) + body


def unframe(plan: MaskingPlan, data: bytes, kind: Kind, sender: str) -> bytes:
    """The body of a message that must be of this kind, sum and sender.

    Raises:
        MaskingError: Anything else.
    """
    if not isinstance(data, bytes) or len(data) < HEADER_BYTES:
        raise MaskingError(f"no {kind.name} message", hint="expected bytes with a whole header")
    magic, version, type_, context, digest = _HEADER.unpack_from(data)
    if (magic, version) != (_MAGIC, _VERSION):
        raise MaskingError(
            f"magic {magic!r}, version {version}, expected {_MAGIC!r}, {_VERSION}",
            hint="all parties need the same version of fedvtc-edge",
        )
    if type_ != kind:
        raise MaskingError(f"message type {type_}, expected {kind.name}", hint="out of order")
    if context != plan.contexts[sender]:
        raise MaskingError(
            f"a {kind.name} message of another run, round, kind or sender than {sender}'s",
            hint="an old message, or one of somebody else, is never taken",
        )
    if digest != plan.digest:
        raise MaskingError(
            f"a {kind.name} message of another plan",
            hint="all parties must agree on clients, their keys, size and bound",
        )
    return data[HEADER_BYTES:]


def exactly(body: bytes, length: int, kind: Kind) -> bytes:
    """The body, if it has this length.

    Raises:
        MaskingError: It has not.
    """
    if len(body) != length:
        raise MaskingError(
            f"{kind.name}: {len(body)} bytes, expected {length}", hint="the message is damaged"
        )
    return body


def pack_members(plan: MaskingPlan, members: Collection[int]) -> bytes:
    """A bit per invited client, lowest first, ⌈K/8⌉ bytes."""
    return sum(1 << member for member in members).to_bytes(_map_bytes(plan), "little")


def unpack_members(plan: MaskingPlan, body: bytes, kind: Kind) -> tuple[tuple[int, ...], bytes]:
    """The members' indices in ascending order, and what follows them.

    Raises:
        MaskingError: Too short, or a bit of nobody.
    """
    length = _map_bytes(plan)
    if len(body) < length:
        raise MaskingError(f"{kind.name}: no list of clients", hint="the message is damaged")
    bits, count = int.from_bytes(body[:length], "little"), len(plan.clients)
    if bits >> count:
        raise MaskingError(f"{kind.name} names a client that is none", hint="it is damaged")
    return tuple(index for index in range(count) if bits >> index & 1), body[length:]


def entries(body: bytes, members: Sequence[int], size: int, kind: Kind) -> dict[int, bytes]:
    """One entry of ``size`` bytes for each member, in their order.

    Raises:
        MaskingError: Another length.
    """
    exactly(body, size * len(members), kind)
    return {m: body[size * at : size * (at + 1)] for at, m in enumerate(members)}


def membered(
    plan: MaskingPlan, data: bytes, kind: Kind, size: int, but: int | None = None
) -> tuple[tuple[int, ...], dict[int, bytes]]:
    """Read a message of the server's: who takes part, and an entry of each but one of them.

    Args:
        plan: Public.
        data: Untrusted bytes.
        kind: What it must be.
        size: Bytes of an entry; 0 where there are none.
        but: The reader itself, where it gets no entry of its own.

    Raises:
        MaskingError: Anything else.
    """
    members, rest = unpack_members(plan, unframe(plan, data, kind, SERVER), kind)
    return members, entries(rest, [m for m in members if m != but], size, kind)


def read_shares(body: bytes, members: Sequence[int]) -> dict[int, int]:
    """One share of 17 bytes for each member.

    Raises:
        MaskingError: Another length, or a number that is no share.
    """
    found = entries(body, members, SHARE_BYTES, Kind.UNMASKING)
    shares = {member: int.from_bytes(share, "big") for member, share in found.items()}
    if any(share >= PRIME for share in shares.values()):
        raise MaskingError("a share that is no field element", hint="its sender is broken or lies")
    return shares


def _map_bytes(plan: MaskingPlan) -> int:
    return -(-len(plan.clients) // 8)


SIZES = {
    Kind.ADVERT: ADVERT_BYTES,
    Kind.ROSTER: ADVERT_BYTES,
    Kind.SHARES: SEALED_BYTES,
    Kind.MAILBOX: SEALED_BYTES,
    Kind.CONFIRMATION: TAG_BYTES,
    Kind.CONFIRMED: TAG_BYTES,
    Kind.ARRIVED: 0,
}
"""Bytes of one entry, by kind."""


def traffic_of(clients: int, size: int, bound: int) -> tuple[int, int]:
    """Bytes that each client sends, in five messages, and gets in a sum that nobody leaves.

    Args:
        clients: Number K of clients that are invited.
        size: Numbers of each vector.
        bound: Largest magnitude of one number.
    """
    others, members, word = clients - 1, -(-clients // 8), 4 if clients * bound < 2**31 else 8
    between = others * (SEALED_BYTES + TAG_BYTES)
    up = ADVERT_BYTES + between + size * word + clients * SHARE_BYTES
    down = clients * ADVERT_BYTES + between + 4 * members
    return up + 5 * HEADER_BYTES, down + 4 * HEADER_BYTES
