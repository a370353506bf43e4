"""Head calibration with virtual features, the class of CCVR (Luo et al. 2021, arXiv 2106.05001)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from fedvtc_edge.config import Config
from fedvtc_edge.federation.exchange import RoundStep
from fedvtc_edge.federation.server_training import (
    HEAD,
    Head,
    encode_trained,
    from_statistics,
)
from fedvtc_edge.seeding import generator
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics, sum_of
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.steps import Adam, step
from fedvtc_edge.wire.context import Context

from .base import Knob
from .fedgh import SharedHead

BATCH, RATE = 256, 0.01
"""Virtual features in a step of the server's Adam, and its rate."""


class CCVR(SharedHead):
    """Heads are averaged, and after the last round calibrated on virtual features.

    Shared in every round: each client's head and class counts; the head is averaged by samples,
    and clients take it as theirs. Shared once, after the training of the last round: class counts,
    sums and sums of squares of own features. From their sum follows a Gaussian of each class (law
    of total variance, the paper's aggregation); the server trains the average head on draws from
    these, as many of each class, and clients take it.

    What differs from the paper: it calibrates the classifier of one network that is averaged as a
    whole. Networks of several architectures have heads on features of one width in common, and so
    heads are what is averaged here; extractors differ, and a class's Gaussian is one over features
    of unequal extractors. Covariances are diagonal.
    """

    trimmable = False
    knob = Knob("virtual features of each class", 500.0, (100.0, 500.0, 2000.0), 1.0, 1e5)

    @classmethod
    def shared(cls, settings: Config) -> str:
        """Heads on own features, and once statistics of these."""
        return "features+heads"

    def steps(self, number: int) -> Sequence[RoundStep]:
        """Train with the average head, upload heads; after the last round statistics, too."""
        if number == 0:
            return []
        steps = [RoundStep(partial(self.train, number), self.heads()), RoundStep(self.take)]
        if number < self.federation.config.method.rounds:
            return steps
        width = self.federation.config.method.latent
        blank = partial(encode_trained, self.blank)
        features = self.federation.exact("features", Client.measure, width, pooled=False)
        exchange = from_statistics(features, HEAD, self._calibrated, blank)
        return [steps[0], RoundStep(None, exchange), RoundStep(self.take)]

    def _calibrated(self, parts: Sequence[ClassStatistics], context: Context) -> bytes:
        world = GlobalStatistics.from_sum(sum_of(list(parts)))
        stream = generator(self.federation.config.seed, "server", context.round, "virtual features")
        return encode_trained(calibrated(self.global_head, world, round(self.strength), stream))

    def uploads(self) -> list[str]:
        """Uploads of a client, in words."""
        return [
            "every round: class counts, and the weights of its own network's head",
            "once, after the last round: per-class sums and sums of squares of its own features",
        ]


def calibrated(head: Head, world: GlobalStatistics, number: int, stream: torch.Generator) -> Head:
    """A head after one pass over virtual features.

    Args:
        head: Where it begins; it is not changed.
        world: Means and deviations of each class.
        number: Virtual features of each class that anyone has.
        stream: Source of all randomness.
    """
    present = torch.from_numpy(world.present.nonzero()[0])
    labels = present.repeat_interleave(number)
    mean, std = (torch.from_numpy(value).float() for value in (world.mean, world.std))
    names = "weight", "bias"
    weights = [nn.Parameter(torch.from_numpy(head[name]).clone()) for name in names]
    adam = Adam(weights, RATE)
    for batch in torch.split(torch.randperm(len(labels), generator=stream), BATCH):
        y = labels[batch]
        features = mean[y] + std[y] * torch.randn(len(y), mean.shape[1], generator=stream)
        step(F.cross_entropy(F.linear(features, *weights), y), adam)
    return {name: value.detach().numpy() for name, value in zip(names, weights, strict=True)}
