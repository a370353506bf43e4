"""What a client's phases hold in memory, rehearsed by a stand-in with a handful of images.

The real code of each phase runs twice, on batches of two and of three images, for two
steps: the second meets the optimiser's state of the first. Both runs do the same
operations, and what lives after each of them is affine in the batch: so the peak of any
batch follows, also where another operation rules it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import nn

from fedvtc_edge import vtc
from fedvtc_edge.anchor import Anchor
from fedvtc_edge.client import Client
from fedvtc_edge.compute import Compute, deterministic
from fedvtc_edge.config import MethodSettings, TrainingSettings
from fedvtc_edge.knowledge import Knowledge, blank, from_anchor
from fedvtc_edge.models import ImageShape, build
from fedvtc_edge.statistics import ClassStatistics, GlobalStatistics

from .tape import Bytes, record

FLOAT = 4
"""Bytes of a number."""

ADAM_SLOTS = 2
"""Numbers of Adam's state for a parameter."""

_FEW, _MORE, _STEPS = 2, 3, 2


@dataclass(frozen=True, eq=False)
class Held:
    """Bytes that a phase holds after each of its K operations, but for static ones.

    Weights, gradients and the optimiser's state are left out: they do not depend on the
    batch, and are counted from the number of parameters.

    Args:
        few: With a batch of two images, [K].
        slope: More with every further image, [K].
    """

    few: Bytes
    slope: Bytes

    def peak(self, batch: int) -> float:
        """Most that lives at once with so many images in a batch."""
        return float((self.few + (batch - _FEW) * self.slope).max())


@dataclass(frozen=True)
class Phases:
    """One architecture's networks and what its phases hold.

    Args:
        model: Parameters of f.
        decoder: Parameters of ψ; 0 where the method paints nothing.
        anchor: Numbers in the anchor R; 0 without it.
        train: Phase A.
        classify: f without gradients.
        measure: The anchor over a chunk of images, or None.
        paint: Phase B, or None.
        finetune: Phase C, or None.
        synthesise: ψ without gradients, or None.
    """

    model: int
    decoder: int
    anchor: int
    train: Held
    classify: Held
    measure: Held | None = None
    paint: Held | None = None
    finetune: Held | None = None
    synthesise: Held | None = None


@lru_cache(maxsize=256)
def phases_of(architecture: str, shape: ImageShape, classes: int, method: MethodSettings) -> Phases:
    """Rehearse one architecture on images of one shape; the same answer on every machine.

    Raises:
        ConfigError: No such architecture.
    """
    with deterministic():
        world, anchor = stand_in_world(shape, classes, method)
        whole = stand_in(architecture, shape, classes, method, samples=_MORE)
        dolls = [_with_images(whole, size) for size in (_FEW, _MORE)]

        def held(phase: Callable[[Client], object], trained: nn.Module | None = None) -> Held:
            weights = list(trained.parameters()) if trained else []
            few, more = (record(partial(phase, doll), weights) for doll in dolls)
            return Held(few - ADAM_SLOTS * FLOAT * _count(weights), more - few)

        model, decoder = whole.model, whole.decoder
        known = Phases(
            model=_count(model.parameters()),
            decoder=_count(decoder.parameters()) if decoder else 0,
            anchor=_count(anchor.buffers()) if anchor else 0,
            train=held(lambda doll: doll.train(1, world.codes, kl=1.0), model),
            classify=held(lambda doll: _without_gradients(model, doll)),
        )
        if anchor is not None:
            known = replace(known, measure=held(lambda doll: _without_gradients(anchor, doll)))
        if decoder is None:
            return known
        return replace(
            known,
            paint=held(lambda doll: doll.fit_decoder(1, world, match=True), decoder),
            finetune=held(lambda doll: doll.finetune(1, world, steps=_STEPS, kl=1.0), model),
            synthesise=held(lambda doll: doll.synthesise(world, doll.labels)),
        )


def stand_in(
    architecture: str, shape: ImageShape, classes: int, method: MethodSettings, *, samples: int
) -> Client:
    """A client of freshly made networks with so many black images.

    Raises:
        ConfigError: No such architecture.
    """
    return Client(
        id="rehearsal",
        architecture=architecture,
        device_profile=None,
        images=torch.zeros(samples, shape.channels, shape.size, shape.size),
        labels=torch.arange(samples) % classes,
        classes=classes,
        model=build(architecture, shape, latent=method.latent, classes=classes, seed=0),
        decoder=vtc.build(shape, latent=method.latent, seed=0) if paints(method) else None,
        settings=TrainingSettings(),
        compute=Compute(torch.device("cpu"), half=False),
        seed=0,
    )


def paints(method: MethodSettings) -> bool:
    """Whether clients of a method have a decoder."""
    return method.name == "fedvtc"


def stand_in_world(
    shape: ImageShape, classes: int, method: MethodSettings
) -> tuple[Knowledge, Anchor | None]:
    """Published statistics of the right shapes, and the anchor; what they say is noise."""
    device = torch.device("cpu")
    if not paints(method) or method.share != "anchored":
        return blank(classes, method.latent, device=device), None
    anchor = Anchor(shape, method.anchor, 0)
    draw = np.random.Generator(np.random.Philox(key=0))
    labels = torch.arange(classes).repeat(2)
    features = torch.from_numpy(draw.standard_normal((len(labels), method.anchor), np.float32))
    pooled = method.moments == "covariance"
    world = from_anchor(
        GlobalStatistics.from_sum(
            ClassStatistics.of(features, labels, classes=classes, pooled=pooled)
        ),
        anchor,
        latent=method.latent,
        device=device,
        teach="teacher" not in method.ablate,
    )
    return world, anchor


def _with_images(client: Client, size: int) -> Client:
    """The same networks with fewer images; each phase lasts two steps of all of them."""
    settings = TrainingSettings(batch=size, epochs=_STEPS, decoder_steps=_STEPS)
    images, labels = client.images[:size], client.labels[:size]
    return replace(client, images=images, labels=labels, settings=settings)


@torch.no_grad()
def _without_gradients(network: nn.Module, client: Client) -> None:
    network(client.images)


def _count(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
