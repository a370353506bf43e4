"""Steps on an objective that a method makes itself, on all networks of a client together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from fedvtc_edge.config import TrainingSettings

from .compute import Compute
from .steps import Adam, noisy, normal_of, random_batch

BatchLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Loss of images as the networks see them, [n, channels, size, size], and their targets [n, …]."""

C = TypeVar("C")
Objective: TypeAlias = Callable[[C], BatchLoss]
"""Maker of a client's loss, called once before the first step."""


def train(
    networks: Sequence[nn.Module],
    images: Tensor,
    targets: Tensor,
    loss: BatchLoss,
    settings: TrainingSettings,
    compute: Compute,
    stream: torch.Generator,
    *,
    steps: int,
    clip: float = math.inf,
) -> int:
    """So many steps of Adam on random batches; returns the number of images seen.

    Args:
        networks: All whose parameters move; those that the loss does not reach stay as they are.
        images: [N, channels, size, size] in [0, 1].
        targets: [N, …], on the device of the images.
        clip: Largest norm of the gradient of one network.
    """
    for network in networks:
        network.train()
    adam = Adam([p for network in networks for p in network.parameters()], settings.rate)
    normal, size = normal_of(stream), min(settings.batch, len(images))
    for _ in range(steps):
        batch = random_batch(len(images), size, stream, images.device)
        x = noisy(images[batch], settings.pixel_noise, normal)
        adam.free()
        with compute.autocast():
            value = loss(x, targets[batch])
        torch.autograd.backward(value)
        if math.isfinite(clip):
            for network in networks:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
        adam.step()
    adam.free()
    return steps * size
