"""FedVTC under ``privacy.mode = client``: the same rounds, clipped uploads, one noised sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from fedvtc_edge.federation.exchange import Clipped, Exchange
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.models.anchor import Anchor, centre
from fedvtc_edge.privacy.accountant import epsilon_spent
from fedvtc_edge.privacy.mechanism import client_release_spec_of
from fedvtc_edge.privacy.release import Integers, noised
from fedvtc_edge.privacy.release_spec import Array
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.knowledge import CODE_STD

from .fedvtc import FedVTC


class ClientLevelFedVTC(FedVTC):
    """FedVTC whose publications are private at the level of whole clients.

    Guarantee: see :class:`~fedvtc_edge.privacy.release_spec.ClientDesign`. A client that
    sits out a round is charged for it all the same: who takes part is drawn from the
    public seed, so that no sampling amplifies anything.
    """

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.clipped = client_release_spec_of(federation.config, federation.classes)

    def epsilon(self) -> float | None:
        """ε that each client has spent by the end of the last round."""
        if self.share == "anchored":
            return super().epsilon()
        spec = self.clipped
        steps = [(spec.noise_multiplier, 1.0, self.done)]
        return min(epsilon_spent(steps, spec.delta), spec.epsilon)

    def uploads(self) -> list[str]:
        """What travels from a client to the server, in words."""
        spec, when = self.clipped, "once, before the first round"
        if self.share != "anchored":
            when = "every round"
        how = "without noise, to a trusted server"
        if spec.shares > 1:
            how = "with a share of the noise"
        whose = "the frozen anchor's" if self.share == "anchored" else "its own network's"
        what = ", and all classes' second moments" if spec.second else ""
        return [
            f"{when}, clipped as a whole, {how}: counts and sums of {whose} {spec.width} "
            f"features per class of the public list{what}"
        ]

    def _anchor_statistics(self, anchor: Anchor) -> Exchange[Any]:
        return self._clipped("anchor", lambda _: anchor, centre(anchor, self.federation.shape))

    def _features(self) -> Exchange[Any]:
        zero = np.zeros(self.clipped.width)
        return self._clipped(
            "features", lambda client: client.model.eval().features, zero, CODE_STD
        )

    def _clipped(
        self,
        kind: str,
        extractor: Callable[[Client], Callable[[Tensor], Tensor]],
        about: Array,
        std: float | None = None,
    ) -> Exchange[Any]:
        """Who noises: the server, once; or, under masks, each client its share beforehand."""
        spec = self.clipped

        def clip(client: Client) -> Integers:
            return client.clip_upload(extractor(client), spec, about)

        federation = self.federation
        if federation.config.transport.masking:
            return federation.noised(
                kind, lambda client: noised(spec, clip(client)), spec, about, std
            )
        least = federation.config.server.minimum_contributors
        return Clipped(kind, clip, spec, about, federation.release, least, std)
