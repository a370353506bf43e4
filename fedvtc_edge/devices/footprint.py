"""Memory that an architecture needs on a device: to train, to classify, to synthesise."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import nn

from fedvtc_edge.config import Config, MethodSettings
from fedvtc_edge.data.public import PUBLIC
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import (
    ExtractorHead,
    ImageShape,
    from_torchvision,
)
from fedvtc_edge.models.extractor import CHUNK, Anchor
from fedvtc_edge.models.onnx_network import OnnxNetwork
from fedvtc_edge.models.pretrained import source_of
from fedvtc_edge.plugins import ARCHITECTURES, EXTRACTORS, METHODS
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import deterministic
from fedvtc_edge.training.distillation import pool_size
from fedvtc_edge.training.finetuning import last_steps

from .baselines import onnxruntime_mb, torch_mb
from .probes import both_losses, has_decoder, probe_client, probe_statistics
from .profile import DeviceProfile, Figure
from .recorder import Numbers, probe_copy, record

Mode = Literal["alternate", "joint"]
Use = Literal["infer", "synthesise"]

MB = 2**20
"""Bytes of a MB, as profiles count memory."""

# Fitted so that no plan is below what any of 144 processes took (docs/planning.md).
_SLACK = 1.25
"""With torch: kernels copy what they work on, and the allocator has holes."""
_KERNELS = 40 * MB
"""With torch: code and scratch pads of the first use of each kernel."""
_COPIES = 2.2
"""With onnxruntime: the file's bytes, and the weights that the session makes of them."""
_ARENA = 2.2
"""With onnxruntime: its arena grows by powers of two."""
_SESSION = 18 * MB
"""With onnxruntime: a session before its first weight."""

_BUNDLE_CHUNK = 32
"""Images of one inference, as the bundle's runner cuts what it is given."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a piece of work needs at its peak.

    Args:
        weights: Of all networks that are resident.
        gradients: Of the network that trains; of both, jointly.
        activations: All else that the work allocates, with the kernels' and the
            allocator's share.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    data: int
    baseline: int

    @property
    def working(self) -> int:
        """All but the runtime."""
        return self.total - self.baseline

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


def needs(
    architecture: str,
    config: Config,
    shape: ImageShape,
    classes: int,
    *,
    batch: int,
    mode: Mode = "alternate",
    samples: int = 0,
    arch: str = "x86_64",
) -> Footprint:
    """Memory that a client's training needs, with torch.

    A phase leaves holes that the next one's tensors do not fit in, so that what all of
    them hold adds up, though they come one after another.

    Args:
        architecture: A registered name.
        config: The method and its widths.
        classes: Number C of classes.
        batch: Images of a step of phase A; phase C has up to four times as many.
        mode: ``alternate``: one network's gradients and activations at a time, as the
            client does it; ``joint``: both at once.
        samples: The client's own images, if known.
        arch: The device's processor architecture, as profiles name it.

    Raises:
        ConfigError: No such architecture.
    """
    phases = phases_of(architecture, shape, classes, config.method)
    a, b, c = (_peak(phase, batch) for phase in (phases.train, phases.fit_decoder, phases.finetune))
    held = _peak(phases.measure, phases.chunk) + a + b + c
    if mode == "joint":
        trained = phases.model + phases.companion + phases.decoder
        held += min(b, max(a, c))  # what the smaller one would have used again of the other's
    else:
        trained = max(phases.model + phases.companion, phases.decoder)
    public = PUBLIC if METHODS.find(config.method.name).needs_public else 0
    return Footprint(
        weights=FLOAT * (phases.model + phases.companion + phases.decoder + phases.anchor),
        gradients=FLOAT * trained,
        optimiser=ADAM_SLOTS * FLOAT * trained,
        activations=round(_SLACK * held) + _KERNELS,
        data=(samples * (_pixels(shape) + phases.features) + public * _pixels(shape)) * FLOAT
        + (0 if phases.features else _pool(config, shape, classes, batch)),
        baseline=_bytes(torch_mb(arch, torchvision=from_torchvision(architecture))),
    )


def peak_megabytes(
    architecture: str,
    samples: int,
    shape: ImageShape,
    classes: int,
    config: Config,
    profile: DeviceProfile | None = None,
) -> float:
    """Peak memory of one client's training in MB of 2^20 bytes, the runtime included.

    It is the planner's figure for the same architecture, images, classes and batch, with the
    client's own images; modelled, since simulated clients share one process.

    Args:
        architecture: A registered name.
        samples: The client's own images.
        classes: Number C of classes.
        profile: Of the client's device, whose processor decides which build of torch is
            counted; this machine's processor where there is none.

    Raises:
        ConfigError: No such architecture.
    """
    found = needs(
        architecture,
        config,
        shape,
        classes,
        batch=config.training.batch,
        samples=samples,
        arch=profile.arch if profile else platform.machine(),
    )
    return round(found.total / MB, 2)


def needs_bundle(
    architecture: str,
    config: Config,
    shape: ImageShape,
    classes: int,
    *,
    use: Use,
    batch: int,
    arch: str = "x86_64",
) -> Footprint:
    """Memory that the bundle needs on onnxruntime, without torch.

    Args:
        architecture: A registered name.
        config: The method and its widths.
        classes: Number C of classes.
        use: ``infer``: the client's classifier; ``synthesise``: its synthesiser.
        batch: Images asked for at once; the runner cuts them into chunks.
        arch: The device's processor architecture, as profiles name it.

    Raises:
        ConfigError: No such architecture, or a method whose bundle has no synthesiser.
    """
    phases = phases_of(architecture, shape, classes, config.method)
    parameters, held = _graph(phases, use, config)
    return Footprint(
        weights=round(_COPIES * FLOAT * parameters),
        gradients=0,
        optimiser=0,
        activations=round(_ARENA * held.peak(min(batch, _BUNDLE_CHUNK))) + _SESSION,
        data=2 * batch * _pixels(shape),
        baseline=_bytes(onnxruntime_mb(arch)),
    )


def needs_bare(
    architecture: str, config: Config, shape: ImageShape, classes: int, *, weight_bytes: int
) -> Footprint:
    """The least that classifying one image takes where no runtime of ours runs.

    Args:
        architecture: A registered name.
        config: The method and its widths.
        classes: Number C of classes.
        weight_bytes: Of one weight: 4 for float32, 1 for int8; activations are float32.

    Raises:
        ConfigError: No such architecture.
    """
    phases = phases_of(architecture, shape, classes, config.method)
    activations = round(phases.classify.peak(1))
    return Footprint(weight_bytes * _classifying(phases), 0, 0, activations, _pixels(shape), 0)


def _classifying(phases: PhaseProfiles) -> int:
    """Numbers in the classifier; a head classifies with the extractor below it."""
    return phases.model + (phases.anchor if phases.features else 0)


def _pool(config: Config, shape: ImageShape, classes: int, batch: int) -> int:
    """Bytes of the pictures that a teacher labels for the last fine-tuning."""
    method, settings = config.method, config.training.model_copy(update={"batch": batch})
    if not has_decoder(method) or method.share != "anchored" or "teacher" in method.ablate:
        return 0
    pictures = pool_size(last_steps(classes, settings), _pixels(shape), settings)
    return pictures * (_pixels(shape) + FLOAT * classes)


def _graph(phases: PhaseProfiles, use: Use, config: Config) -> tuple[int, MemoryProfile]:
    if use == "infer":
        return _classifying(phases), phases.classify
    if phases.synthesise is None:
        raise ConfigError(
            f"a client of method.name = {config.method.name!r} has no synthesiser",
            hint="use method.name = fedvtc, and an architecture that has a decoder",
        )
    return phases.decoder, phases.synthesise


def _peak(held: MemoryProfile | None, batch: int) -> float:
    return held.peak(batch) if held else 0.0


def _pixels(shape: ImageShape) -> int:
    return shape.channels * shape.size**2


def _bytes(figure: Figure) -> int:
    return round(figure.value * MB)


FLOAT = 4
"""Bytes of a number."""

ADAM_SLOTS = 2
"""Numbers of Adam's state for a parameter."""

_FEW, _MORE, _STEPS = 2, 3, 2


@dataclass(frozen=True, eq=False)
class MemoryProfile:
    """Bytes that a phase holds after each of its K operations, but for static ones.

    Weights, gradients and the optimiser's state are left out: they do not depend on the
    batch, and are counted from the number of parameters.

    Args:
        few: With a batch of two images, [K].
        slope: More with every further image, [K].
    """

    few: Numbers
    slope: Numbers

    def peak(self, batch: int) -> float:
        """Most that lives at once with so many images in a batch."""
        return float((self.few + (batch - _FEW) * self.slope).max())


@dataclass(frozen=True)
class PhaseProfiles:
    """One architecture's networks and what a client's phases hold of memory.

    Args:
        decoder: Parameters of ψ; 0 for methods without synthesis.
        companion: Parameters of the small network that the client shares, or 0.
        anchor: Numbers in the anchor R; 0 without it. Of an ONNX network as many as fill its file.
        chunk: Images of one pass of it, as the client measures.
        features: Numbers kept of each own image for a head on the extractor; else 0.
        measure: The anchor over a chunk of images, or None.
        fit_decoder: Phase B, or None.
        finetune: Phase C, or None.
        synthesise: ψ without gradients, or None.
    """

    model: int
    decoder: int
    anchor: int
    train: MemoryProfile
    classify: MemoryProfile
    chunk: int = CHUNK
    features: int = 0
    measure: MemoryProfile | None = None
    fit_decoder: MemoryProfile | None = None
    finetune: MemoryProfile | None = None
    synthesise: MemoryProfile | None = None
    companion: int = 0


def phases_of(
    architecture: str, shape: ImageShape, classes: int, method: MethodSettings
) -> PhaseProfiles:
    """Memory of one architecture's phases; the same on every machine, found once per process.

    Each phase's own code runs on batches of two and of three images, for two steps: the
    second meets the optimiser's state of the first. Both runs do the same operations, and
    what lives after each of them is affine in the batch: so the peak of any batch follows,
    also where another operation rules it.

    Raises:
        ConfigError: No such architecture.
    """
    one_round = method.model_copy(update={"rounds": 1})  # their number is of no account
    # A name may come to stand for something else: what is lent to one run, for example.
    pretrained = source_of(method.extractor, method.extractor_weights)
    extractor = EXTRACTORS.find(method.extractor) if pretrained is None else pretrained.sha256
    things = (ARCHITECTURES.find(architecture), extractor)
    return _phases(architecture, shape, classes, one_round, things)


@lru_cache(maxsize=256)
def _phases(
    architecture: str, shape: ImageShape, classes: int, method: MethodSettings, things: object
) -> PhaseProfiles:
    with deterministic():
        knowledge, anchor = probe_statistics(shape, classes, method)
        whole = probe_client(architecture, shape, classes, method, images=_MORE, anchor=anchor)
        if anchor is None and isinstance(whole.model, ExtractorHead):
            anchor = whole.model.anchor
        probes = [probe_copy(whole, size, _STEPS, batch=size) for size in (_FEW, _MORE)]
        for probe in probes:
            _ = probe.inputs  # features are measured once, before all phases

        def held(
            phase: Callable[[Client], object], trained: Callable[[Client], nn.Module] | None = None
        ) -> MemoryProfile:
            weights = [list(trained(probe).parameters()) if trained else [] for probe in probes]
            few, more = (
                record(partial(phase, probe), own, arithmetic=False).held
                for probe, own in zip(probes, weights, strict=True)
            )
            return MemoryProfile(few - ADAM_SLOTS * FLOAT * _count(weights[0]), more - few)

        def train(probe: Client) -> None:
            if probe.companion is None:
                probe.train(1, knowledge.codes, kl=1.0)
            else:  # both at once, whatever the method's loss is
                probe.train_by(1, _STEPS, both_losses)

        model, decoder = whole.model, whole.decoder
        known = PhaseProfiles(
            model=_count(model.parameters()),
            decoder=_count(decoder.parameters()) if decoder else 0,
            anchor=_numbers(anchor) if anchor else 0,
            train=held(train, _together),
            companion=_count(whole.companion.parameters()) if whole.companion else 0,
            classify=held(lambda probe: _without_gradients(probe.model, probe)),
            chunk=anchor.chunk if anchor else CHUNK,
            features=model.kept if isinstance(model, ExtractorHead) else 0,
        )
        if anchor is not None:
            known = replace(known, measure=held(lambda probe: _without_gradients(anchor, probe)))
        if decoder is None and knowledge.anchored is None:
            return known
        known = replace(
            known,
            finetune=held(lambda probe: probe.finetune(1, knowledge, steps=_STEPS, kl=1.0), _model),
        )
        if decoder is None:
            return known
        return replace(
            known,
            fit_decoder=held(lambda probe: probe.fit_decoder(1, knowledge, match=True), _decoder),
            synthesise=held(lambda probe: probe.synthesise(knowledge, probe.labels)),
        )


def _numbers(anchor: Anchor) -> int:
    outside = sum(m.size for m in anchor.modules() if isinstance(m, OnnxNetwork)) // FLOAT
    return _count([*anchor.buffers(), *anchor.parameters()]) + outside


def _model(client: Client) -> nn.Module:
    return client.model


def _together(client: Client) -> nn.Module:
    beside = [] if client.companion is None else [client.companion]
    return nn.ModuleList([client.model, *beside])


def _decoder(client: Client) -> nn.Module:
    assert client.decoder is not None
    return client.decoder


@torch.no_grad()
def _without_gradients(network: nn.Module, client: Client) -> None:
    network(client.images)


def _count(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
