"""FedProto (Tan et al. 2022, arXiv 2105.00243): prototypes as regularisers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.federation.exchange import Exact, Exchange, RoundStep
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.federation.robustness import CheckError
from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.losses import ClassMoments

from .base import Knob, Method
from .supervised import matched_steps

LONGEST = 4.0
"""Largest norm of a published prototype, in units of √p; class means have 1 at most."""

PROTOTYPES = "prototypes"
"""Name of what is published."""


class FedProto(Method):
    """Clients pull their features toward global prototypes and classify by the nearest one.

    Loss: cross-entropy + λ · mean over dimensions of (z − c^y)², with c^y the global mean of
    the features of class y. The steps are those of FedVTC on f and ψ together.

    Shared in every round: class counts and sums of own features.

    What differs from the paper: c^y is the mean over all samples, where the authors' code
    averages over clients without weights. Features have the norm √p (LayerNorm), so that
    prototypes have it at most, a squared distance is 4 per dimension at most, and λ means the same
    for every width; a network cannot meet the pull by making its features small.
    """

    nearest_prototype = True
    every_round = True
    sends_moments = False
    knob = Knob("λ, weight of the squared distance to the prototype", 1.0, (0.1, 1.0, 10.0))

    @classmethod
    def shared(cls, settings: Config) -> str:
        """Statistics of own features."""
        return "features"

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self._knowledge: GlobalStatistics | None = None

    def restore(self, published: dict[str, bytes]) -> None:
        """Take up the prototypes of the last round.

        Raises:
            WireError: No statistics.
            CheckError: Prototypes that no features have as their mean.
        """
        super().restore(published)
        if PROTOTYPES in published:
            self._knowledge = wire.published(published[PROTOTYPES])
            _check_prototypes(self._knowledge)

    def steps(self, number: int) -> Sequence[RoundStep]:
        """Train with the pull, upload class sums; prototypes are published."""
        if number == 0:
            return []

        def train(client: Client) -> None:
            steps = matched_steps(self.federation, client, number)
            own = (client.images, client.labels, client.present)
            client.train_on(number, *own, steps, prior=self._prior(), kl=self.strength)

        return [RoundStep(train, self._exchange())]

    def _exchange(self) -> Exchange[ClassStatistics]:
        return own_means(self.federation)

    def learn(self, kind: str, data: bytes, cohort: Sequence[Client]) -> None:
        """Prototypes are all that is published."""
        super().learn(PROTOTYPES, data, cohort)

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
        return [OWN_MEANS]


OWN_MEANS = "every round: class counts and per-class sums of its own features"


def own_means(federation: Federation) -> Exact:
    """The exchange of counts and sums of clients' own features."""

    def measure(client: Client) -> ClassStatistics:
        found = client.measure()
        return ClassStatistics(found.count, found.total, np.zeros_like(found.square), False)

    width = federation.config.method.latent
    return federation.exact("features", measure, width, pooled=False, moments=False)


def _check_prototypes(published: GlobalStatistics) -> None:
    """Refuse prototypes that would throw a client's features away."""
    width = published.mean.shape[1]
    longest = float(np.linalg.norm(published.mean, axis=1).max(initial=0.0))
    if longest > LONGEST * width**0.5:
        raise CheckError(
            f"a published prototype of norm {longest:.4g}, features have {width**0.5:.4g}",
            hint="do not trust this server",
        )
