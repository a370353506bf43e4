"""Steps from losses: the optimiser, and gradients that are plain or noised.

A phase of training says what the loss of a batch is; a :class:`Gradients` strategy says
which examples a step sees, what random numbers they meet, and how the weights move. Each
phase stands once for both strategies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from fedvtc_edge.privacy.dpsgd import PrivateGradients, SecretStream
from fedvtc_edge.privacy.schedule import Schedule

Normal = Callable[[torch.Size], Tensor]
"""Standard normal draws of a shape, on the CPU."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Loss of a batch of examples [n] and of public values [k] that no example enters, such as
classes whose published statistics are matched; either may be empty."""

Steps = Sequence[tuple[float, float]]
"""Images in a step, and number of such steps."""

Step = Callable[[Loss, Tensor, Tensor], None]
"""One step on the loss of a batch of examples and of public values."""


Moments = tuple[Tensor, Tensor, Tensor]
"""First and second moments of a parameter, and the number of steps."""


def blank_moments(weight: Tensor) -> Moments:
    """Moments before the first step."""
    steps = torch.zeros((), dtype=torch.float32, device=weight.device)
    return torch.zeros_like(weight), torch.zeros_like(weight), steps


@torch.no_grad()
def move(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Sequence[Moments],
    rate: float,
) -> None:
    """One step of Adam (Kingma and Ba 2015) in place, to the bit torch.optim.Adam(fused=True)'s.

    The arithmetic is torch's own function. Its class imports torch's compiler when it is
    made, which costs a process 1.6 s and 150 MB, a quarter of all that it takes on a device.

    Args:
        moments: Of each weight; moved with it.
        rate: Learning rate, above 0.
    """
    adam(
        list(weights),
        list(gradients),
        [first for first, _, _ in moments],
        [second for _, second, _ in moments],
        [],
        [steps for _, _, steps in moments],
        fused=True,
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=rate,
        weight_decay=0.0,
        eps=1e-8,
        maximize=False,
    )


class Adam:
    """Adam on the parameters of one network.

    It is made anew for each phase: no moments are held while the other network trains.

    Args:
        parameters: Those without a gradient are passed over.
        rate: Learning rate, above 0; may be changed between steps.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float) -> None:
        self.rate = rate
        self.parameters = list(parameters)
        self._moments: dict[nn.Parameter, Moments] = {}

    def step(self) -> None:
        """Move all parameters by their gradients."""
        weights, gradients, moments = list[Tensor](), list[Tensor](), list[Moments]()
        for p in self.parameters:
            if p.grad is None:
                continue
            if p not in self._moments:
                self._moments[p] = blank_moments(p)
            weights.append(p)
            gradients.append(p.grad)
            moments.append(self._moments[p])
        move(weights, gradients, moments, self.rate)

    def free(self) -> None:
        """Drop the gradients."""
        for p in self.parameters:
            p.grad = None


def normal_of(stream: torch.Generator) -> Normal:
    """Draws from a public stream."""
    return lambda shape: torch.randn(shape, generator=stream)


def noisy(images: Tensor, scale: float, normal: Normal) -> Tensor:
    """Images plus Gaussian pixel noise, the same on real and synthetic ones.

    So that "looks synthetic" is no cue to the class (four points on digits).
    """
    return images + scale * normal(images.shape).to(images.device) if scale else images


def random_batch(size: int, count: int, stream: torch.Generator, device: torch.device) -> Tensor:
    """``count`` indices below ``size``, with replacement."""
    return torch.randint(size, (count,), generator=stream).to(device)


def step(loss: Tensor, optimiser: Adam) -> None:
    """One gradient step; gradients are freed after it, so that no phase holds another's."""
    optimiser.free()
    torch.autograd.backward(loss)
    optimiser.step()
    optimiser.free()


class Gradients:
    """Sampling and steps of one phase of one client: by the gradient of a batch's mean loss.

    Args:
        stream: Source of all randomness.
    """

    reduction = "mean"
    """Of a loss over the examples of a batch: ``mean`` or ``sum``."""

    def __init__(self, stream: torch.Generator) -> None:
        self._stream = stream

    def batches(self, size: int, usual: Iterable[Tensor]) -> Iterable[Tensor]:
        """Indices below ``size``, for one step each; ``usual`` where nothing is private."""
        return usual

    def expected(self, size: int, usual: Steps) -> Steps:
        """Images in a step, and number of such steps, on ``size`` examples."""
        return usual

    def normal(self, purpose: str) -> Normal:
        """Noise that examples meet on their way."""
        return normal_of(self._stream)

    def entering(self, x: Tensor) -> Tensor:
        """Input of the network that is trained."""
        return x

    def weight(self, batch: Tensor) -> int:
        """Factor of a mean over the examples of a batch, which makes it the reduction."""
        return 1 if self.reduction == "mean" else len(batch)

    @contextmanager
    def stepping(self, module: nn.Module, rate: float) -> Iterator[Step]:
        """Steps on a module, by Adam; gradients exist within a step alone."""
        optimiser = Adam(module.parameters(), rate)
        yield lambda loss, batch, public: step(loss(batch, public), optimiser)


class NoisedGradients(Gradients):
    """DP-SGD: Poisson samples at a public rate, and a clipped, noised gradient.

    All that an example meets on its way (the sample, pixel noise, noise on latents) comes
    from secret streams: with public ones, one example fewer would move what the others
    meet. What no example enters adds its gradient without noise.

    Guarantee: see :class:`~fedvtc_edge.privacy.schedule.Schedule`.

    Args:
        steps: How many, whatever the number of examples is.
        secrets: The secret stream of a purpose, in this phase of this round.
    """

    reduction = "sum"

    def __init__(
        self, schedule: Schedule, steps: int, secrets: Callable[[str], SecretStream]
    ) -> None:
        self._schedule, self._steps, self._secrets = schedule, steps, secrets

    def batches(self, size: int, usual: Iterable[Tensor]) -> Iterable[Tensor]:
        """Poisson samples."""
        sampling = self._secrets("sampling")
        for _ in range(self._steps):
            yield sampling.sample(size, self._schedule.rate)

    def expected(self, size: int, usual: Steps) -> Steps:
        """Random samples, of the schedule."""
        return [(self._schedule.rate * size, self._steps)]

    def normal(self, purpose: str) -> Normal:
        """From a secret stream of its own."""
        return self._secrets(purpose).normal

    def entering(self, x: Tensor) -> Tensor:
        """Differentiable, as Opacus' hooks want it."""
        return x.requires_grad_()

    @contextmanager
    def stepping(self, module: nn.Module, rate: float) -> Iterator[Step]:
        """Per-example gradients of the batch, ordinary ones of what is public."""
        optimiser = Adam(module.parameters(), rate)
        gradients = PrivateGradients(module, self._schedule, self._secrets("noise"))
        weights = [p for p in module.parameters() if p.requires_grad]

        def private_step(loss: Loss, batch: Tensor, public: Tensor) -> None:
            nothing = public[:0]
            gradients.compute(batch, lambda piece: loss(piece, nothing))
            if len(public):
                with gradients.public():
                    found = torch.autograd.grad(loss(batch[:0], public), weights)
                for weight, gradient in zip(weights, found, strict=True):
                    assert weight.grad is not None
                    weight.grad += gradient
            optimiser.step()

        try:
            yield private_step
        finally:
            gradients.close()
