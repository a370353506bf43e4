"""The trained networks as the graphs that a device runs, uint8 at every end."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fedvtc_edge.anchor import Anchor
from fedvtc_edge.models import Classifier
from fedvtc_edge.statistics import GlobalStatistics
from fedvtc_edge.vtc import VTC


class ClassifierGraph(nn.Module):
    """images uint8 [N, H, W, channels] → logits [N, C]; scaled as in training."""

    def __init__(self, model: Classifier | Nearest) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Scale, then f."""
        return cast(Tensor, self.model(_scaled(images)))


class Nearest(nn.Module):
    """How FedProto classifies: minus the squared distance to each published prototype.

    Args:
        model: Its features are compared; its head is not used.
        world: The prototypes; a class that nobody had is farther than any can be.
    """

    mean: Tensor
    known: Tensor

    def __init__(self, model: Classifier, world: GlobalStatistics) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.from_numpy(world.mean).float())
        self.register_buffer("known", torch.from_numpy(world.present))
        self._beyond = -4.0 * world.mean.shape[1] - 1  # features and prototypes: norm √p at most

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] in [0, 1] → [N, C]."""
        apart = self.model.features(x)[:, None] - self.mean
        return torch.where(self.known, -apart.square().sum(2), self._beyond)


class AnchorGraph(nn.Module):
    """images uint8 [N, H, W, channels] → features of the frozen anchor [N, m]."""

    def __init__(self, anchor: Anchor) -> None:
        super().__init__()
        self.anchor = anchor

    def forward(self, images: Tensor) -> Tensor:
        """Scale, then R."""
        return cast(Tensor, self.anchor(_scaled(images)))


class SynthesizerGraph(nn.Module):
    """labels [N], means and stds [C, p], noise [N, p] → images uint8 [N, H, W, channels]."""

    def __init__(self, decoder: VTC) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, labels: Tensor, means: Tensor, stds: Tensor, noise: Tensor) -> Tensor:
        """Latents v = c^y + σ^y ⊙ ε, then ψ, then pixels."""
        levels = self.levels(labels, means, stds, noise)
        return levels.round().to(torch.uint8)

    def levels(self, labels: Tensor, means: Tensor, stds: Tensor, noise: Tensor) -> Tensor:
        """The pixels before rounding, [N, H, W, channels] in 0…255."""
        # Not means[labels]: its graph would allow negative labels and cost a node more.
        mean, std = torch.index_select(means, 0, labels), torch.index_select(stds, 0, labels)
        painted = cast(Tensor, self.decoder(mean + std * noise))
        return painted.permute(0, 2, 3, 1) * 255.0


def _scaled(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).to(torch.float32) / 255.0
