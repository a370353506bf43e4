"""FedGen (Zhu et al. 2021, arXiv 2105.10056): a generator of features that the server trains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvtc_edge.config import Config
from fedvtc_edge.federation.exchange import RoundStep
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.federation.robustness import CheckError
from fedvtc_edge.federation.server_training import (
    COUNT,
    HeadUpload,
    ServerTrained,
    average,
    decode_trained,
    encode_trained,
)
from fedvtc_edge.seeding import derive_seed, generator
from fedvtc_edge.statistics.class_statistics import Array
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.losses import masked_cross_entropy
from fedvtc_edge.training.own_objective import BatchLoss
from fedvtc_edge.training.steps import Adam, step
from fedvtc_edge.wire.context import Context

from .base import Knob
from .fedgh import SharedHead
from .supervised import matched_steps

NOISE, HIDDEN = 32, 512
"""Width of the noise and of the hidden layer, as in the authors' code."""

STEPS = 100
"""Of the server's Adam, in batches and at the rate of the clients."""

GENERATOR = "generator"
"""Name of what is published."""


class Generator(nn.Module):
    """G: noise in [0, 1) and a class to features of norm √p.

    Args:
        classes: Number C of classes.
        width: Number p of features.
        seed: Of the weights.
    """

    def __init__(self, classes: int, width: int, seed: int) -> None:
        super().__init__()
        self.classes = classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.Linear(NOISE + classes, HIDDEN)
            self.out = nn.Linear(HIDDEN, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Features [n, p] of noise [n, 32] and classes [n]."""
        given = torch.cat([noise, F.one_hot(labels, self.classes)], 1)
        made: Tensor = self.norm(self.out(self.hidden(given).relu()))
        return made

    def draw(self, shares: Tensor, number: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise [n, 32] and classes [n], these by their shares [C]."""
        labels = torch.multinomial(shares, number, replacement=True, generator=stream)
        return torch.rand(number, NOISE, generator=stream), labels


class FedGen(SharedHead):
    """The server learns, from the clients' heads alone, features that they take for a class.

    Shared in every round: each client's head and class counts. G minimises the cross-entropy of
    the ensemble of heads, weighted for each class by the clients' counts of it, on G(ε, y), plus
    the diversity term exp(−mean |G(ε_i) − G(ε_j)| · (ε_i − ε_j)²). Published are G, the average
    head, which clients take as theirs, and the classes' shares. Clients add
    λ · CE(h(G(ε, y)), y) with y drawn by these shares: so a head learns of classes that its
    client has not.

    What differs from the paper: noise is uniform, as in the library that made the method known
    for unequal networks; instead of batch norm G ends with the LayerNorm that own features pass;
    heads are all that is averaged, for extractors differ.
    """

    trimmable = False
    knob = Knob("λ, weight of the loss on generated features", 1.0, (0.1, 1.0, 10.0))

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self._generator = self._blank_generator()
        self._shares: Tensor | None = None

    @classmethod
    def shared(cls, settings: Config) -> str:
        """Heads on own features, with class counts."""
        return "heads"

    def restore(self, published: dict[str, bytes]) -> None:
        """Take up the generator and the head of the last round.

        Raises:
            WireError: No weights of the agreed shapes.
            CheckError: Weights or shares that nobody has.
        """
        super().restore(published)
        if GENERATOR not in published:
            return
        weights = decode_trained(published[GENERATOR], self._like())
        shares = weights.pop(COUNT)
        if not (shares >= 0).all() or not shares.any():
            raise CheckError("published shares of classes below 0, or none", hint="do not trust it")
        self.global_head = {name: weights.pop(f"head.{name}") for name in ("weight", "bias")}
        self._generator = self._blank_generator()
        self._generator.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
        self._shares = torch.from_numpy(shares)

    def steps(self, number: int) -> Sequence[RoundStep]:
        """Train with the generator, upload heads, take the average head."""
        if number == 0:
            return []
        heads = self.heads()
        blank = partial(encode_trained, self._like())
        exchange = ServerTrained(
            heads.kind, heads, self._learn_features, blank, GENERATOR, heads.least
        )
        return [RoundStep(partial(self.train, number), exchange), RoundStep(self.take)]

    def train(self, number: int, client: Client) -> None:
        """Train a client on its own images and its head on generated features."""
        self.take(client)
        steps = matched_steps(self.federation, client, number)
        client.train_by(number, steps, partial(self._objective, number))

    def _objective(self, number: int, client: Client) -> BatchLoss:
        shares, size, weight = self._shares, client.settings.batch, self.strength
        made, device = self._generator, client.labels.device
        stream = generator(client.seed, client.id, number, "generated features")

        def loss(x: Tensor, labels: Tensor) -> Tensor:
            value = masked_cross_entropy(client.model(x).float(), labels, client.present)
            if shares is None:  # nothing is published before the first round
                return value
            noise, wanted = made.draw(shares, size, stream)
            with torch.no_grad():
                features = made(noise, wanted).to(device)
            taught = F.cross_entropy(client.model.head(features).float(), wanted.to(device))
            return value + weight * taught

        return loss

    def _learn_features(self, parts: Sequence[HeadUpload], context: Context) -> bytes:
        training, made = self.federation.config.training, self._blank_generator()
        made.load_state_dict(self._generator.state_dict())  # else the last round's would change
        stream = generator(self.federation.config.seed, "server", context.round, GENERATOR)
        count: Array = np.sum([part.count for part in parts], axis=0)
        if count.any():
            fit(made, parts, count, training.batch, training.rate, stream)
        shares = (count / max(count.sum(), 1.0)).astype(np.float32)
        return encode_trained(_packed(made, average(parts), shares))

    def _blank_generator(self) -> Generator:
        config = self.federation.config
        seed = derive_seed(config.seed, "server", GENERATOR)
        return Generator(self.federation.classes, config.method.latent, seed)

    def _like(self) -> dict[str, Any]:
        classes = self.federation.classes
        shares = np.full(classes, 1 / classes, np.float32)
        return _packed(self._blank_generator(), self.blank, shares)

    def uploads(self) -> list[str]:
        """Uploads of a client, in words."""
        return ["every round: class counts, and the weights of its own network's head"]


def fit(
    made: Generator,
    parts: Sequence[HeadUpload],
    count: Array,
    batch: int,
    rate: float,
    stream: torch.Generator,
) -> None:
    """Train a generator against the ensemble of heads.

    Args:
        count: Samples per class of all clients, [C], some above 0.
        batch: Features in a step.
        rate: Of Adam.
        stream: Source of all randomness.
    """
    weight, bias = ensemble(parts)
    adam, shares = Adam(made.parameters(), rate), torch.from_numpy(count).float()
    for _ in range(STEPS):
        noise, labels = made.draw(shares, batch, stream)
        features = made(noise, labels)
        logits = torch.einsum("np,ncp->nc", features, weight[labels]) + bias[labels]
        step(F.cross_entropy(logits, labels) + diversity(noise, features), adam)


def ensemble(parts: Sequence[HeadUpload]) -> tuple[Tensor, Tensor]:
    """For each class, the heads averaged by the clients' counts of it: [C, C, p] and [C, C].

    Logits are linear in a head: theirs on average are those of the average.
    """
    counts = torch.from_numpy(np.stack([part.count for part in parts]))
    shares = (counts / counts.sum(0).clamp(min=1e-9)).float()
    weights = torch.from_numpy(np.stack([part.head["weight"] for part in parts]))
    biases = torch.from_numpy(np.stack([part.head["bias"] for part in parts]))
    return torch.einsum("ky,kcp->ycp", shares, weights), torch.einsum("ky,kc->yc", shares, biases)


def diversity(noise: Tensor, features: Tensor) -> Tensor:
    """Term that is small where unlike noise [n, 32] makes unlike features [n, p]; in (0, 1]."""
    apart = (features[:, None] - features[None]).abs().mean(2)
    unlike = (noise[:, None] - noise[None]).square().mean(2)
    return (-(apart * unlike).mean()).exp()


def _packed(made: Generator, head: Any, shares: Any) -> dict[str, Any]:
    """All that is published, by name."""
    weights = {name: value.numpy().copy() for name, value in made.state_dict().items()}
    return weights | {f"head.{name}": head[name] for name in head} | {COUNT: shares}
