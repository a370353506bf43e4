"""Exchanges of a round: encoded by clients, read and added by the server.

Of statistics, in three kinds: exact, as noised releases, and as clipped sums that the server
noises.
Averages of weights are in :mod:`fedvtc_edge.federation.averaging`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge import wire
from fedvtc_edge.config import ServerSettings
from fedvtc_edge.errors import FedVTCError, ServerError
from fedvtc_edge.masking import LARGEST_BOUND
from fedvtc_edge.privacy.mechanism import Mechanism
from fedvtc_edge.privacy.release import check_norm, check_release, estimate
from fedvtc_edge.privacy.release_spec import Array, ReleaseSpec
from fedvtc_edge.privacy.release_store import ReleaseStore
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.transport.masked_sum import (
    Integers,
    from_vector,
    to_vector,
    vector_bound,
    vector_size,
)
from fedvtc_edge.wire.context import Context

from .cross_check import contradicting, in_words
from .robustness import (
    CheckError,
    add_up,
    check_norms,
    check_sum,
    outweighing,
    scaled,
    suppress,
)

Part = TypeVar("Part")
"""One client's upload, opened and checked."""

LARGEST_COMPARED = 2**26
"""Bytes of uploads that may be kept to be compared, in float64: at 128 features and 10 classes
470 clients'. Of more, each is added and forgotten."""


@dataclass(frozen=True)
class Doubt(Generic[Part]):
    """Objection of all uploads together to one of them.

    Args:
        counts: What counts instead; None where nothing of it does.
        why: For the log of refusals.
    """

    counts: Part | None
    why: FedVTCError


class Exchange(ABC, Generic[Part]):
    """One kind of upload, from a client's bytes to what the server publishes.

    Attributes:
        kind: What its contexts are called.
        published_as: What its publications are called, if not as its contexts.
        for_all: Whether everybody downloads what is published, or the cohort alone.
        least: So many uploads must count, whatever the quorum is.
        ordered: Whether what is published depends on the order of the parts: then all are kept
            until the last one has come, and taken by the names of their senders.
    """

    kind: str
    published_as: str = ""
    for_all: bool = True
    least: int = 0
    ordered: bool = False

    @property
    def publication(self) -> str:
        """Name of what is published."""
        return self.published_as or self.kind

    @abstractmethod
    def encode(self, client: Client, context: Context) -> bytes:
        """Encode a client's upload."""

    @abstractmethod
    def decode(self, upload: bytes, context: Context) -> Part:
        """Open and check one client's upload.

        Args:
            upload: Untrusted bytes.
            context: What they must belong to.

        Raises:
            FedVTCError: No such upload, or one that no honest client has.
        """

    def compares(self, number: int) -> bool:
        """Whether so many uploads are kept and compared before they are added."""
        return False

    def doubts(self, parts: Sequence[Part]) -> dict[int, Doubt[Part]]:
        """Objections of all uploads together to some of them, by index, if it compares."""
        return {}

    @abstractmethod
    def aggregate(self, parts: Iterable[Part], context: Context) -> bytes:
        """Add up parts as they come, and encode what is published.

        Args:
            parts: Read once and in order; none is kept where a running sum is enough.
            context: Of the publication; its sender is the server.

        Raises:
            ServerError: What may be published needs more contributors.
        """


class SecureAggregatable(Exchange[Part]):
    """An upload of which a sum under masks is enough.

    Attributes:
        bound: Largest magnitude of one number; public.
    """

    bound: int

    @property
    @abstractmethod
    def size(self) -> int:
        """Length of a vector."""

    @abstractmethod
    def vector(self, client: Client, context: Context) -> tuple[Integers, bytes]:
        """Vector under a client's masks, int64 [size], and the bytes that its ledger digests."""

    @abstractmethod
    def from_sum(self, total: Integers, clients: int) -> bytes:
        """Encode what a sum over so many clients, whose parts nobody saw, publishes.

        Raises:
            ServerError: As :meth:`aggregate`.
        """


@dataclass(frozen=True)
class RoundStep:
    """A stretch of a round: each client's work and, at its end, an exchange or nothing.

    Args:
        work: Done by one client on its own.
        together: The same, done by many at once where networks are stacked; None where each
            goes alone.
    """

    work: Callable[[Client], None] | None = None
    exchange: Exchange[Any] | None = None
    together: Callable[[Sequence[Client]], None] | None = None


@dataclass(frozen=True)
class Exact(SecureAggregatable[ClassStatistics]):
    """Class statistics as they are.

    Args:
        kind: ``anchor`` or ``features``.
        classes: Number C of classes.
        width: Number p of features.
        pooled: One second-moment matrix for all classes, or squares per class.
        precision: Of an upload's numbers.
        server: How much is trimmed, and of how many contributors a class is published.
    """

    kind: str
    measure: Callable[[Client], ClassStatistics]
    classes: int
    width: int
    pooled: bool
    floor: float = 0.0
    precision: wire.Precision = "float32"
    server: ServerSettings = field(default_factory=ServerSettings)
    bound = vector_bound()

    def written(self, statistics: ClassStatistics, context: Context | None = None) -> bytes:
        """An upload, in the precision of the settings."""
        return wire.encode(statistics, context=context, precision=self.precision)

    def encode(self, client: Client, context: Context) -> bytes:
        """Encode a client's statistics."""
        return self.written(self.measure(client), context)

    def decode(self, upload: bytes, context: Context) -> ClassStatistics:
        """Read one client's statistics and check their norms."""
        statistics = wire.decode(
            upload, classes=self.classes, width=self.width, pooled=self.pooled, context=context
        )
        check_norms(statistics)
        return statistics

    @property
    def ordered(self) -> bool:  # type: ignore[override]
        """True where sums are trimmed."""
        return self.server.trim > 0

    def compares(self, number: int) -> bool:
        """True as long as all fit in memory."""
        moments = self.width**2 if self.pooled else self.classes * self.width
        each = 8 * (self.classes * (1 + self.width) + moments)
        return number * each <= LARGEST_COMPARED

    def doubts(self, parts: Sequence[ClassStatistics]) -> dict[int, Doubt[ClassStatistics]]:
        """Objections to uploads that all others contradict, or that claim too many samples.

        Compared are statistics of the common frozen extractor alone: clients' own features
        mean something else at each.
        """
        found: dict[int, Doubt[ClassStatistics]] = {}
        if self.kind == "anchor" and self.server.cross_check:
            for index, against in contradicting(parts).items():
                why = CheckError(
                    f"set aside: {in_words(against, parts[index])}",
                    hint="ask who it is; server.cross_check = false counts all",
                )
                found[index] = Doubt(None, why)
        kept = [index for index in range(len(parts)) if index not in found]
        return found | self._outweighing(kept, parts)

    def _outweighing(
        self, kept: Sequence[int], parts: Sequence[ClassStatistics]
    ) -> dict[int, Doubt[ClassStatistics]]:
        """Objections to those of the kept parts that claim too many samples."""
        found: dict[int, Doubt[ClassStatistics]] = {}
        most = self.server.most_samples
        for place, bound in outweighing([parts[index] for index in kept], most).items():
            index = kept[place]
            samples = parts[index].count.sum()
            why = CheckError(
                f"{samples:.0f} samples weigh as {bound:.0f}", hint="see server.most_samples"
            )
            found[index] = Doubt(scaled(parts[index], bound), why)
        return found

    def aggregate(self, parts: Iterable[ClassStatistics], context: Context) -> bytes:
        """Encode the global statistics."""
        most = self.server.most_samples
        if most is not None:  # where they were compared, they are already
            parts = (scaled(part, most) for part in parts)
        return self._published(*add_up(parts, self.server.trim))

    @property
    def size(self) -> int:
        """Presence, counts, sums and second moments."""
        return vector_size(self.classes, self.width, pooled=self.pooled)

    def vector(self, client: Client, context: Context) -> tuple[Integers, bytes]:
        """Statistics on the grid."""
        vector = to_vector(self.measure(client))
        return vector, vector.tobytes()

    def from_sum(self, total: Integers, clients: int) -> bytes:
        """Encode the global statistics, of a sum on the grid."""
        blank = blank_statistics(self.classes, self.width, pooled=self.pooled)
        statistics, number = from_vector(total, like=blank)
        check_sum(statistics, number, clients, self.server.most_samples)
        return self._published(statistics, number)

    def _published(self, total: ClassStatistics, contributors: NDArray[np.int64]) -> bytes:
        minimum = self.server.minimum_contributors
        if 0 < contributors.max(initial=0) < minimum:
            raise ServerError(
                f"no class has {minimum} contributors, the most are {contributors.max()}",
                hint="lower server.minimum_contributors",
            )
        statistics = self._statistics(total, contributors)
        return wire.publish(suppress(statistics, contributors, minimum, floor=self.floor))

    def _statistics(self, total: ClassStatistics, holders: NDArray[np.int64]) -> GlobalStatistics:
        """Statistics to publish of a sum.

        Args:
            holders: Clients that have a class, [C].
        """
        return GlobalStatistics.from_sum(total, floor=self.floor)


class Means(Exact):
    """Class counts and sums: no second moment travels, nor is one in a masked sum.

    In float32 whatever ``precision`` is, for they are few.
    """

    def written(self, statistics: ClassStatistics, context: Context | None = None) -> bytes:
        """An upload of counts and sums."""
        return wire.encode_means(statistics, context=context)

    def decode(self, upload: bytes, context: Context) -> ClassStatistics:
        """Read one client's counts and sums, with second moments of zero."""
        found = wire.decode_means(upload, classes=self.classes, width=self.width, context=context)
        check_norms(found)
        return found


@dataclass(frozen=True)
class Noised(SecureAggregatable[Integers]):
    """Releases that carry their noise when they leave the client; drawn once, then kept.

    Args:
        kind: ``anchor`` or ``features``.
        draw: A new release of one client, int64 [size].
        centre: Public centre of the features.
        least: Contributors that the settings ask for: each adds noise to every class.
        std: A public constant to publish in place of estimated deviations.
        most: Samples that one client may have; None where the clip bounds a whole upload.
    """

    kind: str
    draw: Callable[[Client], Integers]
    spec: ReleaseSpec
    centre: Array
    releases: ReleaseStore
    least: int = 0
    std: float | None = None
    most: int | None = None
    bound = LARGEST_BOUND

    def encode(self, client: Client, context: Context) -> bytes:
        """Encode the release; the same bytes whenever it is asked for."""
        return self.releases.once(
            client.id,
            release_name(context),
            lambda: wire.encode_release(self.draw(client), context=context),
        )

    def decode(self, upload: bytes, context: Context) -> Integers:
        """Read one client's release, and check that noise explains what is beyond the bounds."""
        part = wire.decode_release(upload, size=self.spec.size, context=context)
        check_release(self.spec, part, most=self.most)
        return part

    def aggregate(self, parts: Iterable[Integers], context: Context) -> bytes:
        """Encode what the sum of the releases says of the data: post-processing."""
        return self.from_sum(*_sum_of(parts, self.spec.size))

    @property
    def size(self) -> int:
        """Numbers of a release."""
        return self.spec.size

    def vector(self, client: Client, context: Context) -> tuple[Integers, bytes]:
        """The release, of whole numbers already."""
        upload = self.encode(client, context)
        return self.decode(upload, context), upload

    def from_sum(self, total: Integers, clients: int) -> bytes:
        """Encode what a sum with so many draws of noise says of the data."""
        check_release(self.spec, total, most=self.most, draws=clients)
        return _estimate(self.spec, total, clients, self.centre, self.std)


@dataclass(frozen=True)
class Clipped(Exchange[Integers]):
    """Uploads clipped as a whole, whose sum a trusted server noises once.

    Args:
        kind: ``anchor`` or ``features``.
        clip: One client's clipped sums, int64 [size].
        centre: Public centre of the features.
        release: Draws the server's one release of a context, or gives what was drawn before;
            it is in the ledger when this returns.
        std: A public constant to publish in place of estimated deviations.
    """

    kind: str
    clip: Callable[[Client], Integers]
    mechanism: Mechanism
    centre: Array
    release: Callable[[Context, Callable[[], bytes]], bytes]
    least: int = 0
    std: float | None = None

    @property
    def spec(self) -> ReleaseSpec:
        """Form of the sums."""
        return self.mechanism.spec

    def encode(self, client: Client, context: Context) -> bytes:
        """Encode clipped sums."""
        return wire.encode_release(self.clip(client), context=context)

    def decode(self, upload: bytes, context: Context) -> Integers:
        """Read one client's sums and check that they are clipped."""
        part = wire.decode_release(upload, size=self.spec.size, context=context)
        check_norm(self.spec, part)
        return part

    def aggregate(self, parts: Iterable[Integers], context: Context) -> bytes:
        """Encode what the server's release of the noised sum says of the data."""
        total, _ = _sum_of(parts, self.spec.size)  # without noise: nobody else may see it
        released = self.release(
            context, lambda: wire.encode_release(self.mechanism.aggregate(total), context=context)
        )
        total = wire.decode_release(released, size=self.spec.size, context=context)
        return _estimate(self.spec, total, 1, self.centre, self.std)


def blank_statistics(classes: int, width: int, *, pooled: bool) -> ClassStatistics:
    """Statistics of nothing, of the agreed shapes."""
    zero = np.zeros((classes, width))
    square = np.zeros((width, width)) if pooled else zero
    return ClassStatistics(np.zeros(classes), zero, square, pooled)


def release_name(context: Context) -> str:
    """Name of a kept release: one of each kind, or one of each kind and round."""
    return f"{context.kind}-{context.round:04d}" if context.round else context.kind


def _sum_of(parts: Iterable[Integers], size: int) -> tuple[Integers, int]:
    """The sum of releases, and how many there were."""
    total, number = np.zeros(size, np.int64), 0
    for part in parts:
        total += part
        number += 1
    return total, number


def _estimate(
    spec: ReleaseSpec, total: Integers, draws: int, centre: Array, std: float | None
) -> bytes:
    """Post-processing of a sum that carries so many draws of noise."""
    statistics = estimate(spec, total, draws, centre)
    if std is not None:  # a public constant in place of an estimate
        statistics = replace(statistics, std=np.full_like(statistics.std, std))
    return wire.publish(statistics)
