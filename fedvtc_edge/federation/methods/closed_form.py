"""Methods that train nothing: one upload, and a head that follows from the published statistics.

The head is post-processing of what was published. So it costs no privacy, any party works it out
again after a restart, and a device without torch classifies by it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.federation.exchange import RoundStep
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.statistics.discriminant import Discriminant
from fedvtc_edge.statistics.fisher_mix import fisher_mix
from fedvtc_edge.statistics.gaussian import RIDGE, Coefficients, coefficients
from fedvtc_edge.statistics.linear_heads import least_squares
from fedvtc_edge.training.client import Client

from .base import Knob
from .fedvtc import FedVTC


class ClosedForm(FedVTC):
    """Statistics of the frozen extractor up, once; every client's model is one head on their sum.

    What is uploaded, masked and noised is what anchored FedVTC uploads.
    """

    has_decoder = False
    trains = False
    common_head = True

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.share = "anchored"
        self._head: Discriminant | None = None

    @classmethod
    def shared(cls, settings: Config) -> str:
        """Anchor statistics, whatever ``method.share`` says: there are no own features."""
        return "anchored"

    @classmethod
    @abstractmethod
    def head(cls, settings: Config, known: GlobalStatistics) -> Coefficients:
        """Coefficients of the head, from what was published."""

    def steps(self, number: int) -> Sequence[RoundStep]:
        """One upload before the first round; in the rounds nothing is left to do."""
        return [] if number else super().steps(0)

    def restore(self, published: dict[str, bytes]) -> None:
        """Take up what was published; the head is worked out when it is first asked for."""
        super().restore(published)
        self._head = None

    def scores(self, client: Client, images: Tensor) -> Tensor:
        """Log-posteriors by the head; all alike before anything was published."""
        if "anchor" not in self.published or self.anchor is None:
            return torch.zeros(len(images), client.classes)
        if self._head is None:
            known, device = wire.published(self.published["anchor"]), images.device
            head = self.head(self.federation.config, known)
            self._head = Discriminant(known, device=device, head=head)
        return self._head(self.anchor.embed(images).to(images.device)).cpu()


class StatisticsOnly(ClosedForm):
    """Statistics alone, no training: the linear discriminant on one upload of each client.

    LDA of the GH-OFL family (arXiv 2602.01186), under a uniform prior; with
    ``method.moments = "diagonal"`` Gaussian naive Bayes, which has no ridge.
    """

    knob: ClassVar[Knob | None] = Knob(
        "ridge on the covariance, as a share of its mean diagonal", RIDGE, (0.01, 0.1, 1.0), 1e-6
    )

    @classmethod
    def head(cls, settings: Config, known: GlobalStatistics) -> Coefficients:
        """The discriminant's coefficients."""
        return coefficients(known, cls.strength_in(settings))


class AFL(ClosedForm):
    """AFL (He et al., CVPR 2025): ridge regression of one-hot labels on the extractor's features.

    Its clients upload XᵀX and XᵀY; both follow from the statistics that are uploaded here, and
    sums add whatever the partition. Classes weigh as their examples do, as in the paper.
    """

    knob: ClassVar[Knob | None] = Knob(
        "γ, as a share of the mean diagonal of XᵀX", 0.01, (0.001, 0.01, 0.1), 1e-6
    )

    @classmethod
    def head(cls, settings: Config, known: GlobalStatistics) -> Coefficients:
        """The regression's coefficients."""
        return least_squares(known, cls.strength_in(settings))


class FisherMix(ClosedForm):
    """FisherMix (GH-OFL, arXiv 2602.01186): a head with cosine margin, trained on Gaussian samples.

    From the same statistics, by a named stream: each party trains the same head, in a second,
    on features that nobody has. Classes share one covariance; the paper mixes it with their own.
    """

    knob: ClassVar[Knob | None] = Knob(
        "margin that is taken off the cosine with the true class", 0.2, (0.0, 0.1, 0.2, 0.4), 0, 1
    )

    @classmethod
    def head(cls, settings: Config, known: GlobalStatistics) -> Coefficients:
        """The trained head's coefficients."""
        seed = derive_seed(settings.seed, "server", 0, "fishermix")
        draw = np.random.Generator(np.random.Philox(key=seed))
        return fisher_mix(known, cls.strength_in(settings), draw)
