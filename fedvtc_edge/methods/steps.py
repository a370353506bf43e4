"""What a round consists of: each client's work, and what then travels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedvtc_edge.client import Client
from fedvtc_edge.context import Context
from fedvtc_edge.masked import Integers

if TYPE_CHECKING:
    from .federation import Federation


class Exchange(ABC):
    """One kind of upload: how a client makes it, how the server adds it up and publishes.

    Both halves stand side by side, whichever process runs which.

    Attributes:
        kind: What its contexts and publications are called.
        for_all: Whether everybody downloads what is published, or the cohort alone.
    """

    kind: str
    for_all = True

    @abstractmethod
    def payload(self, federation: Federation, client: Client, context: Context) -> bytes:
        """A client's upload, encoded."""

    @abstractmethod
    def receive(
        self, federation: Federation, upload: bytes, *, context: Context, fingerprint: str | None
    ) -> bool:
        """Open and check one upload; False where it was refused, with a note."""

    @abstractmethod
    def close(self, federation: Federation, number: int, quorum: int) -> bytes:
        """Add up what was received in a round, and publish it."""


class Summable(Exchange):
    """An upload of which a sum under masks is enough.

    Attributes:
        bound: Largest magnitude of one number; public.
    """

    bound: int

    @abstractmethod
    def size(self, federation: Federation) -> int:
        """How many numbers a vector has."""

    @abstractmethod
    def vector(
        self, federation: Federation, client: Client, context: Context
    ) -> tuple[Integers, bytes]:
        """What goes under a client's masks, int64 [size], and what its ledger says of it."""

    @abstractmethod
    def close_sum(
        self, federation: Federation, total: Integers, heard: Sequence[str], quorum: int
    ) -> bytes:
        """Publish a sum whose parts nobody saw."""


@dataclass(frozen=True)
class Step:
    """A stretch of a round: each client's work and, at its end, an exchange or nothing.

    Args:
        work: Done by one client on its own.
        exchange: What travels then.
    """

    work: Callable[[Client], None] | None = None
    exchange: Exchange | None = None
