"""Clients and statistics of the right shapes, on which memory and time of phases are tried."""

from __future__ import annotations

import numpy as np
import torch

from fedvtc_edge.config import MethodSettings, TrainingSettings
from fedvtc_edge.models import Classifier, ImageShape, build, on_extractor, vtc
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.models.registry import ON_EXTRACTOR
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute
from fedvtc_edge.training.knowledge import GlobalKnowledge, blank, from_anchor
from fedvtc_edge.training.losses import masked_cross_entropy
from fedvtc_edge.training.own_objective import BatchLoss


def probe_client(
    architecture: str,
    shape: ImageShape,
    classes: int,
    method: MethodSettings,
    *,
    images: int,
    anchor: Anchor | None = None,
) -> Client:
    """A client of freshly made networks with so many black images.

    Args:
        anchor: Of a head on the extractor; built where it is None.

    Raises:
        ConfigError: No such architecture.
    """
    headed = architecture in ON_EXTRACTOR
    if headed:
        anchor = anchor or anchor_of(shape, method)
        model: Classifier = on_extractor(architecture, anchor, classes)
    else:
        model = build(architecture, shape, latent=method.latent, classes=classes, seed=0)
    painted = has_decoder(method) and not headed
    return Client(
        id="probe",
        architecture=architecture,
        device_profile=None,
        images=torch.zeros(images, shape.channels, shape.size, shape.size),
        labels=torch.arange(images) % classes,
        classes=classes,
        model=model,
        decoder=vtc.build(shape, latent=method.latent, seed=0) if painted else None,
        settings=TrainingSettings(),
        compute=Compute(torch.device("cpu"), half=False),
        seed=0,
        companion=METHODS.find(method.name).companion(method, shape, classes, seed=0),
    )


def has_decoder(method: MethodSettings) -> bool:
    """True if clients of a method have a decoder."""
    return METHODS.find(method.name).has_decoder


def probe_statistics(
    shape: ImageShape, classes: int, method: MethodSettings
) -> tuple[GlobalKnowledge, Anchor | None]:
    """Published statistics of the right shapes, and the anchor; what they say is noise."""
    device = torch.device("cpu")
    if not has_decoder(method) or method.share != "anchored":
        return blank(classes, method.latent, device=device), None
    anchor = anchor_of(shape, method)
    draw = np.random.Generator(np.random.Philox(key=0))
    labels = torch.arange(classes).repeat(2)
    features = torch.from_numpy(draw.standard_normal((len(labels), method.anchor), np.float32))
    pooled = method.moments == "covariance"
    knowledge = from_anchor(
        GlobalStatistics.from_sum(
            ClassStatistics.of(features, labels, classes=classes, pooled=pooled)
        ),
        anchor,
        latent=method.latent,
        device=device,
        teach="teacher" not in method.ablate,
    )
    return knowledge, anchor


def anchor_of(shape: ImageShape, method: MethodSettings) -> Anchor:
    """The frozen extractor that the settings name, for seed 0."""
    return Anchor(shape, method.anchor, 0, method.extractor, method.extractor_weights)


def both_losses(client: Client) -> BatchLoss:
    """Cross-entropy of a client's own network and of its small one."""
    companion = client.companion
    assert companion is not None

    def loss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        found = (network(x) for network in (client.model, companion.network))
        own, small = (masked_cross_entropy(logits, labels, client.present) for logits in found)
        return own + small

    return loss
