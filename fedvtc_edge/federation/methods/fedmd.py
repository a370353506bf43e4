"""FedMD (Li and Wang 2019, arXiv 1910.03581): networks that agree on public images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.errors import DataError
from fedvtc_edge.federation.averaging import LEAST_LOG, SCORES, ScoreAverage, check_scores
from fedvtc_edge.federation.exchange import RoundStep
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.losses import distill
from fedvtc_edge.training.own_objective import BatchLoss

from .base import Knob, Method
from .supervised import matched_steps


class FedMD(Method):
    """Clients score public images, digest the average of all scores, and revisit their own data.

    Before the first scores each network learns from its own data. Public images have no labels
    here, so that the paper's training on them does not come first. Shared are log-posteriors of
    the public images, in every round.
    """

    every_round = True
    needs_public = True
    trimmable = False
    knob: ClassVar[Knob | None] = Knob(
        "share of the steps on public images", 0.5, (0.25, 0.5, 0.75), 0.0, 1.0
    )

    @classmethod
    def shared(cls, settings: Config) -> str:
        """Scores of public images."""
        return SCORES

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        if federation.public is None:
            raise DataError(
                "no public images came with the data", hint="name some with data.public"
            )
        self._public = federation.public
        self._consensus: Tensor | None = None

    def steps(self, number: int) -> Sequence[RoundStep]:
        """Scores are exchanged; then clients digest and revisit."""
        if number == 0:
            return []
        first = partial(self._begin, number) if number == 1 else None
        like = {SCORES: np.zeros((len(self._public), self.federation.classes))}
        least = self.federation.config.server.minimum_contributors
        return [
            RoundStep(first, ScoreAverage(SCORES, self._scores, like, least)),
            RoundStep(partial(self._learn, number)),
        ]

    def restore(self, published: dict[str, bytes]) -> None:
        """Take up the averaged scores.

        Raises:
            WireError: Of other images or classes, or no averaged log-posteriors.
        """
        super().restore(published)
        if SCORES in published:
            like = {SCORES: np.zeros((len(self._public), self.federation.classes))}
            found = wire.decode_weights(published[SCORES], like=like)[SCORES]
            check_scores(found)
            scores = torch.from_numpy(found.copy()).to(self._public.device)
            self._consensus = scores.log_softmax(1)

    def uploads(self) -> list[str]:
        """Uploads of a client, in words."""
        return [f"every round: its network's scores of {len(self._public)} public images"]

    def _split(self, client: Client, number: int) -> tuple[int, int]:
        """Steps of a round on public images, and on the client's own."""
        steps = matched_steps(self.federation, client, number)
        digesting = round(self.strength * steps)
        return digesting, steps - digesting

    def _begin(self, number: int, client: Client) -> None:
        """Half of the first round's steps on own images come before anything is agreed on."""
        own = self._split(client, number)[1] // 2
        client.train_on(0, client.images, client.labels, client.present, own)

    def _learn(self, number: int, client: Client) -> None:
        digesting, own = self._split(client, number)
        own -= own // 2 if number == 1 else 0
        assert self._consensus is not None
        examples = self._public, self._consensus
        client.train_by(number, digesting, _imitation, examples=examples, phase="digest")
        client.train_on(number, client.images, client.labels, client.present, own)

    def _scores(self, client: Client) -> wire.Weights:
        with client.working():
            found = in_chunks(client.model.eval(), self._public).log_softmax(1)
        return {SCORES: found.clamp(min=LEAST_LOG).numpy()}


def _imitation(client: Client) -> BatchLoss:
    """KL of a client's prediction from the averaged one."""
    return lambda x, scores: distill(client.model(x).float(), scores)
