"""FedMRL (Yi et al. 2024, arXiv 2406.00488): own and shared features together, nested heads."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fedvtc_edge.config import MethodSettings
from fedvtc_edge.models.companion import Companion, build_companion
from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.models.registry import ImageShape
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.losses import masked_cross_entropy
from fedvtc_edge.training.own_objective import BatchLoss

from .base import Knob
from .companions import SharedCompanion, networks_of


class FedMRL(SharedCompanion):
    """Features of both networks are concatenated and projected, by a matrix that stays.

    The first of the fused features go to the small network's head, all to the client's own; the
    loss is the sum of both cross-entropies. A client classifies by its own head on the fused
    features. Shared are all weights of the small network, in every round.
    """

    standalone = False
    knob: ClassVar[Knob | None] = Knob(
        "width of the small network's features, as a share of method.latent",
        0.25,
        (0.125, 0.25, 0.5),
        0.01,
        1.0,
    )

    @classmethod
    def companion(
        cls, settings: MethodSettings, shape: ImageShape, classes: int, *, seed: int
    ) -> Companion:
        """A network with fewer features, and the projection of both networks' features."""
        assert cls.knob is not None
        share = cls.knob.default if settings.knob is None else settings.knob
        width = max(1, round(share * settings.latent))
        return build_companion(
            shape,
            latent=width,
            classes=classes,
            seed=seed,
            own=lambda: nn.Linear(width + settings.latent, settings.latent),
        )

    def objective(self, client: Client) -> BatchLoss:
        """Cross-entropy of the small head and of the client's own."""

        def loss(x: Tensor, labels: Tensor) -> Tensor:
            small, own = (
                masked_cross_entropy(logits.float(), labels, client.present)
                for logits in nested(client, x)
            )
            return small + own

        return loss

    def scores(self, client: Client, images: Tensor) -> Tensor:
        """Log-posteriors of the client's own head on the fused features."""
        for network in client.networks.values():
            network.eval()
        return in_chunks(lambda x: nested(client, x)[1], images).log_softmax(1)


def nested(client: Client, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, C] of the small head and of the client's own, on fused features."""
    companion, model = networks_of(client), client.model
    small = companion.network.features(x)
    fused = companion.own(torch.cat([small, model.features(x)], 1))
    return companion.network.head(fused[:, : small.shape[1]]), model.head(fused)
