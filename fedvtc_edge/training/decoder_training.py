"""Phase B: the decoder learns to paint what the published statistics describe."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvtc_edge.config import TrainingSettings
from fedvtc_edge.models.classifier import Classifier
from fedvtc_edge.models.vtc import VTC

from .compute import Compute
from .knowledge import GlobalKnowledge
from .losses import match_moments
from .steps import Adam, random_batch, step

RECONSTRUCTION = 3.0
MATCH_ANCHOR = 1.0
MATCH_FEATURES = 0.1
SPREAD = 0.5
"""Weight of the stds beside the means; pooled stds, too, keep classes from collapsing."""

_CLASSES, _PER_CLASS = 4, 12


def train_decoder(
    model: Classifier,
    decoder: VTC,
    images: Tensor,
    labels: Tensor,
    knowledge: GlobalKnowledge,
    settings: TrainingSettings,
    compute: Compute,
    stream: torch.Generator,
    *,
    match: bool,
) -> int:
    """``settings.decoder_steps`` steps on ψ alone; returns the number of images painted.

    f is frozen, but gradients flow *through* it: only its parameters stand still,
    and no optimiser state of f exists meanwhile.

    Args:
        model: f; left as it was.
        decoder: ψ; trained.
        images: [N, channels, size, size] in [0, 1].
        labels: [N].
        knowledge: Published statistics.
        settings: The recipe.
        compute: Where and how precisely steps run.
        stream: Source of all randomness.
        match: Whether to match distributions (L_DM); without it only local
            reconstructions train ψ.
    """
    model.eval().requires_grad_(False)
    decoder.train()
    adam = Adam(decoder.parameters(), settings.decoder_rate)
    seen = 0
    for _ in range(settings.decoder_steps):
        batch = random_batch(len(images), settings.batch, stream, images.device)
        x, y = images[batch], labels[batch]
        classes = knowledge.draw_classes(_CLASSES, stream)
        foreign = classes.repeat_interleave(_PER_CLASS)
        with torch.no_grad():
            z = model.features(x)
        noise = torch.randn(z.shape, generator=stream).to(z.device)
        latents = [z + knowledge.codes.std[y] * noise]
        if match:
            latents.append(knowledge.sample(foreign, stream))
        with compute.autocast():
            painted = decoder(torch.cat(latents)).float()
        # Statistics are compared in float32: half precision would shift what is matched.
        loss = RECONSTRUCTION * F.mse_loss(painted[: len(x)], x)
        if match:
            loss = loss + matching(painted[len(x) :], classes, model, knowledge)
        step(loss, adam)
        seen += len(painted)
    model.requires_grad_(True)
    return seen


def matching(
    painted: Tensor, classes: Tensor, model: Classifier, knowledge: GlobalKnowledge
) -> Tensor:
    """L_DM: painted images [K · n] of K classes against what is known of those classes.

    In the client's own feature space, as published; and in the anchor's space,
    where alone it ties a class that this client never saw to pixels.
    """
    one = torch.ones((), device=painted.device)
    features = model.features(painted)
    own = MATCH_FEATURES * match_moments(features, knowledge.codes, classes, scale=one, spread=1.0)
    if knowledge.anchored is None:
        return own
    known = knowledge.anchored
    seen = known.anchor(painted)
    anchored = match_moments(seen, known.moments, classes, scale=known.scale, spread=SPREAD)
    return MATCH_ANCHOR * anchored + own
