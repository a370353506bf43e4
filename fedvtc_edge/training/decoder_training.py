"""Phase B: the decoder learns to synthesise what the published statistics describe."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvtc_edge.config import TrainingSettings
from fedvtc_edge.models.classifier import Classifier
from fedvtc_edge.models.extractor import one_by_one
from fedvtc_edge.models.vtc import VTC

from .compute import Compute
from .knowledge import GlobalKnowledge
from .losses import match_moments
from .steps import Gradients, random_batch

RECONSTRUCTION = 3.0
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
    gradients: Gradients,
    stream: torch.Generator,
    *,
    match: bool,
) -> int:
    """``settings.decoder_steps`` steps on ψ alone; returns the number of images synthesised.

    f is frozen, but gradients flow *through* it: only its parameters stand still,
    and no optimiser state of f exists meanwhile. Matching meets no example: published
    statistics and f alone, which under a privacy mechanism are private already.

    Args:
        images: [N, channels, size, size] in [0, 1].
        labels: [N].
        compute: Where and how precisely steps run.
        stream: Source of what is matched, and of batches.
        match: Whether to match distributions (L_DM); without it only local
            reconstructions train ψ.
    """
    model.eval().requires_grad_(False)
    decoder.train()
    normal, seen = gradients.normal("latents"), 0
    usual = (
        random_batch(len(images), settings.batch, stream, images.device)
        for _ in range(settings.decoder_steps)
    )
    # f is frozen: once is enough, and no image's bits may depend on another's (DP-SGD).
    features = one_by_one(model.features, images, settings.batch).to(images.device)

    def loss(batch: Tensor, classes: Tensor) -> Tensor:
        latents, terms = [], []
        x, y, z = images[batch], labels[batch], features[batch]
        if len(batch):
            latents.append(z + knowledge.codes.std[y] * normal(z.shape).to(z.device))
        if len(classes):
            latents.append(knowledge.sample(classes.repeat_interleave(_PER_CLASS), stream))
        with compute.autocast():
            synthetic = decoder(gradients.entering(torch.cat(latents))).float()
        # Statistics are compared in float32: half precision would shift what is matched.
        if len(batch):
            weight = RECONSTRUCTION * gradients.weight(batch)
            terms.append(weight * F.mse_loss(synthetic[: len(batch)], x))
        if len(classes):
            terms.append(matching(synthetic[len(batch) :], classes, model, knowledge))
        return sum(terms[1:], start=terms[0])

    with gradients.stepping(decoder, settings.decoder_rate) as step:
        for picked in gradients.batches(len(images), usual):
            batch = picked.to(images.device)
            classes = knowledge.draw_classes(_CLASSES, stream)
            matched = classes if match else classes[:0]
            step(loss, batch, matched)
            seen += len(batch) + _PER_CLASS * len(matched)
    model.requires_grad_(True)
    return seen


def matching(
    synthetic: Tensor, classes: Tensor, model: Classifier, knowledge: GlobalKnowledge
) -> Tensor:
    """L_DM: synthetic images [K · n] of K classes against what is known of those classes.

    In the anchor's space, where it ties a class that this client never saw to pixels; without
    an anchor that matches, in the client's own feature space. Both together gained nothing
    and cost a pass through f and back in each step (docs/decisions/0044).
    """
    known = knowledge.anchored
    if known is not None and known.anchor.matches:
        seen = known.anchor(synthetic)
        return match_moments(seen, known.moments, classes, scale=known.scale, spread=SPREAD)
    one, features = torch.ones((), device=synthetic.device), model.features(synthetic)
    own = match_moments(features, knowledge.codes, classes, scale=one, spread=1.0)
    return MATCH_FEATURES * own
