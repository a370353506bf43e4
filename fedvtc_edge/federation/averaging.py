"""Averages of clients' weights: of decoders, and of the small networks that clients share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge import wire
from fedvtc_edge.statistics.running_sum import RunningSum
from fedvtc_edge.training.client import Client
from fedvtc_edge.wire import WireError
from fedvtc_edge.wire.context import Context

from .exchange import LARGEST_COMPARED, Doubt, Exchange
from .robustness import CheckError, straying


@dataclass(frozen=True)
class Average(Exchange[wire.Weights]):
    """Weights of one agreed set of names and shapes; their plain average is published.

    Args:
        weights: What a client uploads of its networks.
        like: Weights of the agreed names and shapes.
    """

    kind: str
    weights: Callable[[Client], wire.Weights]
    like: wire.Weights
    least: int = 0
    for_all: bool = True

    def encode(self, client: Client, context: Context) -> bytes:
        """Encode float32 weights."""
        return wire.encode_weights(self.weights(client), context=context)

    def decode(self, upload: bytes, context: Context) -> wire.Weights:
        """Read one client's weights."""
        return wire.decode_weights(upload, like=self.like, context=context)

    def compares(self, number: int) -> bool:
        """True as long as all fit in memory, in float64."""
        return number * 8 * sum(one.size for one in self.like.values()) <= LARGEST_COMPARED

    def doubts(self, parts: Sequence[wire.Weights]) -> dict[int, Doubt[wire.Weights]]:
        """Objections to weights far from all others, which count for what lies at the bound."""
        why = CheckError(
            f"{self.kind}: weights far from all others: drawn to them",
            hint="the client's training may have diverged, or it means to harm",
        )
        return {index: Doubt(part, why) for index, part in straying(parts).items()}

    def aggregate(self, parts: Iterable[wire.Weights], context: Context) -> bytes:
        """Encode the plain average over clients (FedAvg, McMahan et al. 2017)."""
        return wire.encode_weights(self.mean(parts))

    def mean(self, parts: Iterable[wire.Weights]) -> dict[str, NDArray[np.float64]]:
        """Exact average, the same bits in any order of the parts."""
        names, sizes = list(self.like), np.cumsum([one.size for one in self.like.values()])
        running = RunningSum(int(sizes[-1]))
        for part in parts:
            running.add(np.concatenate([np.asarray(part[name]).ravel() for name in names]))
        flat = np.split(running.total() / running.number, sizes[:-1])
        return {
            name: own.reshape(self.like[name].shape) for name, own in zip(names, flat, strict=True)
        }


LEAST_LOG = -20.0
"""Smallest logarithm of a posterior that travels: no upload can move an average further."""

_TOLERANCE = 1e-3

SCORES = "scores"
"""Kind of uploads, and name of their one array."""


@dataclass(frozen=True)
class ScoreAverage(Average):
    """Log-posteriors of public images; their average, a logarithmic opinion pool, is published.

    Each number is bounded, and so is what one client can do to the average: none is compared.
    """

    def decode(self, upload: bytes, context: Context) -> wire.Weights:
        """Read one client's scores: of each image those of a distribution, cut off below."""
        found = super().decode(upload, context)
        check_scores(found[SCORES])
        total = np.exp(np.asarray(found[SCORES], np.float64)).sum(1)
        if (total < 1 - _TOLERANCE).any() or (total > 1 + _TOLERANCE).any():
            raise WireError("scores that are no log-posteriors", hint="do they add up to one?")
        return found

    def compares(self, number: int) -> bool:
        """None is."""
        return False


def check_scores(scores: NDArray[np.float32]) -> None:
    """Refuse scores that no average of log-posteriors has.

    Raises:
        WireError: Above 0, or below what is cut off.
    """
    if (scores > 0).any() or (scores < LEAST_LOG).any():
        raise WireError(
            f"a score outside of {LEAST_LOG:g} to 0", hint="expected logarithms of posteriors"
        )
