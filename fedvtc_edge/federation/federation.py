"""Everyone and everything that a method may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from fedvtc_edge.config import Config
from fedvtc_edge.models.registry import ImageShape
from fedvtc_edge.privacy.ledger import Release
from fedvtc_edge.privacy.mechanism import Mechanism, mechanism_of
from fedvtc_edge.privacy.release_spec import Array
from fedvtc_edge.privacy.release_store import SERVER, ReleaseStore
from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute
from fedvtc_edge.transport.channel import Plain, Transport
from fedvtc_edge.transport.masked_sum import Integers, MaskedSums
from fedvtc_edge.wire.context import Context

from .exchange import Clipped, Exact, Exchange, Means, Noised, release_name
from .server import Server

Part = TypeVar("Part")

Record = Callable[[Sequence[Release]], None]
"""Told of releases before a byte of them leaves; refuses all where a budget does not cover one."""


Measuring = Callable[[Client], None]
"""Told of each client whose own features are about to be measured for an upload."""


def measure_untold(client: Client) -> None:
    """Tell nobody."""


def no_ledger(releases: Sequence[Release]) -> None:
    """Keep no ledger."""


@dataclass
class Federation:
    """Everyone and everything that takes part in one run.

    Args:
        clients: Those in this process, in the order of their ids.
        classes: Number C of classes.
        compute: Where tensors live.
        run: Public name of the run, in the context of every upload.
        releases: Noised releases, kept so that a retry sends the same bytes.
        masked: Sums that hide their parts, or None where the server sees each upload.
        measuring: Told of each client before its own features are measured, by the network as it
            is then.
        public: Images without labels that all parties have, [P, channels, size, size], or None.
        mechanism: Of differential privacy, as the settings ask for; None where nothing is
            claimed.
    """

    config: Config
    clients: Sequence[Client]
    shape: ImageShape
    classes: int
    compute: Compute
    run: str
    server: Server = field(default_factory=Server)
    releases: ReleaseStore = field(default_factory=lambda: ReleaseStore(None))
    transport: Transport = field(default_factory=Plain)
    record: Record = no_ledger
    masked: MaskedSums | None = None
    measuring: Measuring = measure_untold
    public: Tensor | None = None
    mechanism: Mechanism | None = field(init=False)

    def __post_init__(self) -> None:
        self.mechanism = mechanism_of(self.config, self.classes)

    def context(self, sender: str, number: int, kind: str) -> Context:
        """Context of an upload or publication of round ``number``."""
        return Context(self.run, number, sender, kind)

    def exact(
        self,
        kind: str,
        measure: Callable[[Client], ClassStatistics],
        width: int,
        *,
        pooled: bool,
        floor: float = 0.0,
        moments: bool = True,
    ) -> Exact:
        """The exchange of exact statistics that the settings ask for.

        Args:
            moments: Whether second moments travel.
        """
        precision, server = self.config.transport.precision, self.config.server
        measure, form = self._told(kind, measure), Exact if moments else Means
        return form(kind, measure, self.classes, width, pooled, floor, precision, server)

    def protected(
        self,
        kind: str,
        protect: Callable[[Client], Integers],
        centre: Array,
        std: float | None = None,
    ) -> Exchange[Integers]:
        """The exchange of private releases: noised by the clients, or by the server once.

        Args:
            kind: ``anchor`` or ``features``.
            protect: What the mechanism lets out of a client, int64 [size].
            centre: Public centre of the features.
            std: A public constant to publish in place of estimated deviations.
        """
        mechanism, least = self.mechanism, self.config.server.minimum_contributors
        assert mechanism is not None
        protect = self._told(kind, protect)
        if mechanism.noised_by_server:
            return Clipped(kind, protect, mechanism, centre, self.release, least, std)
        most = self.config.most_samples if mechanism.unit == "example" else None
        return Noised(kind, protect, mechanism.spec, centre, self.releases, least, std, most)

    def _told(self, kind: str, measure: Callable[[Client], Part]) -> Callable[[Client], Part]:
        """The same measurement; if it is of own features, ``measuring`` is told before."""
        if kind != "features":
            return measure

        def measured(client: Client) -> Part:
            self.measuring(client)
            return measure(client)

        return measured

    def enter(self, releases: Sequence[tuple[Context, bytes]]) -> None:
        """Put releases and their ledger's entries on the disk: when this returns they may leave.

        Raises:
            PrivacyError: A budget is spent; then none of them may.
        """
        self.releases.sync()
        self.record([Release(own.round, own.sender, own.kind, data) for own, data in releases])

    def release(self, context: Context, draw: Callable[[], bytes]) -> bytes:
        """The server's one release of a context, in the ledger before it is published.

        Args:
            draw: Noises and encodes; called unless it was drawn before.

        Raises:
            PrivacyError: The budget is spent.
        """
        released = self.releases.once(SERVER, release_name(context), draw)
        self.enter([(context, released)])
        self.server.recorder(context.round, context.sender, context.kind, released)
        return released
