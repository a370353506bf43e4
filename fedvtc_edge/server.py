"""The server: it opens, checks, adds and publishes, and never sees raw data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .errors import FedVTCError
from .privacy.design import Array, Design
from .privacy.estimation import estimate
from .statistics import ClassStatistics, GlobalStatistics, sum_of
from .wire import Weights, decode, decode_release, decode_weights, encode_weights, publish

Witness = Callable[[int, str, str, bytes], None]
"""Told of each upload: round, sender, kind, bytes."""


class ServerError(FedVTCError):
    """A round that cannot be closed, or an upload that does not belong to it."""


class Server:
    """Adds one kind of statistics per round, and averages decoders where they are shared.

    Args:
        classes: Number C of classes, agreed on beforehand.
        witness: Called with every upload before it is opened, for the audit.
    """

    def __init__(self, classes: int, witness: Witness) -> None:
        self.classes = classes
        self._witness = witness
        self._received: dict[str, ClassStatistics] = {}
        self._releases: dict[str, NDArray[np.int64]] = {}
        self._decoders: dict[str, Weights] = {}

    def receive(
        self, upload: bytes, *, sender: str, round_: int, kind: str, width: int, pooled: bool
    ) -> None:
        """Open and check one client's upload.

        Raises:
            WireError: The bytes are not the statistics agreed on.
            ServerError: The sender was heard already in this round.
        """
        self._witness(round_, sender, kind, upload)
        if sender in self._received:
            raise ServerError(f"{sender} uploads twice in round {round_}", hint="one upload counts")
        self._received[sender] = decode(upload, classes=self.classes, width=width, pooled=pooled)

    def close(self, *, quorum: int, floor: float = 0.0) -> bytes:
        """Add what was received, in the order of the senders' names, and publish it.

        Args:
            quorum: Least number of uploads; fewer end the round without publishing.
            floor: Least standard deviation, in units of the features.

        Raises:
            ServerError: Fewer than ``quorum`` clients uploaded.
        """
        self._check_quorum(len(self._received), quorum)
        total = sum_of([self._received[sender] for sender in sorted(self._received)])
        self._received = {}
        return publish(GlobalStatistics.from_sum(total, floor=floor))

    def receive_release(
        self, upload: bytes, *, sender: str, round_: int, kind: str, design: Design
    ) -> None:
        """Open and check one client's noised release.

        Raises:
            WireError: The bytes are not a release of this design.
            ServerError: The sender was heard already in this round.
            PrivacyError: The sender's budget is spent.
        """
        self._witness(round_, sender, kind, upload)
        if sender in self._releases:
            raise ServerError(f"{sender} uploads twice in round {round_}", hint="one upload counts")
        self._releases[sender] = decode_release(upload, size=design.size)

    def close_releases(
        self, *, quorum: int, design: Design, centre: Array, std: float | None = None
    ) -> bytes:
        """Add the releases and publish what the sum says of the data: post-processing.

        Raises:
            ServerError: Fewer than ``quorum`` clients uploaded.
        """
        self._check_quorum(len(self._releases), quorum)
        total = np.sum([self._releases[sender] for sender in sorted(self._releases)], axis=0)
        contributors, self._releases = len(self._releases), {}
        world = estimate(design, total, contributors, centre)
        if std is not None:  # a public constant in place of an estimate
            world = replace(world, std=np.full_like(world.std, std))
        return publish(world)

    def receive_decoder(self, upload: bytes, *, sender: str, round_: int, like: Weights) -> None:
        """Open and check one client's decoder.

        Args:
            upload: float32 safetensors.
            sender: The client.
            round_: The round it belongs to.
            like: Weights of the agreed names and shapes.

        Raises:
            WireError: The bytes are not a decoder of the agreed shapes.
            ServerError: The sender was heard already in this round.
        """
        self._witness(round_, sender, "decoder", upload)
        if sender in self._decoders:
            raise ServerError(f"{sender} uploads twice in round {round_}", hint="one upload counts")
        self._decoders[sender] = decode_weights(upload, like=like)

    def close_decoders(self, *, quorum: int) -> bytes:
        """Plain average over clients (FedAvg, McMahan et al. 2017), float32 safetensors.

        Raises:
            ServerError: Fewer than ``quorum`` clients uploaded.
        """
        self._check_quorum(len(self._decoders), quorum)
        uploads = [self._decoders[sender] for sender in sorted(self._decoders)]
        self._decoders = {}
        return encode_weights(
            {
                name: np.stack([upload[name] for upload in uploads]).mean(0, dtype=np.float64)
                for name in uploads[0]
            }
        )

    @staticmethod
    def _check_quorum(heard: int, quorum: int) -> None:
        if heard < max(quorum, 1):
            raise ServerError(
                f"{heard} uploads, the quorum is {quorum}",
                hint="wait for more clients, or lower the quorum (to 1 at least)",
            )
