"""Keys of a client, and its conditions for taking part."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedvtc_edge.config import Config
from fedvtc_edge.errors import TrustError
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.sealing import Identity, PublicIdentity, TrustList

from .consent import Conditions


@dataclass(frozen=True)
class ClientKeys:
    """Keys that a client holds.

    Args:
        trusted: All clients of the run, in their order; None where the client has no list.
    """

    client: str
    identity: Identity
    server: PublicIdentity
    trusted: TrustList | None = None

    def roster(self, config: Config) -> list[str]:
        """Ids of all clients of a run under masks, in their order.

        Raises:
            TrustError: No list, one of another length, or one without this client's key.
        """
        if self.trusted is None:
            raise TrustError(
                "transport.masking needs the keys of all clients, and this one has no trust list",
                hint="masks bear no server that names the clients: get the list another way",
            )
        names = list(self.trusted.clients)
        if len(names) != config.clients.count:
            raise TrustError(
                f"the trust list has {len(names)} clients, clients.count is {config.clients.count}",
                hint="server and clients need the same list",
            )
        if self.trusted.lookup(self.client) != self.identity.public:
            raise TrustError(
                f"the trust list has another identity for {self.client}",
                hint="compare the fingerprints: fedvtc-edge keys show FILE.pub",
            )
        return names


@dataclass(frozen=True)
class DisclosurePolicy:
    """Conditions of a client: settings it accepts, and metrics it shares.

    Args:
        settings: The only settings that it accepts, or None for any.
        share_metrics: Whether the server is told how well its networks do, and how many
            examples of which classes it has. None: only where no privacy mode and no
            masking hides the exact statistics, which tell as much.
        conditions: On the privacy of the run.
    """

    settings: Config | None = None
    share_metrics: bool | None = None
    conditions: Conditions = field(default_factory=Conditions)

    def shares_metrics(self, config: Config) -> bool:
        """True if accuracies and counts leave the client under these settings."""
        if self.share_metrics is not None:
            return self.share_metrics
        return mechanism_of(config) is None and not config.transport.masking
