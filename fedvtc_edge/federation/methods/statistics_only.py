"""Statistics alone: one upload, and no training anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedvtc_edge.config import Config
from fedvtc_edge.federation.exchange import RoundStep
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.training.client import Client

from .fedvtc import FedVTC


class StatisticsOnly(FedVTC):
    """Anchor statistics alone: every client's model is the discriminant on their sum."""

    has_decoder = False
    trains = False
    knob = None

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.share = "anchored"

    @classmethod
    def shared(cls, settings: Config) -> str:
        """Anchor statistics, whatever ``method.share`` says: there are no own features."""
        return "anchored"

    def steps(self, number: int) -> Sequence[RoundStep]:
        """One upload before the first round; in the rounds nothing is left to do."""
        return [] if number else super().steps(0)

    def scores(self, client: Client, images: Tensor) -> Tensor:
        """Those of statistics only; all alike before any were published."""
        scores = self.control(images)
        return torch.zeros(len(images), client.classes) if scores is None else scores
