"""Phase C of a head on the frozen extractor: synthetic features of every class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvtc_edge.config import TrainingSettings

from .knowledge import GlobalKnowledge
from .losses import masked_cross_entropy
from .steps import Adam, random_batch, step

SYNTHETIC = 4
"""Synthetic features in a step for each of the client's own; they cost next to nothing."""

REAL = 1.0
"""Weight of the client's own features: they win more at home than they lose elsewhere
(docs/decisions/0034)."""

RATE = 0.3
"""In units of ``training.rate``: the discriminant is so good a start that long steps lead away."""


def finetune(
    head: nn.Linear,
    features: Tensor,
    labels: Tensor,
    present: Tensor,
    knowledge: GlobalKnowledge,
    settings: TrainingSettings,
    stream: torch.Generator,
    *,
    steps: int,
    decay: bool = False,
) -> int:
    """``steps`` steps on the head; returns the number of features seen.

    What is published of a class *is* its distribution in the extractor's space, so that
    synthetic features need no decoder, and are as good for classes that the client never saw.

    Args:
        features: Of the client's images, [N, m]; N is 0 where they must play no part.
        labels: [N].
        present: Classes [C] that this client has.
        knowledge: Published statistics of the extractor's features.
        stream: Source of all randomness.
        decay: Let the rate fall linearly to zero, for the last round.
    """
    known = knowledge.anchored
    assert known is not None  # check_architecture has looked
    rate, seen = RATE * settings.rate, 0
    adam = Adam(head.parameters(), rate)
    own = min(settings.batch, len(features))
    for index in range(steps):
        if decay:
            adam.rate = rate * (1 - index / steps)
        y = knowledge.draw_labels(SYNTHETIC * settings.batch, stream)
        loss = F.cross_entropy(head(known.sample_features(y, stream)), y)
        if own:
            batch = random_batch(len(features), own, stream, features.device)
            real = masked_cross_entropy(head(features[batch]), labels[batch], present)
            loss = loss + REAL * real
        step(loss, adam)
        seen += len(y) + own
    return seen
