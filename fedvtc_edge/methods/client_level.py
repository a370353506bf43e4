"""FedVTC under ``privacy.mode = client``: the same rounds, clipped uploads, one noised sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from fedvtc_edge import wire
from fedvtc_edge.anchor import Anchor, centre
from fedvtc_edge.client import Client
from fedvtc_edge.context import Context
from fedvtc_edge.knowledge import CODE_STD
from fedvtc_edge.privacy.accountant import epsilon_spent
from fedvtc_edge.privacy.client_level import noised
from fedvtc_edge.privacy.design import Array, Design
from fedvtc_edge.privacy.plan import client_design_of
from fedvtc_edge.releases import SERVER

from .base import Federation
from .fedvtc import FedVTC


class ClientLevelFedVTC(FedVTC):
    """FedVTC whose publications are private at the level of whole clients.

    Guarantee: see :class:`~fedvtc_edge.privacy.client_level.ClientDesign`. A client that
    sits out a round is charged for it all the same: who takes part is drawn from the
    public seed, so that no sampling amplifies anything.
    """

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.clipped = client_design_of(federation.config, federation.classes)

    def epsilon(self) -> float | None:
        """ε that each client has spent by the end of the last round."""
        if self.share == "anchored":
            return super().epsilon()
        design = self.clipped
        steps = [(design.noise_multiplier, 1.0, self.done)]
        return min(epsilon_spent(steps, design.delta), design.epsilon)

    def uploads(self) -> list[str]:
        """What travels from a client to the server, in words."""
        design, when = self.clipped, "once, before the first round"
        if self.share != "anchored":
            when = "every round"
        how = "without noise, to a trusted server"
        if design.shares > 1:
            how = "with a share of the noise"
        whose = "the frozen anchor's" if self.share == "anchored" else "its own network's"
        what = ", and all classes' second moments" if design.second else ""
        return [
            f"{when}, clipped as a whole, {how}: counts and sums of {whose} {design.width} "
            f"features per class of the public list{what}"
        ]

    def _open_privately(self, anchor: Anchor, design: Design, cohort: Sequence[Client]) -> None:
        about = centre(anchor, self.federation.shape)
        self._release(0, "anchor", cohort, lambda _: anchor, about, None)

    def _share_features(self, number: int, cohort: Sequence[Client]) -> None:
        self._release(
            number,
            "features",
            cohort,
            lambda client: client.model.eval().features,
            np.zeros(self.clipped.width),
            CODE_STD,
        )

    def _release(
        self,
        number: int,
        kind: str,
        cohort: Sequence[Client],
        extractor: Callable[[Client], Callable[[Tensor], Tensor]],
        about: Array,
        std: float | None,
    ) -> None:
        """Clipped uploads of a cohort, and the server's one release of their noised sum."""
        federation, design = self.federation, self.clipped
        if federation.masked is not None:
            self._release_masked(number, kind, cohort, extractor, about, std)
            return
        for client in cohort:
            context = federation.context(client, number, kind)
            upload = client.clip_upload(extractor(client), design, about)
            data = wire.encode_release(upload, context=context)
            federation.send_release(data, context, design)
        total = federation.server.add_releases(quorum=federation.quorum(cohort))
        context = Context(federation.run, number, SERVER, kind)
        released = federation.releases.once(
            SERVER,
            _name(kind, number),
            lambda: wire.encode_release(noised(design, total), context=context),
        )
        federation.record(context, released)
        self._publish(
            kind, federation.server.publish_release(released, context, design, about, std=std)
        )

    def _release_masked(
        self,
        number: int,
        kind: str,
        cohort: Sequence[Client],
        extractor: Callable[[Client], Callable[[Tensor], Tensor]],
        about: Array,
        std: float | None,
    ) -> None:
        """Each adds its share of the noise before the masks: the server sees the sum alone."""
        federation, design = self.federation, self.clipped

        def released(client: Client) -> tuple[Context, bytes]:
            context = federation.context(client, number, kind)

            def draw() -> bytes:
                clipped = client.clip_upload(extractor(client), design, about)
                return wire.encode_release(noised(design, clipped), context=context)

            return context, federation.releases.once(client.id, _name(kind, number), draw)

        data = federation.publish_releases(
            map(released, cohort), design, about, quorum=federation.quorum(cohort), std=std
        )
        self._publish(kind, data)


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number:04d}" if number else kind
