"""Phase A: the classifier on labelled images. Also all there is to the local baselines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fedvtc_edge.config import TrainingSettings
from fedvtc_edge.models.classifier import Classifier

from .compute import Compute
from .losses import ClassMoments, kl_to_prior, masked_cross_entropy
from .steps import Adam, noisy, random_batch, step


def train_epochs(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    present: Tensor,
    settings: TrainingSettings,
    compute: Compute,
    stream: torch.Generator,
    *,
    prior: ClassMoments | None = None,
    kl: float = 0.0,
) -> int:
    """``settings.epochs`` passes in random order; returns the number of images seen."""
    batches = _epochs(len(images), settings, stream)
    return _train(model, images, labels, present, settings, compute, stream, batches, prior, kl)


def train_steps(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    present: Tensor,
    settings: TrainingSettings,
    compute: Compute,
    stream: torch.Generator,
    *,
    steps: int,
    prior: ClassMoments | None = None,
    kl: float = 0.0,
) -> int:
    """``steps`` random batches; returns the number of images seen."""
    size, device = min(settings.batch, len(images)), torch.device("cpu")
    batches = (random_batch(len(images), size, stream, device) for _ in range(steps))
    return _train(model, images, labels, present, settings, compute, stream, batches, prior, kl)


def steps_per_round(samples: int, settings: TrainingSettings) -> int:
    """Gradient steps of :func:`train_epochs` on so many samples."""
    return settings.epochs * -(-samples // settings.batch)


def _epochs(size: int, settings: TrainingSettings, stream: torch.Generator) -> Iterator[Tensor]:
    for _ in range(settings.epochs):
        yield from torch.split(torch.randperm(size, generator=stream), settings.batch)


def _train(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    present: Tensor,
    settings: TrainingSettings,
    compute: Compute,
    stream: torch.Generator,
    batches: Iterable[Tensor],
    prior: ClassMoments | None,
    kl: float,
) -> int:
    model.train()
    adam = Adam(model.parameters(), settings.rate)
    seen = 0
    for picked in batches:
        batch = picked.to(images.device)
        y = labels[batch]
        with compute.autocast():
            z = model.features(noisy(images[batch], settings.pixel_noise, stream))
            logits = model.head(z)
        loss = masked_cross_entropy(logits.float(), y, present)
        if prior is not None and kl:
            loss = loss + kl * kl_to_prior(z.float(), y, prior)
        step(loss, adam)
        seen += len(batch)
    return seen
