"""Phase C: the whole classifier learns from synthetic images of every class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvtc_edge.config import TrainingSettings
from fedvtc_edge.models.classifier import Classifier
from fedvtc_edge.models.vtc import VTC

from .compute import Compute
from .knowledge import GlobalKnowledge
from .losses import distill, kl_to_prior, masked_cross_entropy
from .steps import Adam, noisy, normal_of, random_batch, step

TEACHER = 2.0
"""Weight of the teacher's soft labels beside the hard ones."""


def steps_in(number: int, rounds: int, settings: TrainingSettings) -> int:
    """Fine-tuning steps of round ``number``.

    Few in the middle, where ψ still changes, most at the end, where it is best;
    a run of any length ends fine-tuned.
    """
    steps = settings.finetune_steps if number >= settings.finetune_from else 0
    return steps + (settings.finetune_last if number == rounds else 0)


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
) -> int:
    """``steps`` steps on f; returns the number of images seen.

    Each batch holds synthetic images with classes drawn uniformly, as many real
    ones, if any, and, where the anchor's statistics provide a teacher, twice as many
    collages of both kinds that only the teacher labels.

    Args:
        images: [N, channels, size, size] in [0, 1]; N is 0 where real images must play no part.
        labels: [N].
        present: Classes [C] that this client has.
        knowledge: Published statistics; its teacher is used where it has one.
        compute: Where and how precisely steps run.
        stream: Source of all randomness.
        kl: Weight of the pull of real features toward the prototypes.
        head_only: Ablation: train h and leave g as it is.
        decay: Let the rate fall linearly to zero, for the last round.
    """
    model.train()
    decoder.eval()
    model.requires_grad_(not head_only)
    model.head.requires_grad_(True)
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
        labelled, taught = len(x), None
        if knowledge.anchored is not None and knowledge.anchored.teach:
            x = torch.cat([x, collages(x, 2 * settings.batch, stream)])
            with torch.no_grad():
                taught = knowledge.anchored.classifier(knowledge.anchored.anchor(x))
        with compute.autocast():
            z = model.features(noisy(x, settings.pixel_noise, normal))
            logits = model.head(z)
        z, logits = z.float(), logits.float()
        loss = F.cross_entropy(logits[: len(y_drawn)], y_drawn)
        if real_count:
            real = slice(len(y_drawn), labelled)
            loss = loss + masked_cross_entropy(logits[real], labels[batch], present)
            if kl:
                loss = loss + kl * kl_to_prior(z[real], labels[batch], knowledge.codes)
        if taught is not None:
            loss = loss + TEACHER * distill(logits, taught)
        step(loss, adam)
        seen += len(x)
    model.requires_grad_(True)
    return seen


def collages(images: Tensor, count: int, stream: torch.Generator) -> Tensor:
    """Pairs of images joined along a smooth random border, [count, channels, size, size].

    A piece of a known class beside a piece of another shows the strokes of
    classes that this client has never seen; the teacher says what they look like.
    """
    size = images.shape[-1]
    relief = torch.randn((count, 1, 3, 3), generator=stream)
    level = 0.7 * torch.randn((count, 1, 1, 1), generator=stream)
    relief = F.interpolate(relief, size=(size, size), mode="bilinear")
    mask = (relief > level).to(images)
    first, second = (random_batch(len(images), count, stream, images.device) for _ in range(2))
    return mask * images[first] + (1 - mask) * images[second]
