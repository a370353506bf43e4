"""What every method is to the engine, and what it may use of the federation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fedvtc_edge import wire
from fedvtc_edge.admission import quorum_of
from fedvtc_edge.client import Client, in_chunks
from fedvtc_edge.compute import Compute
from fedvtc_edge.config import Config
from fedvtc_edge.context import Context
from fedvtc_edge.devices.rehearsal import Load
from fedvtc_edge.errors import EnvelopeError
from fedvtc_edge.knowledge import Knowledge
from fedvtc_edge.masked import MaskedSums, Total, from_vector, to_vector, vector_bound
from fedvtc_edge.masking import LARGEST_BOUND, MaskingError, threshold_of
from fedvtc_edge.models.registry import ImageShape
from fedvtc_edge.privacy.design import Array, Design
from fedvtc_edge.privacy.release import Integers
from fedvtc_edge.releases import ReleaseStore
from fedvtc_edge.server import Server
from fedvtc_edge.statistics import ClassStatistics
from fedvtc_edge.transport import Plain, Transport

Record = Callable[[Context, bytes], None]
"""Told of each release before a byte of it leaves; refuses what the budget does not cover."""


def unrecorded(context: Context, data: bytes) -> None:
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
    record: Record = unrecorded
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

    def send_release(self, payload: bytes, context: Context, design: Design) -> None:
        """:meth:`send` for a noised or clipped release."""
        self.send(payload, context, partial(self.server.receive_release, design=design))

    def publish_releases(
        self,
        payloads: Iterable[tuple[Context, bytes]],
        design: Design,
        centre: Array,
        *,
        quorum: int,
        std: float | None = None,
    ) -> bytes:
        """Noised releases to the server, one by one or as a masked sum, and what it publishes.

        Args:
            payloads: Encoded releases, each drawn when its turn comes.
            design: What they look like.
            centre: Public centre of the features.
            quorum: Least number that must arrive.
            std: A public constant to publish in place of estimated deviations.

        Raises:
            ServerError: Too few arrived.
            MaskingError: The masked sum did not come out.
            PrivacyError: A budget is spent.
        """
        if self.masked is None:
            for context, payload in payloads:
                self.send_release(payload, context, design)
            return self.server.close_releases(quorum=quorum, design=design, centre=centre, std=std)
        vectors = {}
        for context, payload in payloads:
            self.record(context, payload)
            vectors[context] = wire.decode_release(payload, size=design.size, context=context)
        total = self._add(vectors, LARGEST_BOUND)
        return self.server.publish_releases(
            total.vector, total.heard, design, centre, quorum=quorum, std=std
        )

    def publish_statistics(
        self,
        measured: Iterable[tuple[Context, ClassStatistics]],
        *,
        quorum: int,
        floor: float = 0.0,
    ) -> bytes:
        """Exact statistics to the server, one by one or as a masked sum, and what it publishes.

        Args:
            measured: Each client's, measured when its turn comes.
            quorum: Least number that must arrive.
            floor: Least standard deviation.

        Raises:
            ServerError: Too few arrived.
            MaskingError: The masked sum did not come out, or a number does not fit its grid.
        """
        if self.masked is None:
            precision = self.config.transport.precision
            for context, own in measured:
                payload = wire.encode(own, context=context, precision=precision)
                width, pooled = own.width, bool(own.pooled)
                self.send(
                    payload, context, partial(self.server.receive, width=width, pooled=pooled)
                )
            return self.server.close(quorum=quorum, floor=floor)
        parts = dict(measured)
        vectors = {context: to_vector(own) for context, own in parts.items()}
        for context, vector in vectors.items():
            self.record(context, vector.tobytes())
        total = self._add(vectors, vector_bound())
        summed, number = from_vector(total.vector, like=next(iter(parts.values())))
        return self.server.publish_sum(summed, number, total.heard, quorum=quorum, floor=floor)

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


class Method(ABC):
    """How clients learn; the engine calls :meth:`open` once, then :meth:`round` per round.

    Whatever of the outside world a method needs again after a restart, it keeps in
    ``published``; the engine checkpoints that beside the clients' modules.
    """

    has_decoder = False

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.published: dict[str, bytes] = {}
        self.done = 0
        """Rounds behind it, as the engine counts them."""

    def open(self, cohort: Sequence[Client]) -> None:  # noqa: B027  (most methods do nothing)
        """What happens once, before the first round, with all clients that can be reached."""

    def load(self, client: Client, number: int) -> Load:
        """What round ``number`` asks of a client's device; 0 is what :meth:`open` does."""
        return Load()

    def restore(self, published: dict[str, bytes]) -> None:
        """Take up again what an earlier process published."""
        self.published = dict(published)

    @abstractmethod
    def round(self, number: int, cohort: Sequence[Client]) -> None:
        """One federated round with the clients in ``cohort``; rounds count from 1."""

    def scores(self, client: Client, images: Tensor) -> Tensor:
        """Log-posteriors [N, C] of a client's own model on images, on the CPU."""
        return in_chunks(client.model.eval(), images).log_softmax(1)

    def control(self, images: Tensor) -> Tensor | None:
        """Log-posteriors [N, C] of the training-free classifier, or None without an anchor."""
        return None

    def own_classes(self, client: Client) -> Tensor:
        """Classes [C] that a client's prediction treats as its own."""
        return client.present

    def world(self) -> Knowledge | None:
        """What clients paint from, or None for methods that paint nothing."""
        return None

    def epsilon(self) -> float | None:
        """ε that each client has spent by now, or None where nothing is claimed."""
        return None

    def uploads(self) -> list[str]:
        """What travels from a client to the server, in words."""
        return []


CALIBRATION = 0.5
"""Weight of f_k beside the control: it learned from it, so their errors are not independent."""


def calibrated(own: Tensor, control: Tensor, present: Tensor) -> Tensor:
    """Log-posteriors of both experts, each where it knows more.

    The control says how likely the client's own classes are as a group, and
    decides among the others alone; *within* the group the prediction is
    log t(y|x) + ½ log f_k(y|x), because there f_k learned from real images. The
    plain product over all classes lets f_k's guesses about classes that it only
    knows from paintings spoil the control's (docs/decisions/0007).

    Args:
        own: log f_k, [N, C].
        control: log t, [N, C].
        present: Classes [C] of which the client has samples.
    """
    outside = torch.full_like(control, float("-inf"))
    group = torch.logsumexp(torch.where(present, control, outside), 1, keepdim=True)
    within = torch.where(present, control + CALIBRATION * own, outside).log_softmax(1)
    return torch.where(present, within + group, control)
