"""FedTGP (Zhang et al. 2024, arXiv 2401.03230): prototypes that the server trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedvtc_edge import wire
from fedvtc_edge.federation.exchange import Exchange
from fedvtc_edge.federation.server_training import (
    decode_trained,
    encode_trained,
    from_statistics,
    prototypes,
)
from fedvtc_edge.seeding import derive_seed, generator
from fedvtc_edge.statistics.class_statistics import Array, ClassStatistics, GlobalStatistics
from fedvtc_edge.wire.context import Context

from .base import Knob
from .fedproto import LONGEST, PROTOTYPES, FedProto, own_means

EPOCHS, RATE, BATCH = 100, 0.01, 10
"""Of the server's gradient descent, as in the authors' code."""

LARGEST_MARGIN = 100.0
"""τ of the paper. Between means of features of norm √p a distance is 2√p at most."""

NETWORK = "prototype-network"
"""Name under which the server keeps what it trains; clients are not given it."""


class PrototypeNetwork(nn.Module):
    """A trainable vector for each class, and two layers from it to the class's prototype.

    Args:
        classes: Number C of classes.
        width: Number p of features, also of the vectors and of the hidden layer.
        seed: Of the weights.
    """

    def __init__(self, classes: int, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.vectors = nn.Parameter(torch.randn(classes, width))
            self.hidden = nn.Linear(width, width)
            self.out = nn.Linear(width, width)

    def forward(self) -> Tensor:
        """Prototypes of all classes, [C, p]."""
        prototypes: Tensor = self.out(self.hidden(self.vectors).relu())
        return prototypes


class FedTGP(FedProto):
    """The server trains prototypes that are far apart; clients do with them as in FedProto.

    On the clients' class means P and their classes y it minimises the cross-entropy of
    −(‖P − T^c‖ + δ · [c = y]) over the classes c, with T the trained prototypes and δ the smaller
    of τ and the largest distance between two classes' centres, which are the means of the clients'
    class means. Clients add λ · mean (z − T^y)², and classify by the nearest T.

    Shared in every round: class counts and sums of own features, of which the server needs each
    client's.

    What differs from the paper: classes that nobody has are left out, and prototypes longer than
    four times the features' norm √p are shortened.
    """

    knob = Knob("λ, weight of the squared distance to the prototype", 1.0, (0.1, 1.0, 10.0))
    trimmable = False

    @classmethod
    def maskable(cls, settings: object) -> bool:
        """False: the server trains with each client's means."""
        return False

    def sent(self) -> Mapping[str, bytes]:
        """The prototypes, and not the network that makes them."""
        return {kind: data for kind, data in self.published.items() if kind != NETWORK}

    def _exchange(self) -> Exchange[ClassStatistics]:
        return from_statistics(own_means(self.federation), PROTOTYPES, self._train, self._blank)

    def _blank(self) -> bytes:
        shape = self.federation.classes, self.federation.config.method.latent
        zero = np.zeros(shape)
        return wire.publish(GlobalStatistics(np.ones(shape[0]), zero, zero))

    def _train(self, parts: Sequence[ClassStatistics], context: Context) -> bytes:
        """Go on training the network with the means of a round; its prototypes."""
        network, seed = self._network(), self.federation.config.seed
        means, labels = prototypes(parts)
        stream = generator(seed, "server", context.round, "prototypes")
        count = np.sum([part.count for part in parts], axis=0)
        if len(labels):
            fit(network, means, labels, count > 0, stream)
        weights = {name: value.numpy() for name, value in network.state_dict().items()}
        self.published = {**self.published, NETWORK: encode_trained(weights)}
        with torch.no_grad():
            trained = network().double().numpy()
        mean = np.where((count > 0)[:, None], _shortened(trained), 0.0)
        return wire.publish(GlobalStatistics(count, mean, np.zeros_like(mean)))

    def _network(self) -> PrototypeNetwork:
        """The network as the last round left it."""
        config = self.federation.config
        seed = derive_seed(config.seed, "server", "prototypes")
        network = PrototypeNetwork(self.federation.classes, config.method.latent, seed)
        if NETWORK in self.published:
            like = {name: value.numpy() for name, value in network.state_dict().items()}
            kept = decode_trained(self.published[NETWORK], like)
            network.load_state_dict({name: torch.from_numpy(v) for name, v in kept.items()})
        return network


def fit(
    network: PrototypeNetwork,
    means: Array,
    labels: NDArray[np.int64],
    known: NDArray[np.bool_],
    stream: torch.Generator,
) -> None:
    """Train prototypes with margins by plain gradient descent.

    Args:
        means: Class means of the clients, [R, p], R ≥ 1.
        labels: Their classes, [R].
        known: Classes [C] that anyone has.
        stream: Of the order of the means.
    """
    x, y = torch.from_numpy(means).float(), torch.from_numpy(labels)
    absent, delta = torch.from_numpy(~known), margin(means, labels)
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(x), generator=stream), BATCH):
            loss = separation(network(), x[batch], y[batch], absent, delta)
            network.zero_grad()
            torch.autograd.backward(loss)
            with torch.no_grad():
                for weight in network.parameters():
                    assert weight.grad is not None
                    weight.sub_(RATE * weight.grad)


def separation(trained: Tensor, x: Tensor, y: Tensor, absent: Tensor, delta: float) -> Tensor:
    """Cross-entropy of means by their distance to trained prototypes, with a margin.

    Args:
        trained: Prototypes, [C, p].
        x: Means, [n, p].
        y: Their classes, [n].
        absent: Classes [C] that do not compete.
        delta: δ, added to the distance to the own class.
    """
    squared = (x[:, None] - trained[None]).square().sum(2)
    distance = (squared + 1e-12).sqrt()  # whose slope at 0 is finite
    distance = distance + delta * F.one_hot(y, len(trained))
    return F.cross_entropy((-distance).masked_fill(absent, float("-inf")), y)


def margin(means: Array, labels: NDArray[np.int64]) -> float:
    """δ: the largest distance between two classes' centres, at most τ; 0 for one class."""
    centres = np.stack([means[labels == label].mean(0) for label in np.unique(labels)])
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    return min(float(gaps.max()), LARGEST_MARGIN)


def _shortened(rows: Array) -> Array:
    """Rows of a norm that clients accept."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    most = 0.999 * LONGEST * rows.shape[1] ** 0.5  # published as float32
    shortened: Array = rows * np.minimum(1.0, most / np.maximum(norm, 1e-9))
    return shortened
