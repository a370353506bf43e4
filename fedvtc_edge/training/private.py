"""The three phases under ``privacy.mode = example``: real images only by way of DP-SGD.

Phases A and B take Poisson samples at a public rate and clip every example's
gradient; phase C is not given any real image. All that an example meets on its way
(the sample, pixel noise, noise on latents) comes from secret streams: with public
ones, one example fewer would move what the others meet.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvtc_edge.config import TrainingSettings
from fedvtc_edge.models.classifier import Classifier
from fedvtc_edge.models.vtc import VTC
from fedvtc_edge.privacy.dpsgd import PrivateGradients
from fedvtc_edge.privacy.mechanism import Schedule
from fedvtc_edge.privacy.secret_stream import SecretStream

from .compute import Compute
from .decoder_training import _CLASSES, _PER_CLASS, RECONSTRUCTION, matching
from .finetuning import TEACHER, collages
from .knowledge import GlobalKnowledge
from .losses import ClassMoments, distill, kl_to_prior
from .steps import Adam, noisy, step

Secrets = Callable[[str], SecretStream]
"""The secret stream of one purpose, in this phase of this round."""


def train(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    settings: TrainingSettings,
    schedule: Schedule,
    secrets: Secrets,
    *,
    prior: ClassMoments | None = None,
    kl: float = 0.0,
) -> int:
    """Phase A: ``schedule.train_steps`` noised steps on f; returns the images seen.

    Cross-entropy over all classes: which of them a client has is private.

    Args:
        model: f; trained.
        images: [N, channels, size, size] in [0, 1].
        labels: [N].
        settings: Rate and pixel noise.
        schedule: Steps, sampling and noise.
        secrets: Sampling, pixel noise and noise.
        prior: Published prototypes.
        kl: Weight of the pull toward them.
    """
    model.train()
    adam = Adam(model.parameters(), settings.rate)
    gradients = PrivateGradients(model, schedule, secrets("noise"))
    sampling, pixels = secrets("sampling"), secrets("pixels")

    def losses(batch: Tensor) -> Tensor:
        x, y = images[batch], labels[batch]
        x = x + settings.pixel_noise * pixels.normal(x.shape).to(x.device)
        z = model.features(x.requires_grad_())
        loss = F.cross_entropy(model.head(z), y, reduction="sum")
        if prior is not None and kl:
            loss = loss + kl * len(batch) * kl_to_prior(z, y, prior)
        return loss

    seen = 0
    for _ in range(schedule.train_steps):
        batch = sampling.sample(len(images), schedule.rate).to(images.device)
        gradients.compute(batch, losses)
        adam.step()
        seen += len(batch)
    gradients.close()
    return seen


def train_decoder(
    model: Classifier,
    decoder: VTC,
    images: Tensor,
    labels: Tensor,
    knowledge: GlobalKnowledge,
    settings: TrainingSettings,
    schedule: Schedule,
    secrets: Secrets,
    stream: torch.Generator,
    *,
    match: bool,
) -> int:
    """Phase B: ``schedule.decoder_steps`` steps on ψ alone; returns the images painted.

    Reconstruction sees real images and is noised. Matching sees published statistics
    and f, both private already: its gradient is added without noise.

    Args:
        model: f; left as it was.
        decoder: ψ; trained.
        images: [N, channels, size, size] in [0, 1].
        labels: [N].
        knowledge: Published statistics.
        settings: The rate.
        schedule: Steps, sampling and noise.
        secrets: Sampling, noise on latents and noise.
        stream: Public source of what is matched.
        match: Whether to match distributions (L_DM).
    """
    model.eval().requires_grad_(False)
    decoder.train()
    adam = Adam(decoder.parameters(), settings.decoder_rate)
    gradients = PrivateGradients(decoder, schedule, secrets("noise"))
    sampling, latent_noise = secrets("sampling"), secrets("latents")
    weights = list(decoder.parameters())

    def losses(batch: Tensor) -> Tensor:
        x, y = images[batch], labels[batch]
        with torch.no_grad():
            z = model.features(x)
        latents = z + knowledge.codes.std[y] * latent_noise.normal(z.shape).to(z.device)
        painted = decoder(latents.requires_grad_())
        return RECONSTRUCTION * len(batch) * F.mse_loss(painted, x)

    seen = 0
    for _ in range(schedule.decoder_steps):
        batch = sampling.sample(len(images), schedule.rate).to(images.device)
        gradients.compute(batch, losses)
        seen += len(batch)
        if match:
            classes = knowledge.draw_classes(_CLASSES, stream)
            foreign = classes.repeat_interleave(_PER_CLASS)
            with gradients.public():
                latents = knowledge.sample(
                    foreign, stream
                ).requires_grad_()  # as Opacus' hooks want it
                painted = decoder(latents)
                found = torch.autograd.grad(matching(painted, classes, model, knowledge), weights)
            for weight, gradient in zip(weights, found, strict=True):
                assert weight.grad is not None
                weight.grad += gradient
            seen += len(foreign)
        adam.step()
    gradients.close()
    model.requires_grad_(True)
    return seen


def finetune(
    model: Classifier,
    decoder: VTC,
    knowledge: GlobalKnowledge,
    settings: TrainingSettings,
    compute: Compute,
    stream: torch.Generator,
    *,
    steps: int,
    head_only: bool = False,
    decay: bool = False,
) -> int:
    """Phase C on painted images alone: post-processing, which costs nothing.

    As :func:`fedvtc_edge.training.finetuning.finetune`, less all that real images do
    there; collages are of painted pairs.

    Args:
        model: f; trained.
        decoder: ψ; only painted with.
        knowledge: Published statistics; its teacher is used where it has one.
        settings: The recipe.
        compute: Where steps run.
        stream: Public source of all randomness.
        steps: Gradient steps.
        head_only: Ablation: train h and leave g as it is.
        decay: Let the rate fall linearly to zero, for the last round.
    """
    model.train()
    decoder.eval()
    model.requires_grad_(not head_only)
    model.head.requires_grad_(True)
    adam = Adam([p for p in model.parameters() if p.requires_grad], settings.rate)
    seen = 0
    for index in range(steps):
        if decay:
            adam.rate = settings.rate * (1 - index / steps)
        y = knowledge.draw_labels(settings.batch, stream)
        with torch.no_grad():
            x = decoder(knowledge.sample(y, stream))
        taught = None
        if knowledge.anchored is not None and knowledge.anchored.teach:
            x = torch.cat([x, collages(x, 2 * settings.batch, stream)])
            with torch.no_grad():
                taught = knowledge.anchored.classifier(knowledge.anchored.anchor(x))
        with compute.autocast():
            logits = model(noisy(x, settings.pixel_noise, stream)).float()
        loss = F.cross_entropy(logits[: len(y)], y)
        if taught is not None:
            loss = loss + TEACHER * distill(logits, taught)
        step(loss, adam)
        seen += len(x)
    model.requires_grad_(True)
    return seen
