"""What every training loop shares: the optimiser, pixel noise and random batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class Adam:
    """Adam (Kingma and Ba 2015), to the bit as ``torch.optim.Adam(lr=rate, fused=True)``.

    The arithmetic is torch's own function. Its class imports torch's compiler when it is
    made, which costs a process 1.6 s and 150 MB, a quarter of all that it takes on a device.
    It is made anew for each phase: no moments are held while the other network trains.

    Args:
        parameters: Those without a gradient are passed over.
        rate: Learning rate, above 0; may be changed between steps.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float) -> None:
        self.rate = rate
        self.parameters = list(parameters)
        self._moments: dict[nn.Parameter, tuple[Tensor, Tensor, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters by their gradients."""
        moved = [p for p in self.parameters if p.grad is not None]
        for p in moved:
            if p not in self._moments:
                steps = torch.zeros((), dtype=torch.float32, device=p.device)
                self._moments[p] = (torch.zeros_like(p), torch.zeros_like(p), steps)
        moments = [self._moments[p] for p in moved]
        adam(
            list[Tensor](moved),
            [p.grad for p in moved if p.grad is not None],
            [first for first, _, _ in moments],
            [second for _, second, _ in moments],
            [],
            [steps for _, _, steps in moments],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def free(self) -> None:
        """Drop the gradients."""
        for p in self.parameters:
            p.grad = None


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


def step(loss: Tensor, optimiser: Adam) -> None:
    """One gradient step; gradients are freed after it, so that no phase holds another's."""
    optimiser.free()
    torch.autograd.backward(loss)
    optimiser.step()
    optimiser.free()
