"""FedKD (Wu et al. 2022, arXiv 2108.13323): a mentor and a mentee, whose updates are factored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedvtc_edge import wire
from fedvtc_edge.federation.averaging import Average
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.losses import distill, masked_cross_entropy
from fedvtc_edge.training.own_objective import BatchLoss
from fedvtc_edge.wire import WireError
from fedvtc_edge.wire.context import Context

from .base import Knob
from .companions import KIND, SharedCompanion, both, weights_of

LAST_ENERGY = 0.98
"""Share of an update's energy, the sum of its squares, that is kept at the end."""

CLIP = 10.0
"""Largest norm of a gradient of either network."""

RANKS = "ranks"
"""Name of what is published beside the weights: the ranks of the next round's factors."""


class FedKD(SharedCompanion):
    """The own network is the mentor, the small one the mentee; each learns from the other.

    CE + (KL(other ‖ own) + MSE of the features) / (sum of both CE): what neither knows yet is
    taught little. Shared is the small network's update of each round, its matrices as the product
    of two factors. Their ranks are agreed on with the weights that a round begins with, so that
    no upload's length depends on data: as many singular values as keep the share of the last
    averaged update's energy. The first round has none, and sends it whole.
    """

    knob: ClassVar[Knob | None] = Knob(
        "share of an update's energy that is kept at first",
        0.95,
        (0.9, 0.95, 0.98),
        0.5,
        LAST_ENERGY,
    )

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.ranks: Mapping[str, int] = {}

    def train(self, client: Client, number: int) -> None:
        """Steps with bounded gradients."""
        self.take_steps(client, number, clip=CLIP)

    def objective(self, client: Client) -> BatchLoss:
        """Both losses; neither network moves by the other one's."""
        outputs = both(client)

        def loss(x: Tensor, labels: Tensor) -> Tensor:
            own, small = outputs(x)
            labelled = [masked_cross_entropy(n[1], labels, client.present) for n in (own, small)]
            total = labelled[0] + labelled[1]
            taught = [
                distill(mine[1], other[1].detach().log_softmax(1))
                + F.mse_loss(mine[0], other[0].detach())
                for mine, other in ((own, small), (small, own))
            ]
            return total + (taught[0] + taught[1]) / total.detach().clamp(min=1e-6)

        return loss

    def energy(self, number: int) -> float:
        """Share of the energy that is kept in a round; it rises evenly."""
        rounds = self.federation.config.method.rounds
        return self.strength + (LAST_ENERGY - self.strength) * min(number / rounds, 1.0)

    def exchange(self, number: int) -> Average:
        """Average of updates that come factored."""
        least = self.federation.config.server.minimum_contributors
        following = self.energy(number + 1)
        return FactoredAverage(
            KIND, weights_of, self.weights, least, ranks=self.ranks, following=following
        )

    def take_up(self, data: bytes) -> None:
        """Read the averaged network and the ranks of its next update.

        Raises:
            WireError: Weights of another network, or ranks that no factors have.
        """
        matrices = matrices_of(self.weights)
        like = {**self.weights, RANKS: np.zeros(len(matrices))}
        found = dict(wire.decode_weights(data, like=like))
        ranks = found.pop(RANKS)
        most = np.array([min(_flat(self.weights[name]).shape) for name in matrices])
        if ((ranks != np.round(ranks)) | (ranks < 1) | (ranks > most)).any():
            raise WireError(f"ranks {ranks!r:.80}", hint="expected those of an update's factors")
        self.weights, self.ranks = found, dict(zip(matrices, ranks.astype(int), strict=True))

    def uploads(self) -> list[str]:
        """Uploads of a client, in words."""
        return [
            "every round: the update of a small network that was trained on its data, from the "
            "second round on as factors of lower rank"
        ]


@dataclass(frozen=True)
class FactoredAverage(Average):
    """Average of weights whose updates travel as two factors for each matrix.

    Args:
        like: Weights that the round begins with.
        ranks: Of the factors, by matrix; a matrix travels whole where factors are no shorter.
        following: Share of the energy that the next round's ranks keep.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    following: float = 1.0

    @property
    def form(self) -> dict[str, NDArray[Any]]:
        """Arrays that travel, by names and shapes."""
        form: dict[str, NDArray[Any]] = {}
        for name, value in self.like.items():
            rank = self._rank(name)
            if rank is None:
                form[name] = value
                continue
            rows, columns = _flat(value).shape
            form |= {
                f"{name}.left": np.zeros((rows, rank)),
                f"{name}.right": np.zeros((rank, columns)),
            }
        return form

    def encode(self, client: Client, context: Context) -> bytes:
        """Encode the update: the best approximation of each matrix of its rank."""
        parts: dict[str, NDArray[Any]] = {}
        for name, value in self.weights(client).items():
            update, rank = np.asarray(value, np.float64) - self.like[name], self._rank(name)
            if rank is None:
                parts[name] = update
                continue
            left, size, right = np.linalg.svd(_flat(update), full_matrices=False)
            root = np.sqrt(size[:rank])
            parts |= {
                f"{name}.left": left[:, :rank] * root,
                f"{name}.right": root[:, None] * right[:rank],
            }
        return wire.encode_weights(parts, context=context)

    def decode(self, upload: bytes, context: Context) -> wire.Weights:
        """Read one client's update; the weights that it makes of those of the beginning."""
        parts = wire.decode_weights(upload, like=self.form, context=context)
        found = {}
        for name, start in self.like.items():
            update = parts.get(name)
            if update is None:
                left, right = (
                    np.asarray(parts[f"{name}.{s}"], np.float64) for s in ("left", "right")
                )
                update = (left @ right).reshape(start.shape)
            found[name] = start + np.asarray(update, np.float64)
            if (np.abs(found[name]) > np.finfo(np.float32).max).any():
                raise WireError(f"{name}: a weight is not finite", hint="its training diverged")
        return found

    def aggregate(self, parts: Iterable[wire.Weights], context: Context) -> bytes:
        """Encode the average, whole, and the ranks of the next round."""
        mean = self.mean(parts)
        ranks = [
            rank_of(_flat(mean[name] - self.like[name]), self.following)
            for name in matrices_of(self.like)
        ]
        return wire.encode_weights({**mean, RANKS: np.array(ranks)})

    def _rank(self, name: str) -> int | None:
        """Rank of a matrix's factors; None where it travels whole."""
        rank = self.ranks.get(name)
        if rank is None:
            return None
        rows, columns = _flat(self.like[name]).shape
        return rank if rank * (rows + columns) < rows * columns else None


def matrices_of(weights: wire.Weights) -> list[str]:
    """Names of what can be factored: weights with two dimensions or more."""
    return [name for name, value in weights.items() if value.ndim > 1]


def rank_of(matrix: NDArray[np.float64], energy: float) -> int:
    """Number of singular values whose squares are that share of the sum of all, at least 1."""
    squares = np.cumsum(np.square(np.linalg.svd(matrix, compute_uv=False)))
    return 1 + int(np.searchsorted(squares[:-1], energy * squares[-1]))


def _flat(value: NDArray[Any]) -> NDArray[Any]:
    """A kernel as a matrix: one row for each output channel."""
    return value.reshape(len(value), -1)
