"""Everyone and everything that a method may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from fedvtc_edge.config import Config
from fedvtc_edge.errors import EnvelopeError
from fedvtc_edge.masking import MaskingError, threshold_of
from fedvtc_edge.models.registry import ImageShape
from fedvtc_edge.privacy.release_store import ReleaseStore
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute
from fedvtc_edge.transport.channel import Plain, Transport
from fedvtc_edge.transport.masked_sum import Integers, MaskedSums, Total
from fedvtc_edge.wire.context import Context

from .exchange import Exchange, SecureAggregatable
from .server import Server, quorum_of

Record = Callable[[Context, bytes], None]
"""Told of each release before a byte of it leaves; refuses what the budget does not cover."""


def no_ledger(context: Context, data: bytes) -> None:
    """Keeper of no ledger."""


@dataclass
class Traffic:
    """Bytes between one client and the server."""

    up: int = 0
    down: int = 0


@dataclass
class Federation:
    """Everyone and everything that takes part in one run.

    Args:
        config: The settings.
        clients: In the order of their ids.
        server: Adds and publishes.
        shape: Of the images.
        classes: Number C of classes.
        compute: Where tensors live.
        run: Public name of the run, in the context of every upload.
        releases: Noised releases, kept so that a retry sends the same bytes.
        transport: Carries uploads.
        record: The ledger.
        masked: Sums that hide their parts, or None where the server sees each upload.
        traffic: Bytes per client id.
    """

    config: Config
    clients: Sequence[Client]
    server: Server
    shape: ImageShape
    classes: int
    compute: Compute
    run: str
    releases: ReleaseStore = field(default_factory=lambda: ReleaseStore(None))
    transport: Transport = field(default_factory=Plain)
    record: Record = no_ledger
    masked: MaskedSums | None = None
    traffic: dict[str, Traffic] = field(init=False)

    def __post_init__(self) -> None:
        self.traffic = {client.id: Traffic() for client in self.clients}
        self.missing = 0
        """Clients that the round under way is for and that cannot take part in it."""

    def context(self, client: Client, number: int, kind: str) -> Context:
        """What an upload of a client in round ``number`` belongs to."""
        return Context(self.run, number, client.id, kind)

    def send(self, payload: bytes, context: Context, receive: Callable[..., object]) -> None:
        """One upload: into the ledger, on its way, and to the server.

        Args:
            payload: What the client encoded.
            context: What it belongs to.
            receive: The server's, called with the payload as it arrived and the sender's
                fingerprint; not called for what could not be opened, which is noted.

        Raises:
            PrivacyError: The sender's budget is spent.
        """
        self.record(context, payload)
        try:
            delivery = self.transport.carry(payload, context)
        except EnvelopeError as error:
            self.server.refuse(context, error, None)
            return
        self.traffic[context.sender].up += delivery.size
        receive(delivery.payload, context=context, fingerprint=delivery.fingerprint)

    def publish(self, exchange: Exchange, number: int, cohort: Sequence[Client]) -> bytes:
        """One exchange with a cohort: one by one or as a masked sum, and what is published.

        Args:
            exchange: What travels.
            number: Round; 0 is before the first.
            cohort: Who takes part, each asked when its turn comes.

        Raises:
            ServerError: Too few arrived.
            MaskingError: The masked sum did not come out, or a number does not fit its grid.
            PrivacyError: A budget is spent.
        """
        quorum = self.quorum(cohort)
        if self.masked is not None and isinstance(exchange, SecureAggregatable):
            total = self._add(self._vectors(exchange, number, cohort), exchange.bound)
            return exchange.close_sum(self, total.vector, total.heard, quorum)
        for client in cohort:
            context = self.context(client, number, exchange.kind)
            payload = exchange.payload(self, client, context)
            self.send(payload, context, partial(exchange.receive, self))
        return exchange.close(self, number, quorum)

    def _vectors(
        self, exchange: SecureAggregatable, number: int, cohort: Sequence[Client]
    ) -> dict[Context, Integers]:
        vectors = {}
        for client in cohort:
            context = self.context(client, number, exchange.kind)
            vectors[context], noted = exchange.vector(self, client, context)
            self.record(context, noted)
        return vectors

    def _add(self, vectors: Mapping[Context, Integers], bound: int) -> Total:
        """The masked sum; of too few clients it would show more of each than was agreed on."""
        assert self.masked is not None
        least = threshold_of(self.config.group)
        if len(vectors) < least:
            raise MaskingError(
                f"{len(vectors)} of {self.config.group} clients in a masked sum, expected {least}",
                hint="two thirds must be there: masks and shares of noise are made for so many",
            )
        own = {context.sender: vector for context, vector in vectors.items()}
        total = self.masked.add(own, next(iter(vectors)), bound=bound)
        for client, spent in total.traffic.items():
            self.traffic[client].up += spent.up
            self.traffic[client].down += spent.down
        return total

    def quorum(self, cohort: Sequence[Client]) -> int:
        """How many of a cohort must be heard: all that take part, or a share of all it is for."""
        share = self.config.server.quorum
        if share is None:
            return len(cohort)
        return quorum_of(share, len(cohort) + self.missing)

    def broadcast(self, size: int, to: Sequence[Client] | None = None) -> None:
        """Count ``size`` published bytes for every client that downloads them."""
        for client in self.clients if to is None else to:
            self.traffic[client.id].down += size
