"""Plan of a masked sum, agreed on beforehand; every number of it is public."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.wire.context import Context

SERVER = "server"
"""Sender of the server's messages; no client may have this id."""

LEAST_CLIENTS, MOST_CLIENTS = 3, 1000
MOST_NUMBERS = 2**24
LARGEST_BOUND = 2**49
"""Largest magnitude of a client's number: the sums of all clients fit int64."""

Client = TypeVar("Client")

_PLAN = struct.Struct(">HHIQB")


def in_groups(clients: Sequence[Client], number: int) -> list[Sequence[Client]]:
    """Clients in their order, cut into so many groups of equal size, or of one more."""
    cuts = [len(clients) * place // number for place in range(number + 1)]
    return [clients[begin:end] for begin, end in pairwise(cuts)]


class MaskingStep(IntEnum):
    """Steps of the protocol; a client that drops out at a step sends its message no more."""

    ADVERTISE = 0
    SHARE = 1
    MASK = 2
    CONFIRM = 3
    UNMASK = 4


def threshold_of(clients: int) -> int:
    """Clients that must be there in every step: t = K - ⌊K/3⌋, two thirds rounded up.

    Up to ⌊K/3⌋ clients may drop, at whatever step. Where 3 does not divide K, t is
    strictly more than two thirds; where it does, it is exactly two thirds, since a
    third could not drop otherwise. See ``docs/masking.md`` for what collusion it bears.

    Args:
        clients: Number K of clients that are invited, 3 to 1000.

    Raises:
        MaskingError: Too few or too many clients.
    """
    if not LEAST_CLIENTS <= clients <= MOST_CLIENTS:
        raise MaskingError(
            f"{clients} clients, expected {LEAST_CLIENTS} to {MOST_CLIENTS}",
            hint="with two clients a sum tells each the other's vector",
        )
    return clients - clients // 3


@dataclass(frozen=True, eq=False)
class MaskingPlan:
    """One masked sum: who takes part, and what is added.

    Args:
        context: Run, round and kind; its sender is of no account.
        trusted: Public identity key of every client that is invited, by id.
        size: How many numbers each vector has, 1 to 2^24.
        bound: Largest magnitude of one client's number, 1 to 2^49; the modulus follows
            from it, so that no sum of all clients wraps around.

    Raises:
        MaskingError: Numbers out of range, two clients with one key, or a client that
            is called ``server``.
        ContextError: An id that no client can have.
    """

    context: Context
    trusted: Mapping[str, Ed25519PublicKey]
    size: int
    bound: int = LARGEST_BOUND

    def __post_init__(self) -> None:
        object.__setattr__(self, "trusted", dict(sorted(self.trusted.items())))
        object.__setattr__(self, "context", replace(self.context, sender=SERVER))
        threshold_of(len(self.trusted))
        for name, value, most in (
            ("size", self.size, MOST_NUMBERS),
            ("bound", self.bound, LARGEST_BOUND),
        ):
            if type(value) is not int or not 1 <= value <= most:
                raise MaskingError(
                    f"{name} {value!r:.80}, expected a whole number from 1 to {most}",
                    hint="both are public and agreed on by all clients",
                )
        if SERVER in self.trusted:
            raise MaskingError(f"a client is called {SERVER}", hint="give it another id")
        if len(set(self.raw_keys)) < len(self.trusted):  # one owner would count as two
            raise MaskingError("two clients have one identity key", hint="one key per client")
        _ = self.contexts  # refuses impossible ids now, not in the middle of a round

    @cached_property
    def clients(self) -> tuple[str, ...]:
        """Ids in order; a client's index is its place here."""
        return tuple(self.trusted)

    @cached_property
    def threshold(self) -> int:
        """Least number of clients in every step, and of shares that rebuild a secret."""
        return threshold_of(len(self.clients))

    @cached_property
    def raw_keys(self) -> tuple[bytes, ...]:
        """The 32 bytes of each client's public identity key."""
        return tuple(key.public_bytes_raw() for key in self.trusted.values())

    @cached_property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Unsigned integers, little-endian, whose wrap-around is the modulus: 2^32 or 2^64.

        Signed sums of all clients need 2·K·bound + 1 values; 2^32 is taken where they fit.
        """
        narrow = len(self.clients) * self.bound < 2**31
        return np.dtype("<u4" if narrow else "<u8")

    @cached_property
    def contexts(self) -> dict[str, bytes]:
        """Context bytes of each sender, the server among them."""
        senders = (*self.clients, SERVER)
        return {name: replace(self.context, sender=name).to_bytes() for name in senders}

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name this plan: signed, and part of every key's derivation.

        Two parties that disagree about any of it have no message in common.
        """
        numbers = _PLAN.pack(
            len(self.clients), self.threshold, self.size, self.bound, self.dtype.itemsize
        )
        hashed = hashlib.sha256(b"fedvtc-edge masking 1 plan\0" + self.contexts[SERVER] + numbers)
        for name, key in zip(self.clients, self.raw_keys, strict=True):
            hashed.update(self.contexts[name] + key)
        return hashed.digest()

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.clients)}

    def index_of(self, client: str) -> int:
        """The client's place among the ids in order.

        Raises:
            MaskingError: It is not invited.
        """
        index = self._indices.get(client)
        if index is None:
            raise MaskingError(
                f"{client!r:.80} is not among the {len(self.clients)} clients of this sum",
                hint="only clients with a trusted key take part",
            )
        return index


class MaskingError(FedVTCError):
    """A message, a vector or a round that secure aggregation refuses.

    Whatever the cause, nothing unmasked has left: a client that raises it says no more
    in this round, and a server that raises it has no sum.
    """
