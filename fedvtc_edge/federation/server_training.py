"""Exchanges after which the server trains something, and heads that travel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge import wire
from fedvtc_edge.config import ServerSettings
from fedvtc_edge.errors import ServerError
from fedvtc_edge.statistics.class_statistics import Array, ClassStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.wire.context import Context
from fedvtc_edge.wire.uploads import check_counts

from .exchange import Doubt, Exact, Exchange, Part, blank_statistics
from .robustness import CheckError, contributors, outweighing

LARGEST_WEIGHT = 1e3
"""Largest magnitude of one weight of a head or a generator; trained ones stay below 10."""

COUNT = "count"
"""Name of the class counts [C] that travel with a head."""

HEAD = "head"
"""Name of heads among what travels."""

Head = Mapping[str, NDArray[np.float32]]
"""A linear head h: ``weight`` [C, p] and ``bias`` [C]."""


@dataclass(frozen=True)
class ServerTrained(Exchange[Part]):
    """Uploads of which the server needs each, for it trains with them what it publishes.

    Args:
        kind: That of ``uploads``.
        uploads: How one is encoded, read and compared with others; its sum is not used.
        train: Makes of all parts, in the order of their senders, what is published.
        blank: A publication of the right length that says nothing.
        published_as: Name of what is published.
        least: So many uploads must count, whatever the quorum is.
    """

    kind: str
    uploads: Exchange[Part]
    train: Callable[[Sequence[Part], Context], bytes]
    blank: Callable[[], bytes]
    published_as: str = ""
    least: int = 0
    ordered = True

    def encode(self, client: Client, context: Context) -> bytes:
        """Encode a client's upload."""
        return self.uploads.encode(client, context)

    def decode(self, upload: bytes, context: Context) -> Part:
        """Open and check one client's upload."""
        return self.uploads.decode(upload, context)

    def compares(self, number: int) -> bool:
        """Whether so many uploads are compared before they are used."""
        return self.uploads.compares(number)

    def doubts(self, parts: Sequence[Part]) -> dict[int, Doubt[Part]]:
        """Objections of all uploads together to some of them, by index."""
        return self.uploads.doubts(parts)

    def aggregate(self, parts: Iterable[Part], context: Context) -> bytes:
        """Train, and encode what is published.

        Raises:
            ServerError: What may be published needs more contributors, or training diverged.
        """
        return self.train(list(parts), context)


def from_statistics(
    exact: Exact,
    published_as: str,
    train: Callable[[Sequence[ClassStatistics], Context], bytes],
    blank: Callable[[], bytes],
) -> ServerTrained[ClassStatistics]:
    """The exchange of statistics with which the server trains.

    Classes of fewer than ``server.minimum_contributors`` are left out of all parts.
    """

    def enough(parts: Sequence[ClassStatistics], context: Context) -> bytes:
        return train(shared_classes(parts, exact.server.minimum_contributors), context)

    return ServerTrained(exact.kind, exact, enough, blank, published_as)


def shared_classes(parts: Sequence[ClassStatistics], minimum: int) -> list[ClassStatistics]:
    """Parts without the classes that fewer than ``minimum`` clients have.

    Raises:
        ServerError: There is no other.
    """
    number = contributors(parts)
    if 0 < number.max(initial=0) < minimum:
        raise ServerError(
            f"no class has {minimum} contributors, the most are {number.max()}",
            hint="lower server.minimum_contributors",
        )
    kept = number >= minimum
    if kept.all():
        return list(parts)
    return [
        ClassStatistics(
            part.count * kept, part.total * kept[:, None], part.square * kept[:, None], False
        )
        for part in parts
    ]


def prototypes(parts: Sequence[ClassStatistics]) -> tuple[Array, NDArray[np.int64]]:
    """Class means of each client, [R, p], and their classes, [R]; by client, then by class."""
    rows = [(part.mean[label], label) for part in parts for label in np.flatnonzero(part.count)]
    width = parts[0].width
    means = np.stack([mean for mean, _ in rows]) if rows else np.zeros((0, width))
    return means, np.array([label for _, label in rows], np.int64)


@dataclass(frozen=True)
class HeadUpload:
    """A client's head and its class counts.

    Args:
        count: Samples per class, [C].
    """

    head: Head
    count: Array


@dataclass(frozen=True)
class Heads(Exchange[HeadUpload]):
    """Heads on features of the common width, with class counts; they are averaged by samples.

    Args:
        classes: Number C of classes.
        width: Number p of features.
        server: What one client may weigh.
        least: So many uploads must count, whatever the quorum is.
    """

    classes: int
    width: int
    server: ServerSettings
    least: int = 0
    kind = HEAD

    @property
    def like(self) -> wire.Weights:
        """Arrays of the agreed names and shapes."""
        return blank_head(self.classes, self.width) | {COUNT: np.zeros(self.classes, np.float32)}

    def encode(self, client: Client, context: Context) -> bytes:
        """Encode float32 weights, and counts."""
        counts = client.counts.numpy().astype(np.float32)
        return wire.encode_weights(client.weights(HEAD) | {COUNT: counts}, context=context)

    def decode(self, upload: bytes, context: Context) -> HeadUpload:
        """Read one client's head; refuse weights and counts that no honest client has."""
        arrays = dict(wire.decode_weights(upload, like=self.like, context=context))
        count = arrays.pop(COUNT)
        check_counts(count)
        check_weights(arrays)
        return HeadUpload(arrays, count.astype(np.float64))

    def compares(self, number: int) -> bool:
        """True: heads are small."""
        return True

    def doubts(self, parts: Sequence[HeadUpload]) -> dict[int, Doubt[HeadUpload]]:
        """Objections to clients that claim too many samples."""
        claims = [_claim(part) for part in parts]
        found = {}
        for index, bound in outweighing(claims, self.server.most_samples).items():
            own = parts[index]
            samples = own.count.sum()
            why = CheckError(
                f"{samples:.0f} samples weigh as {bound:.0f}", hint="see server.most_samples"
            )
            found[index] = Doubt(HeadUpload(own.head, own.count * (bound / samples)), why)
        return found

    def aggregate(self, parts: Iterable[HeadUpload], context: Context) -> bytes:
        """Encode the average head."""
        return wire.encode_weights(average(list(parts)))


def average(parts: Sequence[HeadUpload]) -> Head:
    """Heads averaged by numbers of samples (FedAvg, McMahan et al. 2017)."""
    samples = np.array([part.count.sum() for part in parts])
    shares = samples / max(samples.sum(), 1.0)
    return {
        name: np.tensordot(shares, np.stack([part.head[name] for part in parts]), 1).astype(
            np.float32
        )
        for name in parts[0].head
    }


def blank_head(classes: int, width: int) -> dict[str, NDArray[np.float32]]:
    """A head of zeros."""
    return {
        "weight": np.zeros((classes, width), np.float32),
        "bias": np.zeros(classes, np.float32),
    }


def check_weights(weights: wire.Weights) -> None:
    """Refuse weights that nobody trains.

    Raises:
        CheckError: One that is not finite, or beyond :data:`LARGEST_WEIGHT`.
    """
    largest = float(np.max([np.abs(value).max(initial=0.0) for value in weights.values()]))
    if not largest <= LARGEST_WEIGHT:  # nor is a NaN
        raise CheckError(
            f"a weight of {largest:.4g}, expected {LARGEST_WEIGHT:g} at most",
            hint="training may have diverged",
        )


def encode_trained(weights: wire.Weights) -> bytes:
    """Weights that the server trained, as they are published.

    Raises:
        ServerError: Training diverged.
    """
    try:
        check_weights(weights)
    except CheckError as error:
        raise ServerError(
            f"what the server trains has {error}", hint="lower method.knob, or the server's rate"
        ) from None
    return wire.encode_weights(weights)


def decode_trained(data: bytes, like: wire.Weights) -> dict[str, Any]:
    """Read what :func:`encode_trained` wrote, at a client.

    Raises:
        WireError: Other names or shapes.
        CheckError: A weight that nobody trains.
    """
    weights = dict(wire.decode_weights(data, like=like))
    check_weights(weights)
    return weights


def _claim(part: HeadUpload) -> ClassStatistics:
    """Statistics of as many samples."""
    blank = blank_statistics(len(part.count), 1, pooled=False)
    return ClassStatistics(part.count, blank.total, blank.square, False)
