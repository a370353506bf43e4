"""Sums that hide their parts: what clients have, as vectors of integers under masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.masking import (
    LARGEST_BOUND,
    MaskingStep,
    decode_fixed,
    encode_fixed,
    grid_bound,
    run_masked_sum,
)
from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.wire.context import Context

from .channel import Transport
from .keyring import KeyRing

Integers = NDArray[np.int64]

SCALE_BITS = 20
"""Steps of the grid per unit: sums of features keep six decimal places."""

LARGEST_SUM = 2.0**28
"""Public bound on every number of a client's statistics: two million examples at p = 128."""

_MARK, _LETTERS = "-mask", "abcde"

Recorder = Callable[[int, str, str, bytes], None]
"""Told of each message: round, sender, kind, bytes."""


class Bytes(NamedTuple):
    """Bytes that one client sent and received in one sum."""

    up: int
    down: int


class Total(NamedTuple):
    """A masked sum.

    Args:
        vector: Exact sum, int64.
        traffic: Bytes of each client.
    """

    vector: Integers
    heard: tuple[str, ...]
    traffic: dict[str, Bytes]


class MaskedSums:
    """Secure aggregation among the parties of one run, each message carried like an upload.

    Guarantee: see ``docs/masking.md``. The server sees five messages of each client, which
    without more than a third of the clients tell it the sum and nothing else.

    Args:
        transport: Carries messages; it vouches for their senders.
        recorder: Told of every message as the server sees it.
    """

    def __init__(self, parties: KeyRing, transport: Transport, recorder: Recorder) -> None:
        self._parties = parties
        self._transport = transport
        self._recorder = recorder

    def add(
        self, vectors: Mapping[str, Integers], context: Context, *, bound: int = LARGEST_BOUND
    ) -> Total:
        """The exact sum of all vectors that arrive.

        Args:
            vectors: int64 [size] of each client.
            context: Run, round and kind; the sender is of no account.
            bound: Largest magnitude of one number; public.

        Raises:
            MaskingError: A number beyond the bound, or too few clients: then there is no
                sum, and nobody has learnt anything.
        """
        up, down = dict.fromkeys(vectors, 0), dict.fromkeys(vectors, 0)

        def carry(step: MaskingStep, sender: str, message: bytes) -> bytes:
            kind = mask_kind(context.kind, step)
            own = Context(context.run, context.round, sender, kind)
            delivery = self._transport.relay(message, own)
            up[sender] += delivery.size
            self._recorder(context.round, sender, kind, delivery.payload)
            return delivery.payload

        def deliver(client: str, message: bytes) -> None:
            down[client] += len(message)

        clients = {name: self._parties.clients[name] for name in vectors}
        total = run_masked_sum(
            vectors,
            {name: identity.signing_key for name, identity in clients.items()},
            {name: self._parties.trusted.lookup(name).key for name in clients},
            context,
            bound=bound,
            carry=carry,
            deliver=deliver,
        )
        traffic = {name: Bytes(up[name], down[name]) for name in vectors}
        return Total(total.total, total.survivors, traffic)


def mask_kind(kind: str, step: MaskingStep) -> str:
    """Kind of a client's message of one step of a masked sum."""
    return f"{kind}{_MARK}{_LETTERS[step]}"


def mask_step(kind: str) -> tuple[str, MaskingStep] | None:
    """The reverse of :func:`mask_kind`; None for a kind that is no such message."""
    base, mark, deliver = kind.rpartition(_MARK)
    if not mark or len(deliver) != 1 or deliver not in _LETTERS:
        return None
    return base, MaskingStep(_LETTERS.index(deliver))


def to_vector(statistics: ClassStatistics) -> Integers:
    """Statistics on the grid, and for each class whether there are any: what is summed.

    Returns:
        int64: presence [C], counts [C], sums [C·p], second moments [C·p] or the upper
        triangle [p(p+1)/2].

    Raises:
        MaskingError: A number beyond :data:`LARGEST_SUM`; nothing is clipped.
    """
    square = statistics.square
    if statistics.pooled:
        square = square[np.triu_indices(statistics.width)]
    parts = (statistics.count > 0, statistics.count, statistics.total, square)
    flat = np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])
    return encode_fixed(flat, scale_bits=SCALE_BITS, bound=LARGEST_SUM)


def from_vector(
    total: Integers, *, like: ClassStatistics
) -> tuple[ClassStatistics, NDArray[np.int64]]:
    """Statistics from a sum of :func:`to_vector`'s vectors.

    Args:
        like: Of the agreed classes, width and moments.

    Returns:
        The sum of statistics, and the number of contributors per class [C].
    """
    classes, width, pooled = like.classes, like.width, like.pooled
    real = decode_fixed(total, scale_bits=SCALE_BITS)
    presence, count, sums, square = np.split(real, np.cumsum([classes, classes, classes * width]))
    if pooled:
        rows, columns = np.triu_indices(width)
        matrix = np.zeros((width, width))
        matrix[rows, columns] = matrix[columns, rows] = square
        square = matrix
    else:
        square = square.reshape(classes, width)
    statistics = ClassStatistics(count, sums.reshape(classes, width), square, pooled)
    return statistics, np.rint(presence).astype(np.int64)


def vector_size(classes: int, width: int, *, pooled: bool) -> int:
    """Length of :func:`to_vector`'s vectors."""
    return classes * (2 + width) + (width * (width + 1) // 2 if pooled else classes * width)


def vector_bound() -> int:
    """The masked sum's public bound for :func:`to_vector`, in steps of the grid."""
    return grid_bound(LARGEST_SUM, scale_bits=SCALE_BITS)
