"""FedVTC under DP-SGD: the same rounds, every look at data accounted for."""

from __future__ import annotations

import os
from functools import partial

from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.federation.roster import one_per_architecture
from fedvtc_edge.privacy.dpsgd import KEY_BYTES, SecretStream, check_private, fingerprint
from fedvtc_edge.privacy.mechanism import ExampleMechanism
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.steps import Gradients, NoisedGradients

from .fedvtc import FedVTC


class ExampleFedVTC(FedVTC):
    """FedVTC by noised gradients and noised releases.

    Guarantee: see :class:`~fedvtc_edge.privacy.schedule.Schedule`. Noise and samples
    follow from a secret key of each client, its data, the round and the phase: a round
    repeated after a crash repeats them, so that nothing is spent twice.

    Raises:
        ConfigError: An architecture that DP-SGD cannot train.
    """

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        assert isinstance(federation.mechanism, ExampleMechanism)
        self.schedule = federation.mechanism.schedule
        self._keys: dict[str, bytes] = {}
        self._data: dict[str, str] = {}
        for client in one_per_architecture(federation.clients):
            check_private(client.architecture, client.model, client.inputs[:1])

    def _gradients(self, client: Client, number: int, phase: str) -> Gradients:
        steps = {"train": self.schedule.train_steps, "decoder": self.schedule.decoder_steps}
        secrets = partial(self._secret, client, number, phase)
        return NoisedGradients(self.schedule, steps[phase], secrets)

    def _secret(self, client: Client, number: int, phase: str, purpose: str) -> SecretStream:
        """The data are among the names: a round repeated on other data draws other noise."""
        if client.id not in self._keys:
            self._keys[client.id] = self.federation.releases.secret(
                client.id, lambda: os.urandom(KEY_BYTES)
            )
            self._data[client.id] = fingerprint(client.images, client.labels)
        return SecretStream(self._keys[client.id], self._data[client.id], number, phase, purpose)
