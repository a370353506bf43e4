"""What a round consists of: each client's work, and what then travels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedvtc_edge import wire
from fedvtc_edge.masking import LARGEST_BOUND
from fedvtc_edge.privacy.release import noised
from fedvtc_edge.privacy.release_spec import Array, ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.privacy.release_store import SERVER
from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.transport.masked_sum import (
    Integers,
    from_vector,
    to_vector,
    vector_bound,
    vector_size,
)
from fedvtc_edge.wire.context import Context

if TYPE_CHECKING:
    from .federation import Federation


class Exchange(ABC):
    """One kind of upload: how a client makes it, how the server adds it up and publishes.

    Both halves stand side by side, whichever process runs which.

    Attributes:
        kind: What its contexts and publications are called.
        for_all: Whether everybody downloads what is published, or the cohort alone.
    """

    kind: str
    for_all = True

    @abstractmethod
    def payload(self, federation: Federation, client: Client, context: Context) -> bytes:
        """A client's upload, encoded."""

    @abstractmethod
    def receive(
        self, federation: Federation, upload: bytes, *, context: Context, fingerprint: str | None
    ) -> bool:
        """Open and check one upload; False where it was refused, with a note."""

    @abstractmethod
    def close(self, federation: Federation, number: int, quorum: int) -> bytes:
        """Add up what was received in a round, and publish it."""


class SecureAggregatable(Exchange):
    """An upload of which a sum under masks is enough.

    Attributes:
        bound: Largest magnitude of one number; public.
    """

    bound: int

    @abstractmethod
    def size(self, federation: Federation) -> int:
        """How many numbers a vector has."""

    @abstractmethod
    def vector(
        self, federation: Federation, client: Client, context: Context
    ) -> tuple[Integers, bytes]:
        """What goes under a client's masks, int64 [size], and what its ledger says of it."""

    @abstractmethod
    def close_sum(
        self, federation: Federation, total: Integers, heard: Sequence[str], quorum: int
    ) -> bytes:
        """Publish a sum whose parts nobody saw."""


@dataclass(frozen=True)
class RoundStep:
    """A stretch of a round: each client's work and, at its end, an exchange or nothing.

    Args:
        work: Done by one client on its own.
        exchange: What travels then.
    """

    work: Callable[[Client], None] | None = None
    exchange: Exchange | None = None


# ---------------------------------------------------------------- section
# The four things that can travel: exact statistics, noised or clipped sums, and decoders.


@dataclass(frozen=True)
class Exact(SecureAggregatable):
    """Class statistics as they are.

    Args:
        kind: ``anchor`` or ``features``.
        measure: Takes them of one client.
        width: Number p of features.
        pooled: One second-moment matrix for all classes, or squares per class.
        floor: Least standard deviation that is published.
    """

    kind: str
    measure: Callable[[Client], ClassStatistics]
    width: int
    pooled: bool
    floor: float = 0.0
    bound = vector_bound()

    def payload(self, federation: Federation, client: Client, context: Context) -> bytes:
        """Statistics in the precision of the settings."""
        precision = federation.config.transport.precision
        return wire.encode(self.measure(client), context=context, precision=precision)

    def receive(
        self, federation: Federation, upload: bytes, *, context: Context, fingerprint: str | None
    ) -> bool:
        """Open and check one client's statistics."""
        return federation.server.receive(
            upload, context=context, width=self.width, pooled=self.pooled, fingerprint=fingerprint
        )

    def close(self, federation: Federation, number: int, quorum: int) -> bytes:
        """The global statistics."""
        return federation.server.close(quorum=quorum, floor=self.floor)

    def size(self, federation: Federation) -> int:
        """Presence, counts, sums and second moments."""
        return vector_size(federation.classes, self.width, pooled=self.pooled)

    def vector(
        self, federation: Federation, client: Client, context: Context
    ) -> tuple[Integers, bytes]:
        """Statistics on the grid."""
        vector = to_vector(self.measure(client))
        return vector, vector.tobytes()

    def close_sum(
        self, federation: Federation, total: Integers, heard: Sequence[str], quorum: int
    ) -> bytes:
        """The global statistics, of a sum on the grid."""
        blank = blank_statistics(federation.classes, self.width, pooled=self.pooled)
        summed, number = from_vector(total, like=blank)
        return federation.server.publish_sum(summed, number, heard, quorum=quorum, floor=self.floor)


class _Release(Exchange):
    """One vector of whole numbers, which the server checks by its design."""

    spec: ReleaseSpec

    def receive(
        self, federation: Federation, upload: bytes, *, context: Context, fingerprint: str | None
    ) -> bool:
        """Open and check one client's numbers; that they are clipped, where that is agreed."""
        return federation.server.receive_release(
            upload, context=context, spec=self.spec, fingerprint=fingerprint
        )


@dataclass(frozen=True)
class Noised(_Release, SecureAggregatable):
    """Releases that carry their noise when they leave the client; drawn once, then kept.

    Args:
        kind: ``anchor`` or ``features``.
        draw: A new release of one client, int64 [size].
        spec: What it looks like.
        centre: Public centre of the features.
        std: A public constant to publish in place of estimated deviations.
    """

    kind: str
    draw: Callable[[Client], Integers]
    spec: ReleaseSpec
    centre: Array
    std: float | None = None
    bound = LARGEST_BOUND

    def payload(self, federation: Federation, client: Client, context: Context) -> bytes:
        """The release; the same bytes whenever it is asked for."""
        return federation.releases.once(
            client.id,
            _name(context),
            lambda: wire.encode_release(self.draw(client), context=context),
        )

    def close(self, federation: Federation, number: int, quorum: int) -> bytes:
        """What the sum of the releases says of the data."""
        return federation.server.close_releases(
            quorum=quorum, spec=self.spec, centre=self.centre, std=self.std
        )

    def size(self, federation: Federation) -> int:
        """As designed."""
        return self.spec.size

    def vector(
        self, federation: Federation, client: Client, context: Context
    ) -> tuple[Integers, bytes]:
        """The release, of whole numbers already."""
        payload = self.payload(federation, client, context)
        return wire.decode_release(payload, size=self.spec.size, context=context), payload

    def close_sum(
        self, federation: Federation, total: Integers, heard: Sequence[str], quorum: int
    ) -> bytes:
        """What a masked sum of releases says of the data."""
        return federation.server.publish_releases(
            total, heard, self.spec, self.centre, quorum=quorum, std=self.std
        )


@dataclass(frozen=True)
class Clipped(_Release):
    """Uploads clipped as a whole, whose sum a trusted server noises once.

    Args:
        kind: ``anchor`` or ``features``.
        clip: One client's clipped sums, int64 [size].
        spec: Clip bound and noise.
        centre: Public centre of the features.
        std: A public constant to publish in place of estimated deviations.
    """

    kind: str
    clip: Callable[[Client], Integers]
    spec: ClientReleaseSpec
    centre: Array
    std: float | None = None

    def payload(self, federation: Federation, client: Client, context: Context) -> bytes:
        """Clipped sums."""
        return wire.encode_release(self.clip(client), context=context)

    def close(self, federation: Federation, number: int, quorum: int) -> bytes:
        """The server's one release of the noised sum, in the ledger before it is published."""
        total = federation.server.add_releases(quorum=quorum)
        context = Context(federation.run, number, SERVER, self.kind)
        released = federation.releases.once(
            SERVER,
            _name(context),
            lambda: wire.encode_release(noised(self.spec, total), context=context),
        )
        federation.record(context, released)
        return federation.server.publish_release(
            released, context, self.spec, self.centre, std=self.std
        )


@dataclass(frozen=True)
class Decoders(Exchange):
    """All weights of ψ, which has one shape for all; they are averaged for those who sent.

    Args:
        like: Weights of the agreed names and shapes.
    """

    like: wire.Weights
    kind = "decoder"
    for_all = False

    def payload(self, federation: Federation, client: Client, context: Context) -> bytes:
        """float32 weights."""
        return wire.encode_weights(client.decoder_weights(), context=context)

    def receive(
        self, federation: Federation, upload: bytes, *, context: Context, fingerprint: str | None
    ) -> bool:
        """Open and check one client's decoder."""
        return federation.server.receive_decoder(
            upload, context=context, like=self.like, fingerprint=fingerprint
        )

    def close(self, federation: Federation, number: int, quorum: int) -> bytes:
        """The plain average."""
        return federation.server.close_decoders(quorum=quorum)


def blank_statistics(classes: int, width: int, *, pooled: bool) -> ClassStatistics:
    """Statistics of nothing, of the agreed shapes."""
    zero = np.zeros((classes, width))
    square = np.zeros((width, width)) if pooled else zero
    return ClassStatistics(np.zeros(classes), zero, square, pooled)


def _name(context: Context) -> str:
    """What a kept release is called: one of each kind, or one of each kind and round."""
    return f"{context.kind}-{context.round:04d}" if context.round else context.kind
