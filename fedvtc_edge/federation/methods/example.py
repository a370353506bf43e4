"""FedVTC under ``privacy.mode = example``: the same rounds, every look at data accounted for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedvtc_edge.federation.exchange import Noised
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.federation.workload import PhaseNotes
from fedvtc_edge.privacy.dpsgd import check_private
from fedvtc_edge.privacy.mechanism import schedule_of
from fedvtc_edge.privacy.release import Integers, release
from fedvtc_edge.privacy.secret_stream import KEY_BYTES, SecretStream, fingerprint
from fedvtc_edge.training import private
from fedvtc_edge.training.client import Client, one_by_one
from fedvtc_edge.training.knowledge import CODE_STD, GlobalKnowledge

from .fedvtc import FedVTC


class ExampleFedVTC(FedVTC):
    """FedVTC by DP-SGD and noised releases.

    Guarantee: see :class:`~fedvtc_edge.privacy.mechanism.Schedule`. Noise and samples
    follow from a secret key of each client, its data, the round and the phase: a round
    repeated after a crash repeats them, so that nothing is spent twice.

    Raises:
        ConfigError: An architecture that DP-SGD cannot train.
    """

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.schedule = schedule_of(federation.config)
        self._keys: dict[str, bytes] = {}
        self._data: dict[str, str] = {}
        checked = set()
        for client in federation.clients:
            if client.architecture not in checked:
                checked.add(client.architecture)
                check_private(client.architecture, client.model, client.images[:1])

    def own_classes(self, client: Client) -> Tensor:
        """All: which ones a client has is private."""
        return torch.ones_like(client.present)

    def epsilon(self) -> float | None:
        """All that was spent by the end of the last round."""
        return self.schedule.after_round(self.done)

    def uploads(self) -> list[str]:
        """What travels from a client to the server, in words."""
        if self.share == "anchored":
            return super().uploads()
        own = (
            "every round, noised: counts and sums of its own features per class of the public list"
        )
        if self.share == "features":
            return [own]
        return [own, "every round: all weights of its decoder, trained by DP-SGD"]

    def expected(
        self, size: int, usual: Sequence[tuple[float, float]]
    ) -> Sequence[tuple[float, float]]:
        """Images in a step of phase A and number of steps: random samples, of the schedule."""
        return [(self.schedule.rate * size, self.schedule.train_steps)]

    def _train(self, client: Client, number: int) -> None:
        if isinstance(client, PhaseNotes):  # as ordinary steps: per-example gradients cost more
            prior = self._knowledge.codes if self._knowledge else None
            client.train(number, prior, kl=self.kl, gradients=self)
            return
        with client.working():
            client.samples_seen += private.train(
                client.model,
                client.images,
                client.labels,
                client.settings,
                self.schedule,
                partial(self._secret, client, number, "train"),
                prior=self._knowledge.codes if self._knowledge else None,
                kl=self.kl,
            )

    def _fit_decoder(self, client: Client, number: int, knowledge: GlobalKnowledge) -> None:
        if isinstance(client, PhaseNotes):
            return super()._fit_decoder(client, number, knowledge)
        assert client.decoder is not None
        with client.working():
            client.samples_seen += private.train_decoder(
                client.model,
                client.decoder,
                client.images,
                client.labels,
                knowledge,
                client.settings,
                self.schedule,
                partial(self._secret, client, number, "decoder"),
                client.stream(number, "decoder"),
                match="dm" not in self.ablate,
            )

    def _finetune(
        self, client: Client, number: int, knowledge: GlobalKnowledge, steps: int
    ) -> None:
        if isinstance(client, PhaseNotes):
            return super()._finetune(client, number, knowledge, steps)
        assert client.decoder is not None
        with client.working():
            client.samples_seen += private.finetune(
                client.model,
                client.decoder,
                knowledge,
                client.settings,
                client.compute,
                client.stream(number, "finetune"),
                steps=steps,
                head_only="head-only" in self.ablate,
                decay=number == self.federation.config.method.rounds,
            )

    def _features(self) -> Noised:
        """Own features, noised: g is private already, so that one example moves one term."""
        spec = self.spec
        assert spec is not None
        about = np.zeros(spec.width)

        def draw(client: Client) -> Integers:
            with client.working():
                features = one_by_one(client.model.eval().features, client.images).numpy()
                return release(spec, features, client.labels.cpu().numpy(), about)

        return self.federation.noised("features", draw, spec, about, CODE_STD)

    def _secret(self, client: Client, number: int, phase: str, purpose: str) -> SecretStream:
        """The data are among the names: a round repeated on other data draws other noise."""
        if client.id not in self._keys:
            self._keys[client.id] = self.federation.releases.secret(
                client.id, lambda: os.urandom(KEY_BYTES)
            )
            self._data[client.id] = fingerprint(client.images, client.labels)
        return SecretStream(self._keys[client.id], self._data[client.id], number, phase, purpose)
