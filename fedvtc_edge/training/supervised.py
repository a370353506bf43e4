"""Phase A: the classifier on labelled images. Also all there is to the local baselines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fedvtc_edge.config import TrainingSettings
from fedvtc_edge.models.classifier import Classifier

from .compute import Compute
from .losses import ClassMoments, kl_to_prior, masked_cross_entropy
from .steps import Gradients, noisy, random_batch


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
        x, y = noisy(images[batch], settings.pixel_noise, normal), labels[batch]
        with compute.autocast():
            z = model.features(gradients.entering(x))
            logits = model.head(z)
        value = masked_cross_entropy(logits.float(), y, present, gradients.reduction)
        if prior is not None and kl:
            value = value + kl * gradients.weight(batch) * kl_to_prior(z.float(), y, prior)
        return value

    with gradients.stepping(model, settings.rate) as step:
        for picked in gradients.batches(len(images), batches):
            batch = picked.to(images.device)
            step(loss, batch, batch[:0])
            seen += len(batch)
    return seen


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
