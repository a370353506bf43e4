"""Baselines that exchange nothing (or, centralised, everything)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from fedvtc_edge.config import Config, TrainingSettings
from fedvtc_edge.federation.exchange import RoundStep
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.training import cohort, finetuning, supervised
from fedvtc_edge.training.client import Client

from .base import Method


class Local(Method):
    """Each client alone, with the epochs that FedVTC's phase A gives it."""

    is_own_control = True

    def steps(self, number: int) -> Sequence[RoundStep]:
        """Phase A and nothing else."""
        together = partial(cohort.train, round_=number)
        return [RoundStep(lambda client: client.train(number), None, together)] if number else []


class LocalMatched(Method):
    """Each client alone, with as many gradient steps as FedVTC takes on f and ψ together."""

    def steps(self, number: int) -> Sequence[RoundStep]:
        """FedVTC's whole budget on local data."""

        def train(client: Client) -> None:
            steps = matched_steps(self.federation, client, number)
            client.train_on(number, client.images, client.labels, client.present, steps)

        return [RoundStep(train)] if number else []


class Centralised(Method):
    """Every architecture on the pooled data, with the same matched steps: the ceiling."""

    @classmethod
    def shared(cls, settings: Config) -> str:
        """All of it."""
        return "data"

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self._images = torch.cat([client.images for client in federation.clients])
        self._labels = torch.cat([client.labels for client in federation.clients])
        self._present = torch.stack([client.present for client in federation.clients]).any(0)

    def steps(self, number: int) -> Sequence[RoundStep]:
        """FedVTC's whole budget on everybody's data."""

        def train(client: Client) -> None:
            steps = matched_steps(self.federation, client, number)
            client.train_on(number, self._images, self._labels, self._present, steps)

        return [RoundStep(train)] if number else []

    def uploads(self) -> list[str]:
        """Uploads that a centralised training would need."""
        return ["all raw data (a ceiling, not a federation)"]


def matched_steps(federation: Federation, client: Client, number: int, *, networks: int = 1) -> int:
    """Gradient steps of a round by which a method takes as many in all as FedVTC, on f and on ψ.

    FedVTC takes them in ``training.matched_rounds`` rounds, most in the last one; here they are
    spread evenly over ``method.rounds``.

    Args:
        networks: How many each step moves: a step on two counts twice.
    """
    settings: TrainingSettings = federation.config.training
    rounds = federation.config.method.rounds
    matched = settings.matched_rounds or rounds
    every = supervised.steps_per_round(len(client.images), settings) + settings.decoder_steps
    total = every * matched + sum(
        finetuning.steps_in(one, matched, federation.classes, settings)
        for one in range(1, matched + 1)
    )
    total //= networks
    return total * number // rounds - total * (number - 1) // rounds
