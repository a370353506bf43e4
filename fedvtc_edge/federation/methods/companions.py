"""Methods whose clients train a small network of one shape beside their own, and share it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge import wire
from fedvtc_edge.config import Config, MethodSettings
from fedvtc_edge.federation.averaging import Average
from fedvtc_edge.federation.exchange import RoundStep
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.models.companion import Companion, build_companion
from fedvtc_edge.models.registry import ImageShape
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.own_objective import BatchLoss

from .base import Method
from .supervised import matched_steps

KIND = "companion"
"""Name of the small network among a client's, and of its uploads."""

SMALL_WEIGHTS = "companion"
"""Content of uploads: weights of the small network, trained on all that a client has."""


class SharedCompanion(Method):
    """A round begins with the averaged small network and ends with an upload of its weights.

    A step moves both networks and counts twice in the matched budget.
    """

    every_round = True
    trimmable = False

    @classmethod
    def shared(cls, settings: Config) -> str:
        """Weights of the small network."""
        return SMALL_WEIGHTS

    @classmethod
    def companion(
        cls, settings: MethodSettings, shape: ImageShape, classes: int, *, seed: int
    ) -> Companion:
        """A network with features as wide as the clients' own."""
        return build_companion(shape, latent=settings.latent, classes=classes, seed=seed)

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        config, seed = federation.config, derive_seed(federation.config.seed, "companion")
        fresh = self.companion(config.method, federation.shape, federation.classes, seed=seed)
        self.weights: Mapping[str, NDArray[Any]] = {
            name: value.numpy() for name, value in fresh.network.state_dict().items()
        }
        """Of the small network, as a round begins."""

    def steps(self, number: int) -> Sequence[RoundStep]:
        """Train both networks; the small ones are averaged."""
        if number == 0:
            return []
        return [RoundStep(lambda client: self.train(client, number), self.exchange(number))]

    def train(self, client: Client, number: int) -> None:
        """Take the averaged network and train it together with the client's own."""
        self.take_steps(client, number)

    def take_steps(self, client: Client, number: int, **how: Any) -> None:
        """The same, with what else :meth:`Client.train_by` takes."""
        client.load(KIND, self.weights)
        steps = matched_steps(self.federation, client, number, networks=2)
        client.train_by(number, steps, self.objective, **how)

    @abstractmethod
    def objective(self, client: Client) -> BatchLoss:
        """Loss of a batch of the client's images and labels."""

    def exchange(self, number: int) -> Average:
        """Average of the small networks, published to all."""
        least = self.federation.config.server.minimum_contributors
        return Average(KIND, weights_of, self.weights, least)

    def restore(self, published: dict[str, bytes]) -> None:
        """Take up the averaged network.

        Raises:
            WireError: Weights of another network.
        """
        super().restore(published)
        if KIND in published:
            self.take_up(published[KIND])

    def take_up(self, data: bytes) -> None:
        """Read what the server published of the network."""
        self.weights = wire.decode_weights(data, like=self.weights)

    def uploads(self) -> list[str]:
        """Uploads of a client, in words."""
        return ["every round: all weights of a small network, trained on its data"]


Pair = tuple[Tensor, Tensor]
"""Features [n, p] and logits [n, C] of one network."""


def both(client: Client) -> Callable[[Tensor], tuple[Pair, Pair]]:
    """Outputs of a client's own network and of its small one, in float32."""
    small = networks_of(client).network

    def outputs(x: Tensor) -> tuple[Pair, Pair]:
        own, other = client.model.outputs(x), small.outputs(x)
        return (own[0].float(), own[1].float()), (other[0].float(), other[1].float())

    return outputs


def networks_of(client: Client) -> Companion:
    """The small network of a client whose method gives it one."""
    assert client.companion is not None
    return client.companion


def weights_of(client: Client) -> wire.Weights:
    """Weights of a client's small network."""
    return client.weights(KIND)
