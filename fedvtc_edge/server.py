"""The server: it opens, checks, adds and publishes, and never sees raw data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .errors import FedVTCError
from .privacy.client_level import ClientDesign, check_norm, noised
from .privacy.design import Array, Design
from .privacy.estimation import estimate
from .privacy.release import Integers
from .releases import SERVER
from .statistics import ClassStatistics, GlobalStatistics, sum_of
from .wire import (
    Weights,
    decode,
    decode_release,
    decode_weights,
    encode_release,
    encode_weights,
    publish,
)

Witness = Callable[[int, str, str, bytes], None]
"""Told of each upload: round, sender, kind, bytes."""

Once = Callable[[Callable[[], bytes]], bytes]
"""What a function returned the first time, kept on disk."""


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
        self._releases: dict[str, Integers] = {}
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
        """Open and check one client's release: noised, or clipped for a noised sum.

        Raises:
            WireError: The bytes are not a release of this design.
            ServerError: The sender was heard already in this round.
            PrivacyError: The sender's budget is spent, or its upload is beyond the clip bound.
        """
        self._witness(round_, sender, kind, upload)
        if sender in self._releases:
            raise ServerError(f"{sender} uploads twice in round {round_}", hint="one upload counts")
        release = decode_release(upload, size=design.size)
        if isinstance(design, ClientDesign):
            check_norm(design, release)
        self._releases[sender] = release

    def close_releases(
        self, *, quorum: int, design: Design, centre: Array, std: float | None = None
    ) -> bytes:
        """Add the releases and publish what the sum says of the data: post-processing.

        Raises:
            ServerError: Fewer than ``quorum`` clients uploaded.
        """
        contributors, total = self._sum_of_releases(quorum)
        return publish(_world(design, total, contributors, centre, std))

    def close_in_sum(
        self,
        *,
        quorum: int,
        design: ClientDesign,
        centre: Array,
        round_: int,
        kind: str,
        once: Once,
        std: float | None = None,
    ) -> bytes:
        """Add clipped uploads, noise the sum, and publish what it says: see :class:`ClientDesign`.

        Args:
            quorum: Least number of uploads.
            design: Clip bound and noise.
            centre: Public centre of the features.
            round_: Of the uploads.
            kind: Of the uploads.
            once: Keeps the noised sum: after a crash the same bytes are published.
            std: A public constant to publish in place of estimated deviations.

        Raises:
            ServerError: Fewer than ``quorum`` clients uploaded.
            PrivacyError: The budget is spent.
        """
        _, total = self._sum_of_releases(quorum)
        data = once(lambda: encode_release(noised(design, total)))
        self._witness(round_, SERVER, kind, data)  # in the ledger before anybody sees it
        return publish(_world(design, decode_release(data, size=design.size), 1, centre, std))

    def _sum_of_releases(self, quorum: int) -> tuple[int, Integers]:
        self._check_quorum(len(self._releases), quorum)
        received = [self._releases[sender] for sender in sorted(self._releases)]
        self._releases = {}
        return len(received), np.sum(received, axis=0)

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


def _world(
    design: Design, total: Integers, draws: int, centre: Array, std: float | None
) -> GlobalStatistics:
    """Post-processing of a sum that carries so many draws of noise."""
    world = estimate(design, total, draws, centre)
    if std is not None:  # a public constant in place of an estimate
        world = replace(world, std=np.full_like(world.std, std))
    return world
