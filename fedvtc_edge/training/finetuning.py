"""Phase C: the whole classifier learns from synthetic images of every class."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvtc_edge.config import TrainingSettings
from fedvtc_edge.models.classifier import Classifier
from fedvtc_edge.models.vtc import VTC

from . import distillation
from .compute import Compute
from .knowledge import GlobalKnowledge
from .losses import kl_to_prior, masked_cross_entropy
from .steps import Adam, noisy, normal_of, random_batch, step

STEPS_PER_CLASS, MORE_CLASSES, MOST_STEPS = 50, 6, 5000
EFFORT = {"quick": 0.25, "normal": 1.0, "thorough": 3.0}
"""Factor of the steps of the last fine-tuning."""


def last_steps(classes: int, settings: TrainingSettings) -> int:
    """Steps of the last fine-tuning: as set, or by effort and the number of classes."""
    if settings.finetune_last is not None:
        return settings.finetune_last
    usual = min(STEPS_PER_CLASS * (classes + MORE_CLASSES), MOST_STEPS)
    return round(EFFORT[settings.effort] * usual)


def steps_in(number: int, rounds: int, classes: int, settings: TrainingSettings) -> int:
    """Fine-tuning steps of round ``number``.

    Few in the middle, where ψ still changes, most at the end, where it is best;
    a run of any length ends fine-tuned.
    """
    steps = settings.finetune_steps if number >= settings.finetune_from else 0
    return steps + (last_steps(classes, settings) if number == rounds else 0)


def finetune(
    model: Classifier,
    decoder: VTC,
    images: Tensor,
    labels: Tensor,
    present: Tensor,
    knowledge: GlobalKnowledge,
    settings: TrainingSettings,
    compute: Compute,
    stream: torch.Generator,
    *,
    steps: int,
    kl: float,
    head_only: bool = False,
    decay: bool = False,
    pictures: int | None = None,
    late: float = distillation.LATE,
    painted: float = distillation.PAINTED,
) -> int:
    """``steps`` steps on f; returns the number of images seen.

    Where the anchor's statistics provide a teacher, f learns its answers to a pool of
    pictures; else each batch holds synthetic images with classes drawn uniformly, and as
    many real ones, if any.

    Args:
        images: [N, channels, size, size] in [0, 1]; N is 0 where real images must play no part.
        labels: [N].
        present: Classes [C] that this client has.
        knowledge: Published statistics; its teacher is used where it has one.
        compute: Where and how precisely steps run.
        stream: Source of all randomness.
        kl: Weight of the pull of real features toward the prototypes, without a teacher.
        head_only: Ablation: train h and leave g as it is.
        decay: Let the rate fall to zero, for the last round.
        pictures: Size of the pool; by the number of steps if None.
        late: Share of the steps on it without plain local images.
        painted: Share of synthesised images in the pool.
    """
    model.train()
    decoder.eval()
    model.requires_grad_(not head_only)
    model.head.requires_grad_(True)
    own = model, decoder, images, labels, present, knowledge, settings
    if knowledge.teacher is None:
        seen = _on_labels(*own, compute, stream, steps=steps, kl=kl, decay=decay)
    else:
        drawn = course(*own, stream, steps=steps, pictures=pictures, late=late, painted=painted)
        seen = distillation.learn(model, drawn, settings, compute, steps=steps, decay=decay)
    model.requires_grad_(True)
    return seen


def course(
    model: Classifier,
    decoder: VTC,
    images: Tensor,
    labels: Tensor,
    present: Tensor,
    knowledge: GlobalKnowledge,
    settings: TrainingSettings,
    stream: torch.Generator,
    *,
    steps: int,
    pictures: int | None = None,
    late: float = distillation.LATE,
    painted: float = distillation.PAINTED,
) -> Iterator[distillation.Lesson]:
    """Lessons of the teacher, which there is, as :func:`finetune` takes them; see there."""
    assert knowledge.teacher is not None
    decoder.eval()
    count = pictures
    if count is None:
        count = distillation.pool_size(steps, images.shape[1:].numel(), settings)
    source = decoder, images, knowledge, settings, stream
    make = partial(distillation.lessons, *source, count, painted)
    own = images, labels, present
    return distillation.course(
        model, make, knowledge.teacher, *own, settings, stream, steps=steps, late=late
    )


def _on_labels(
    model: Classifier,
    decoder: VTC,
    images: Tensor,
    labels: Tensor,
    present: Tensor,
    knowledge: GlobalKnowledge,
    settings: TrainingSettings,
    compute: Compute,
    stream: torch.Generator,
    *,
    steps: int,
    kl: float,
    decay: bool,
) -> int:
    adam = Adam([p for p in model.parameters() if p.requires_grad], settings.rate)
    normal, real_count, seen = normal_of(stream), min(settings.batch, len(images)), 0
    for index in range(steps):
        if decay:
            adam.rate = settings.rate * (1 - index / steps)
        batch = labels[:0]
        if real_count:
            batch = random_batch(len(images), real_count, stream, images.device)
        y_drawn = knowledge.draw_labels(settings.batch, stream)
        with torch.no_grad():
            synthetic = decoder(knowledge.sample(y_drawn, stream))
        x = torch.cat([synthetic, images[batch]])
        with compute.autocast():
            z = model.features(noisy(x, settings.pixel_noise, normal))
            logits = model.head(z)
        z, logits = z.float(), logits.float()
        loss = F.cross_entropy(logits[: len(y_drawn)], y_drawn)
        if real_count:
            real = slice(len(y_drawn), None)
            loss = loss + masked_cross_entropy(logits[real], labels[batch], present)
            if kl:
                loss = loss + kl * kl_to_prior(z[real], labels[batch], knowledge.codes)
        step(loss, adam)
        seen += len(x)
    return seen
