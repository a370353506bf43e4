"""The server: it opens, checks, adds and publishes, and never sees raw data."""

from __future__ import annotations

from collections.abc import Callable

from .errors import FedVTCError
from .statistics import ClassStatistics, GlobalStatistics, sum_of
from .wire import decode, publish

Witness = Callable[[int, str, str, bytes], None]
"""Told of each upload: round, sender, kind, bytes."""


class ServerError(FedVTCError):
    """A round that cannot be closed, or an upload that does not belong to it."""


class Server:
    """Adds one kind of statistics per round.

    Args:
        classes: Number C of classes, agreed on beforehand.
        witness: Called with every upload before it is opened, for the audit.
    """

    def __init__(self, classes: int, witness: Witness) -> None:
        self.classes = classes
        self._witness = witness
        self._received: dict[str, ClassStatistics] = {}

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
        if len(self._received) < max(quorum, 1):
            raise ServerError(
                f"{len(self._received)} uploads, the quorum is {quorum}",
                hint="wait for more clients, or lower the quorum (to 1 at least)",
            )
        total = sum_of([self._received[sender] for sender in sorted(self._received)])
        self._received = {}
        return publish(GlobalStatistics.from_sum(total, floor=floor))
