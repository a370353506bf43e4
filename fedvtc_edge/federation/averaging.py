"""Averages of clients' weights: of decoders, and of the small networks that clients share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge import wire
from fedvtc_edge.statistics.running_sum import RunningSum
from fedvtc_edge.training.client import Client
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
