"""The model of one client: extractor g (body, projection, norm) and head h."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fedvtc_edge.errors import ConfigError

from .registry import ImageShape, body


class Classifier(nn.Module):
    """f = h ∘ g with features of one width for every architecture.

    The features pass a LayerNorm without affine parameters, so that ‖g(x)‖ = √p:
    bounded for every client, and no extractor can collapse onto the prototypes'
    origin.

    Args:
        extractor: Body; [N, channels, H, W] → [N, d].
        shape: Shape of the images.
        latent: Width p of the features.
        classes: Number C of classes.

    Raises:
        ConfigError: The body gives no features [N, d].
    """

    def __init__(self, extractor: nn.Module, shape: ImageShape, latent: int, classes: int) -> None:
        super().__init__()
        self.body = extractor
        with torch.no_grad():  # also materialises lazy layers
            features = extractor(torch.zeros(1, shape.channels, shape.size, shape.size))
        if features.ndim != 2:
            raise ConfigError(
                f"a body gives features of shape {list(features.shape)} for one image",
                hint="let it return [N, d]; nn.Flatten() is often what is missing",
            )
        self.projection = nn.Linear(features.shape[1], latent)
        self.norm = nn.LayerNorm(latent, elementwise_affine=False)
        self.head = nn.Linear(latent, classes)

    def inputs(self, images: Tensor) -> Tensor:
        """Inputs of training and evaluation for images: the images, or features kept of them."""
        return images

    def features(self, x: Tensor) -> Tensor:
        """g: [N, channels, H, W] in [0, 1] → [N, p], each row of norm √p."""
        return cast(Tensor, self.norm(self.projection(self.body(x))))

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, p] and logits [N, C] of images or of what :meth:`inputs` made of them."""
        z = self.features(x)
        return z, cast(Tensor, self.head(z))

    def forward(self, x: Tensor) -> Tensor:
        """f: [N, channels, H, W] in [0, 1] → logits [N, C]."""
        return cast(Tensor, self.head(self.features(x)))


def build(name: str, shape: ImageShape, *, latent: int, classes: int, seed: int) -> Classifier:
    """A freshly initialised classifier; the same arguments give the same weights.

    Raises:
        ConfigError: No architecture of that name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(body(name, shape), shape, latent, classes)
