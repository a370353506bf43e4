"""Phase A: the classifier on labelled images. Also all there is to the local baselines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fedvtc_edge.config import TrainingSettings
from fedvtc_edge.models.classifier import Classifier

from .compute import Compute
from .losses import ClassMoments, averaged, kl_to_prior, masked_cross_entropy
from .steps import Gradients, noisy, normal_of, random_batch


class Examples(NamedTuple):
    """Images and labels of one step of one client.

    Args:
        x: Images as the network sees them, noise included, [n, channels, size, size].
        labels: [n].
        present: Classes [C] that this client has; None where that is private.
        shares: Weights of the images, [n]; None is all alike.
    """

    x: Tensor
    labels: Tensor
    present: Tensor | None
    shares: Tensor | None = None


def objective(
    outputs: tuple[Tensor, Tensor],
    examples: Examples,
    *,
    prior: ClassMoments | None = None,
    kl: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Loss of the features and logits that a network gives for ``examples.x``.

    Args:
        prior: Published prototypes, toward which features are pulled with weight ``kl``.
        reduction: ``mean`` or ``sum`` over the examples, where all have the same weight.
    """
    z, logits = (value.float() for value in outputs)
    x, labels, present, shares = examples
    if shares is None:
        value = masked_cross_entropy(logits, labels, present, reduction)
    else:
        value = averaged(masked_cross_entropy(logits, labels, present, "none"), shares)
    if prior is not None and kl:
        weight = kl if reduction == "mean" else kl * len(x)
        value = value + weight * kl_to_prior(z, labels, prior, shares)
    return value


def train(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    present: Tensor | None,
    settings: TrainingSettings,
    compute: Compute,
    gradients: Gradients,
    batches: Iterable[Tensor],
    *,
    prior: ClassMoments | None = None,
    kl: float = 0.0,
) -> int:
    """One step on f for each batch; returns the number of images seen.

    Args:
        images: [N, channels, size, size] in [0, 1].
        labels: [N].
        present: Classes [C] that this client has; None where that is private.
        compute: Where and how precisely steps run.
        batches: Indices of images; not used by a strategy that samples for itself.
    """
    model.train()
    normal, seen = gradients.normal("pixels"), 0

    def loss(batch: Tensor, _: Tensor) -> Tensor:
        x = gradients.entering(noisy(images[batch], settings.pixel_noise, normal))
        with compute.autocast():
            outputs = model.outputs(x)
        examples = Examples(x, labels[batch], present)
        return objective(outputs, examples, prior=prior, kl=kl, reduction=gradients.reduction)

    with gradients.stepping(model, settings.rate) as step:
        for picked in gradients.batches(len(images), batches):
            batch = picked.to(images.device)
            step(loss, batch, batch[:0])
            seen += len(batch)
    return seen


def course(
    images: Tensor,
    labels: Tensor,
    present: Tensor,
    settings: TrainingSettings,
    stream: torch.Generator,
) -> Iterator[Examples]:
    """Draws of all steps of :func:`epochs`: those that :func:`train` makes of the same stream."""
    normal = normal_of(stream)
    for picked in epochs(len(images), settings, stream):
        batch = picked.to(images.device)
        yield Examples(noisy(images[batch], settings.pixel_noise, normal), labels[batch], present)


def epochs(size: int, settings: TrainingSettings, stream: torch.Generator) -> Iterator[Tensor]:
    """Batches of ``settings.epochs`` passes over ``size`` images in random order."""
    for _ in range(settings.epochs):
        yield from torch.split(torch.randperm(size, generator=stream), settings.batch)


def random_batches(
    size: int, steps: int, settings: TrainingSettings, stream: torch.Generator
) -> Iterator[Tensor]:
    """``steps`` batches drawn with replacement out of ``size`` images."""
    for _ in range(steps):
        yield random_batch(size, min(settings.batch, size), stream, torch.device("cpu"))


def steps_per_round(samples: int, settings: TrainingSettings) -> int:
    """Gradient steps of :func:`epochs` on so many samples."""
    return settings.epochs * -(-samples // settings.batch)
