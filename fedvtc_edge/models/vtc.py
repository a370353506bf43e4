"""The variational transposed-convolution decoder ψ: latents to images."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .builtin import group_norm
from .registry import ImageShape

LARGEST = 64
"""Side of the largest images that are synthesised; larger ones are these, enlarged."""


class VTC(nn.Module):
    """ψ: [N, p] → images [N, channels, size, size] in (0, 1).

    A linear layer lays out a small square, each transposed convolution
    (kernel 4, stride 2, padding 1: no overlap of unequal weight) doubles it.

    Images above :data:`LARGEST` are synthesised at that size and enlarged: what is finer
    would have to be learned from few examples, at a price that grows with the area.

    Args:
        shape: Of the images; ``size`` is a multiple of 4 from 8 on.
        latent: Width p of the latents.
        width: Channels of the smallest square.
    """

    enlarge: Tensor

    def __init__(self, shape: ImageShape, latent: int, width: int = 64) -> None:
        super().__init__()
        self.size, inner = shape.size, min(shape.size, LARGEST)
        doublings = 2 if inner < 32 else 3
        while (inner >> doublings) << doublings != inner:
            doublings -= 1
        self.base = inner >> doublings
        # Bilinear, as a matrix: its gradient is deterministic on every device.
        rows = F.interpolate(torch.eye(inner)[None], size=shape.size, mode="linear")[0].T
        self.register_buffer("enlarge", rows.contiguous(), persistent=False)
        self.width = width
        self.spread = nn.Linear(latent, width * self.base**2)
        layers: list[nn.Module] = [group_norm(width), nn.ReLU()]
        channels = width
        for _ in range(doublings):
            narrow = max(16, channels // 2)
            layers += [
                nn.ConvTranspose2d(channels, narrow, 4, 2, 1, bias=False),
                group_norm(narrow),
                nn.ReLU(),
            ]
            channels = narrow
        layers += [nn.Conv2d(channels, shape.channels, 3, 1, 1), nn.Sigmoid()]
        self.paint = nn.Sequential(*layers)

    @property
    def _filters(self) -> Tensor:
        return cast(nn.ConvTranspose2d, self.paint[2]).weight

    def forward(self, v: Tensor) -> Tensor:
        """Images [N, channels, size, size] of latents v [N, p]."""
        square = self.spread(v).view(-1, self.width, self.base, self.base)
        # Where weights lie channels-last the first norm's gradient takes five times as long in
        # torch's usual order. Elsewhere, as under per-example gradients, that order stays.
        if self._filters.is_contiguous(memory_format=torch.channels_last):
            square = square.contiguous(memory_format=torch.channels_last)
        images = cast(Tensor, self.paint(square))
        if images.shape[-1] == self.size:
            return images
        return torch.matmul(torch.matmul(self.enlarge, images), self.enlarge.T)


def build(shape: ImageShape, *, latent: int, seed: int) -> VTC:
    """A freshly initialised decoder; the same arguments give the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VTC(shape, latent)
