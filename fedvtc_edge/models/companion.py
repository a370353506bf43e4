"""The small network that clients of every architecture keep beside their own, and share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .classifier import Classifier, build
from .registry import ImageShape

SMALL = "mobilenet"
"""Body of every companion: the smallest built-in one for images of 28 pixels and more."""


class Companion(nn.Module):
    """A second network of a client.

    Args:
        network: Of one shape at all clients; its weights travel.
        own: What goes with it and stays on the client.
    """

    def __init__(self, network: Classifier, own: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.own = own


def build_companion(
    shape: ImageShape,
    *,
    latent: int,
    classes: int,
    seed: int,
    own: Callable[[], nn.Module] = nn.Identity,
) -> Companion:
    """A fresh companion; the same arguments give all clients the same weights.

    Args:
        latent: Width of its features.
        own: Makes what stays on the client; by default nothing.
    """
    network = build(SMALL, shape, latent=latent, classes=classes, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Companion(network, own())
