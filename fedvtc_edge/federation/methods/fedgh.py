"""FedGH (Yi et al. 2023, arXiv 2303.13137): a head for all that the server trains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fedvtc_edge.config import Config
from fedvtc_edge.federation.exchange import RoundStep
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.federation.server_training import (
    HEAD,
    Head,
    Heads,
    blank_head,
    decode_trained,
    encode_trained,
    from_statistics,
    prototypes,
)
from fedvtc_edge.seeding import generator
from fedvtc_edge.statistics.class_statistics import Array, ClassStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.wire.context import Context

from .base import Knob, Method
from .fedproto import OWN_MEANS, own_means
from .supervised import matched_steps

EPOCHS, BATCH = 1, 10
"""Of the server's gradient descent, as in the paper."""


class SharedHead(Method):
    """Base of methods whose clients take one head as theirs.

    They take it at the beginning of a round, and at its end the one that is published then: a
    client's network is its own extractor with the head of all. The first is drawn from the seed.
    """

    every_round = True
    publishes_statistics = False

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.global_head = first_head(
            federation.classes, federation.config.method.latent, federation.config.seed
        )

    def restore(self, published: dict[str, bytes]) -> None:
        """Take up the head of the last round.

        Raises:
            WireError: No head of the agreed shape.
            CheckError: Weights that nobody trains.
        """
        super().restore(published)
        if HEAD in published:
            self.global_head = decode_trained(published[HEAD], self.blank)

    @property
    def blank(self) -> Head:
        """A head of zeros of the agreed shape."""
        return blank_head(self.federation.classes, self.federation.config.method.latent)

    def heads(self) -> Heads:
        """The exchange of heads and class counts."""
        settings = self.federation.config
        classes, width = self.federation.classes, settings.method.latent
        return Heads(classes, width, settings.server, settings.server.minimum_contributors)

    def take(self, client: Client) -> None:
        """Let a client have the head."""
        client.load(HEAD, self.global_head)

    def train(self, number: int, client: Client) -> None:
        """Train a client on its own images, beginning with the head."""
        self.take(client)
        steps = matched_steps(self.federation, client, number)
        client.train_on(number, client.images, client.labels, client.present, steps)


class FedGH(SharedHead):
    """The server trains a global head on the clients' class means; clients take it as theirs.

    Shared in every round: class counts and sums of own features, of which the server needs each
    client's. On the pairs of class mean and class of all clients it takes one epoch of gradient
    descent on the cross-entropy of the head, which it goes on training from round to round.

    What differs from the paper: the rate is 0.1 by default, chosen on validation data, where the
    authors' 0.01 leaves the head behind extractors that train with it (decision 0048).

    Sums under masks are not enough: the gradient needs each client's mean by itself.
    """

    trimmable = False
    sends_moments = False
    knob = Knob("rate of the server's gradient descent", 0.1, (0.01, 0.1, 1.0), most=100.0)

    @classmethod
    def shared(cls, settings: Config) -> str:
        """Statistics of own features."""
        return "features"

    @classmethod
    def maskable(cls, settings: Config) -> bool:
        """False: the server trains with each client's means."""
        return False

    def steps(self, number: int) -> Sequence[RoundStep]:
        """Train with the head, upload class sums, take the head that the server trained."""
        if number == 0:
            return []
        means, blank = own_means(self.federation), partial(encode_trained, self.blank)
        exchange = from_statistics(means, HEAD, self._train_head, blank)
        return [RoundStep(partial(self.train, number), exchange), RoundStep(self.take)]

    def _train_head(self, parts: Sequence[ClassStatistics], context: Context) -> bytes:
        means, labels = prototypes(parts)
        stream = generator(self.federation.config.seed, "server", context.round, "head")
        return encode_trained(fit(self.global_head, means, labels, self.strength, stream))

    def uploads(self) -> list[str]:
        """Uploads of a client, in words."""
        return [OWN_MEANS]


def fit(
    head: Head,
    means: Array,
    labels: NDArray[np.int64],
    rate: float,
    stream: torch.Generator,
) -> Head:
    """A head after gradient descent on class means.

    Args:
        head: Where it begins; it is not changed.
        means: [R, p].
        labels: [R].
        rate: Learning rate.
        stream: Of the order of the means.
    """
    x, y = torch.from_numpy(means).float(), torch.from_numpy(labels)
    weight, bias = (torch.tensor(head[name], requires_grad=True) for name in ("weight", "bias"))
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(x), generator=stream), BATCH):
            loss = F.cross_entropy(F.linear(x[batch], weight, bias), y[batch])
            slopes = torch.autograd.grad(loss, (weight, bias))
            with torch.no_grad():
                weight -= rate * slopes[0]
                bias -= rate * slopes[1]
    return {"weight": weight.detach().numpy(), "bias": bias.detach().numpy()}


def first_head(classes: int, width: int, seed: int) -> Head:
    """The head with which everybody begins: uniform in ±1/√p, as torch begins a linear layer."""
    stream, bound = generator(seed, "server", HEAD), width**-0.5
    weight = (2 * torch.rand(classes, width, generator=stream) - 1) * bound
    bias = (2 * torch.rand(classes, generator=stream) - 1) * bound
    return {"weight": weight.numpy(), "bias": bias.numpy()}
