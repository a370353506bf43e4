"""The teacher's whole answer: a fixed pool of pictures, labelled once, and steps on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedvtc_edge.config import TrainingSettings
from fedvtc_edge.models.classifier import Classifier
from fedvtc_edge.models.vtc import VTC

from .augmentation import PLAIN, paired, warp
from .compute import Compute
from .knowledge import Anchored, GlobalKnowledge
from .losses import averaged, distill, masked_cross_entropy, match_scores
from .steps import Adam, noisy, normal_of, random_batch, step

LARGEST_POOL, LARGEST_BYTES = 6400, 48 * 2**20
"""Pictures at most, and bytes of their pixels."""

PASSES = 8
"""Times that each picture is seen; then a new pool is made."""

PAINTED = 0.25
"""Share of synthesised images among those that pictures are made of."""

RATE = 2.0
"""Rate at the start, in units of ``training.rate``; it falls to zero along a cosine."""

LATE = 0.5
"""Share of the steps after which plain local images with labels join."""


@dataclass(frozen=True, eq=False)
class Lessons:
    """Labelled pictures.

    Args:
        pictures: uint8 [P, channels, size, size]: a quarter of the memory of floats.
        scores: The teacher's, [P, C], centred over the classes that anyone has.
    """

    pictures: Tensor
    scores: Tensor

    @property
    def unit(self) -> float:
        """Root mean square of the scores: the teacher's confidence κ."""
        return max(float(self.scores.square().mean().sqrt()), 1e-3)

    def batches(self, size: int, stream: torch.Generator) -> Iterator[Tensor]:
        """Indices of whole batches: ``PASSES`` times each picture, in random order."""
        for _ in range(PASSES):
            order = torch.randperm(len(self.pictures), generator=stream)
            yield from torch.split(order.to(self.pictures.device), size)


def batch_of(settings: TrainingSettings) -> int:
    """Pictures in a step, half of whose images are synthesised and half local."""
    return 2 * settings.batch


def pool_size(steps: int, pixels: int, settings: TrainingSettings) -> int:
    """Pictures in a pool, of so many pixels, for so many steps: whole batches, bounded."""
    size = batch_of(settings)
    most = min(LARGEST_POOL, LARGEST_BYTES // pixels)
    return min(steps, max(most // size, 1)) * size


def pools(steps: int, pictures: int, settings: TrainingSettings) -> int:
    """Pools of so many pictures each for so many steps, at least one."""
    return max(1, -(-steps * batch_of(settings) // (PASSES * pictures)))


def lessons(
    decoder: VTC,
    images: Tensor,
    knowledge: GlobalKnowledge,
    settings: TrainingSettings,
    stream: torch.Generator,
    count: int,
    painted: float = PAINTED,
) -> Lessons:
    """``count`` pictures of synthesised and local images, and the teacher's scores of each.

    Args:
        images: Local images [N, channels, size, size]; without any all are synthesised.
        knowledge: Published statistics, which provide a teacher.
        painted: Share of synthesised images; 0 needs no decoder, and some local images.
    """
    teacher = knowledge.teacher
    assert teacher is not None
    known = teacher.classifier.known
    pictures, scores, size = [], [], batch_of(settings)
    with torch.no_grad():
        for begin in range(0, count, size):
            part = min(size, count - begin)
            own = round(2 * part * (1 - painted)) if len(images) else 0
            synthetic = images[:0]
            if own < 2 * part:
                labels = knowledge.draw_labels(2 * part - own, stream)
                synthetic = decoder(knowledge.sample(labels, stream))
            chosen = random_batch(max(len(images), 1), own, stream, images.device)
            sources = torch.cat([synthetic, images[chosen]])
            sources = sources[torch.randperm(2 * part, generator=stream).to(sources.device)]
            moved = torch.rand((2 * part, 1, 1, 1), generator=stream) >= PLAIN
            sources = torch.where(moved.to(sources.device), warp(sources, stream), sources)
            mixed = paired(sources[:part], sources[part:], stream)
            shown = mixed.mul(255).round().clamp(0, 255).to(torch.uint8)
            found = teacher.classifier.scores(teacher.anchor(_floats(shown)))
            pictures.append(shown)
            scores.append(centred(found, known))
    return Lessons(torch.cat(pictures), torch.cat(scores))


def centred(scores: Tensor, known: Tensor) -> Tensor:
    """Scores [N, C] less their mean over the known classes; 0 for the others."""
    mean = (scores * known).sum(1, keepdim=True) / known.sum()
    return (scores - mean) * known


class Lesson(NamedTuple):
    """Images and targets of one step of one client.

    Args:
        x: Pictures and, behind them, plain local images, as the network sees them.
        target: The teacher's scores of the pictures, centred, [P, C].
        posteriors: The teacher's probabilities of the pictures, [P, C].
        labels: Of the plain images, [N].
        known: Classes that anyone has, [C].
        present: Classes that this client has, [C].
        prior: Logarithms of this client's class counts, [C].
        unit: The teacher's confidence κ.
        shares: Weights of the plain images, [N]; None is all alike.
    """

    x: Tensor
    target: Tensor
    posteriors: Tensor
    labels: Tensor
    known: Tensor
    present: Tensor
    prior: Tensor
    unit: Tensor
    shares: Tensor | None = None


def objective(logits: Tensor, lesson: Lesson) -> Tensor:
    """Loss of the network's logits of ``lesson.x``, in units of the teacher's confidence."""
    logits, pictures = logits.float() * lesson.unit, len(lesson.target)
    taught = logits[:pictures]
    loss = match_scores(centred(taught, lesson.known), lesson.target, lesson.known)
    loss = loss / lesson.unit**2 + distill(taught, lesson.posteriors)
    if len(lesson.labels):
        plain = masked_cross_entropy(
            logits[pictures:] + lesson.prior, lesson.labels, lesson.present, "none"
        )
        loss = loss + averaged(plain, lesson.shares)
    return loss


def course(
    model: Classifier,
    make: Callable[[], Lessons],
    teacher: Anchored,
    images: Tensor,
    labels: Tensor,
    present: Tensor,
    settings: TrainingSettings,
    stream: torch.Generator,
    *,
    steps: int,
    late: float = LATE,
) -> Iterator[Lesson]:
    """Draws of ``steps`` steps; while they are taken, the head is in units of the teacher's κ.

    In those units the head learns at once; scores of tens would take it thousands of
    steps to grow to.

    Args:
        make: A new pool; one is held at a time.
        images: Local images [N, channels, size, size], seen plain, late and with their
            labels; may be empty.
        labels: [N].
        present: Classes [C] that this client has.
        stream: Source of all randomness.
        late: Share of the steps without plain local images.
    """
    known, pool, normal = teacher.classifier.known, make(), normal_of(stream)
    unit, batches = pool.unit, pool.batches(batch_of(settings), stream)
    own = min(settings.batch, len(images))
    prior = torch.bincount(labels[: len(images)], minlength=len(known)).clamp(min=1).log()
    common = known, present, prior, torch.tensor(unit, device=known.device)
    _scale(model, 1 / unit)
    for index in range(steps):
        batch = next(batches, None)
        if batch is None:
            del pool, batches
            pool = make()
            batches = pool.batches(batch_of(settings), stream)
            batch = next(batches)
        x, target = _floats(pool.pictures[batch]), pool.scores[batch]
        noise = 0.5 * settings.pixel_noise * torch.rand((len(x), 1, 1, 1), generator=stream)
        x = x + noise.to(x) * normal(x.shape).to(x.device)
        plain = labels[:0]
        if own and index + 1 > late * steps:
            plain = random_batch(len(images), own, stream, images.device)
            x = torch.cat([x, noisy(images[plain], settings.pixel_noise, normal)])
        yield Lesson(x, target, teacher.classifier.posteriors(target), labels[plain], *common)
    _scale(model, unit)


def rate_at(index: int, steps: int, settings: TrainingSettings, *, decay: bool) -> float:
    """Learning rate of step ``index`` of ``steps``; without ``decay`` it stays as it is."""
    rate = RATE * settings.rate
    return rate * (1 + math.cos(math.pi * index / steps)) / 2 if decay else rate


def learn(
    model: Classifier,
    lessons_: Iterable[Lesson],
    settings: TrainingSettings,
    compute: Compute,
    *,
    steps: int,
    decay: bool,
) -> int:
    """A step on each lesson, on those parameters of f that are to be trained.

    Args:
        lessons_: Of :func:`course`, as many as ``steps``.
        compute: Where and how precisely steps run.
        decay: Let the rate fall to zero.

    Returns:
        Images seen.
    """
    adam, seen = Adam([p for p in model.parameters() if p.requires_grad], settings.rate), 0
    for index, lesson in enumerate(lessons_):
        adam.rate = rate_at(index, steps, settings, decay=decay)
        with compute.autocast():
            logits = model(lesson.x)
        step(objective(logits, lesson), adam)
        seen += len(lesson.x)
    return seen


@torch.no_grad()
def _scale(model: Classifier, factor: float) -> None:
    model.head.weight.mul_(factor)
    model.head.bias.mul_(factor)


def _floats(pictures: Tensor) -> Tensor:
    return pictures.float().div_(255)
