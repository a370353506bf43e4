"""What every training loop shares: the optimiser, pixel noise and random batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def optimiser(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Adam:
    """Adam, made anew for each phase: no moments are held while the other network trains."""
    return torch.optim.Adam(parameters, lr=rate, fused=True)


def noisy(images: Tensor, scale: float, stream: torch.Generator) -> Tensor:
    """Images plus Gaussian pixel noise, the same on real and painted ones.

    So that "looks painted" is no cue to the class (four points on digits).
    """
    if not scale:
        return images
    return images + scale * torch.randn(images.shape, generator=stream).to(images.device)


def random_batch(size: int, count: int, stream: torch.Generator, device: torch.device) -> Tensor:
    """``count`` indices below ``size``, with replacement."""
    return torch.randint(size, (count,), generator=stream).to(device)


def step(loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """One gradient step; gradients are freed after it, so that no phase holds another's."""
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
