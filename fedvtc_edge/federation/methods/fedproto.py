"""FedProto (Tan et al. 2022, arXiv 2105.00243): prototypes as regularisers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.federation.exchange import RoundStep
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.losses import ClassMoments

from .base import Method
from .supervised import matched_steps

PULL = 1.0
"""λ of the paper: weight of the squared distance to the global prototype."""


class FedProto(Method):
    """Clients pull their features toward global prototypes and classify by the nearest one.

    Trained for as many gradient steps as FedVTC takes on f and ψ together.

    The wire carries second moments too, which FedProto does not need: its own
    format would be half as large.
    """

    nearest_prototype = True

    @classmethod
    def shared(cls, settings: Config) -> str:
        """Statistics of own features."""
        return "features"

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self._knowledge: GlobalStatistics | None = None

    def restore(self, published: dict[str, bytes]) -> None:
        """Take up the prototypes of the last round."""
        super().restore(published)
        if "prototypes" in published:
            self._knowledge = wire.published(published["prototypes"])

    def steps(self, number: int) -> Sequence[RoundStep]:
        """Train with the pull, upload class sums; their means are published."""
        if number == 0:
            return []

        def train(client: Client) -> None:
            steps = matched_steps(self.federation, client, number)
            own = (client.images, client.labels, client.present)
            client.train_on(number, *own, steps, prior=self._prior(), kl=PULL)

        width = self.federation.config.method.latent
        return [
            RoundStep(train, self.federation.exact("features", Client.measure, width, pooled=False))
        ]

    def learn(self, kind: str, data: bytes, cohort: Sequence[Client]) -> None:
        """Prototypes are all that is published."""
        self.restore({"prototypes": data})

    def _prior(self) -> ClassMoments | None:
        """Prototypes with the std at which the KL pull, 1/(2σ²), is the squared distance."""
        if self._knowledge is None:
            return None
        mean = torch.from_numpy(self._knowledge.mean).float().to(self.federation.compute.device)
        known = torch.from_numpy(self._knowledge.present).to(mean.device)
        return ClassMoments(mean, torch.full_like(mean, 0.5**0.5), known)

    def scores(self, client: Client, images: Tensor) -> Tensor:
        """Negative squared distances to the global prototypes, as the paper classifies."""
        if self._knowledge is None:
            return super().scores(client, images)
        mean = torch.from_numpy(self._knowledge.mean).float()
        features = in_chunks(client.model.eval().features, images)
        distance = torch.cdist(features, mean).square()
        known = torch.from_numpy(self._knowledge.present)
        return (-distance).masked_fill(~known, -1e4).log_softmax(1)

    def uploads(self) -> list[str]:
        """Uploads of a client, in words."""
        return ["every round: class counts, per-class sums and sums of squares of its own features"]
