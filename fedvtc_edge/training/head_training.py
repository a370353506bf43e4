"""Phase C of a network on the extractor: synthetic features of every class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvtc_edge.config import TrainingSettings
from fedvtc_edge.models import ExtractorHead

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


DRIFT = 1.0
"""Weight of what trained last blocks move own features by: synthetic ones are the frozen blocks',
and the head is one for both."""


def finetune(
    model: ExtractorHead,
    inputs: Tensor,
    labels: Tensor,
    present: Tensor,
    knowledge: GlobalKnowledge,
    settings: TrainingSettings,
    stream: torch.Generator,
    *,
    steps: int,
    decay: bool = False,
) -> int:
    """``steps`` steps on the head, and on last blocks that it has; returns the features seen.

    What is published of a class *is* its distribution in the extractor's space, so that
    synthetic features need no decoder, and are as good for classes that the client never saw.

    Args:
        inputs: What the model makes of the client's images, [N, kept]; N is 0 where they must
            play no part.
        labels: [N].
        present: Classes [C] that this client has.
        knowledge: Published statistics of the extractor's features.
        stream: Source of all randomness.
        decay: Let the rate fall linearly to zero, for the last round.
    """
    known = knowledge.anchored
    assert known is not None  # check_architecture has looked
    rate, seen = RATE * settings.rate, 0
    adam = Adam(model.parameters(), rate)
    own = min(settings.batch, len(inputs))
    for index in range(steps):
        if decay:
            adam.rate = rate * (1 - index / steps)
        y = knowledge.draw_labels(SYNTHETIC * settings.batch, stream)
        loss = F.cross_entropy(model.head(known.sample_features(y, stream)), y)
        if own:
            batch = random_batch(len(inputs), own, stream, inputs.device)
            x = inputs[batch]
            features = model.features(x)
            real = masked_cross_entropy(model.head(features), labels[batch], present)
            loss = loss + REAL * real
            drift = model.drift(features, x)
            if drift is not None:
                loss = loss + DRIFT * drift
        step(loss, adam)
        seen += len(y) + own
    return seen
