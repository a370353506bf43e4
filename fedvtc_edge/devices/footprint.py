"""How many bytes an architecture needs on a device: to train, to classify, to paint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedvtc_edge.config import Config, MethodSettings, TrainingSettings
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import ImageShape, build, from_torchvision, vtc
from fedvtc_edge.models.anchor import Anchor
from fedvtc_edge.models.classifier import Classifier
from fedvtc_edge.models.vtc import VTC
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.training.knowledge import GlobalKnowledge, blank, from_anchor

from .profile import Figure
from .recorder import Bytes, record

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

_ANCHOR_CHUNK = 256
"""Images of one pass of the anchor, as the client measures."""
_BUNDLE_CHUNK = 32
"""Images of one inference, as the bundle's runner cuts what it is given."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a piece of work needs at its peak.

    Args:
        weights: Of all networks that are resident.
        gradients: Of the network that trains; of both, jointly.
        optimiser: Adam's two moments of the same.
        activations: All else that the work allocates, with the kernels' and the
            allocator's share.
        data: The images.
        baseline: The runtime, before any of it.
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
    """What a client's training needs, with torch.

    A phase leaves holes that the next one's tensors do not fit in, so that what all of
    them hold adds up, though they come one after another.

    Args:
        architecture: A registered name.
        config: The method and its widths.
        shape: Of the images.
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
    a, b, c = (_peak(phase, batch) for phase in (phases.train, phases.paint, phases.finetune))
    held = _peak(phases.measure, _ANCHOR_CHUNK) + a + b + c
    if mode == "joint":
        trained = phases.model + phases.decoder
        held += min(b, max(a, c))  # what the smaller one would have used again of the other's
    else:
        trained = max(phases.model, phases.decoder)
    return Footprint(
        weights=FLOAT * (phases.model + phases.decoder + phases.anchor),
        gradients=FLOAT * trained,
        optimiser=ADAM_SLOTS * FLOAT * trained,
        activations=round(_SLACK * held) + _KERNELS,
        data=samples * _pixels(shape) * FLOAT,
        baseline=_bytes(torch_mb(arch, torchvision=from_torchvision(architecture))),
    )


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
    """What the bundle needs on onnxruntime, without torch.

    Args:
        architecture: A registered name.
        config: The method and its widths.
        shape: Of the images.
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
        shape: Of the images.
        classes: Number C of classes.
        weight_bytes: Of one weight: 4 for float32, 1 for int8; activations are float32.

    Raises:
        ConfigError: No such architecture.
    """
    phases = phases_of(architecture, shape, classes, config.method)
    activations = round(phases.classify.peak(1))
    return Footprint(weight_bytes * phases.model, 0, 0, activations, _pixels(shape), 0)


def _graph(phases: PhaseProfiles, use: Use, config: Config) -> tuple[int, MemoryProfile]:
    if use == "infer":
        return phases.model, phases.classify
    if phases.synthesise is None:
        raise ConfigError(
            f"method.name = {config.method.name!r} has no synthesiser",
            hint="use method.name = fedvtc",
        )
    return phases.decoder, phases.synthesise


def _peak(held: MemoryProfile | None, batch: int) -> float:
    return held.peak(batch) if held else 0.0


def _pixels(shape: ImageShape) -> int:
    return shape.channels * shape.size**2


def _bytes(figure: Figure) -> int:
    return round(figure.value * MB)


# ---------------------------------------------------------------- section
# How much memory a client's training needs, from its networks rather than from the process.
#
# All simulated clients share one process, whose peak says nothing of any of them.

_ADAM_SLOTS = 2
_ALLOCATOR = 1.7
"""Peak over saved activations: measured on ten networks (gradients, workspace, slack)."""


def training_megabytes(model: Classifier, decoder: VTC | None, images: Tensor) -> float:
    """Modelled peak of f and ψ trained in turn on one batch, in MB of 10⁶ bytes.

    Both networks' weights stay; gradients, Adam's two moments and activations of
    only one are held at a time. The runtime itself (torch, the interpreter) is not
    in it.

    Args:
        model: f.
        decoder: ψ, or None.
        images: One batch [N, channels, size, size].
    """
    resident, peak = 4 * _parameters(model), _phase(model, images)
    if decoder is not None:
        resident += 4 * _parameters(decoder)
        latents = torch.zeros(len(images), model.projection.out_features, device=images.device)
        peak = max(peak, _phase(decoder, latents))
    return (resident + peak) / 1e6


def _phase(network: nn.Module, batch: Tensor) -> float:
    """Gradients, optimiser state and activations of one network, in bytes."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(batch)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    activations = sum(size for pointer, size in saved.items() if pointer not in weights)
    del output
    return 4 * _parameters(network) * (1 + _ADAM_SLOTS) + _ALLOCATOR * activations


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# ---------------------------------------------------------------- section
# What a client's phases hold in memory, rehearsed by a stand-in with a handful of images.
#
# The real code of each phase runs twice, on batches of two and of three images, for two
# steps: the second meets the optimiser's state of the first. Both runs do the same
# operations, and what lives after each of them is affine in the batch: so the peak of any
# batch follows, also where another operation rules it.

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

    few: Bytes
    slope: Bytes

    def peak(self, batch: int) -> float:
        """Most that lives at once with so many images in a batch."""
        return float((self.few + (batch - _FEW) * self.slope).max())


@dataclass(frozen=True)
class PhaseProfiles:
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
    train: MemoryProfile
    classify: MemoryProfile
    measure: MemoryProfile | None = None
    paint: MemoryProfile | None = None
    finetune: MemoryProfile | None = None
    synthesise: MemoryProfile | None = None


@lru_cache(maxsize=256)
def phases_of(
    architecture: str, shape: ImageShape, classes: int, method: MethodSettings
) -> PhaseProfiles:
    """Rehearse one architecture on images of one shape; the same answer on every machine.

    Raises:
        ConfigError: No such architecture.
    """
    with deterministic():
        knowledge, anchor = probe_statistics(shape, classes, method)
        whole = probe_copy(architecture, shape, classes, method, samples=_MORE)
        dolls = [_with_images(whole, size) for size in (_FEW, _MORE)]

        def held(
            phase: Callable[[Client], object], trained: nn.Module | None = None
        ) -> MemoryProfile:
            weights = list(trained.parameters()) if trained else []
            few, more = (record(partial(phase, probe), weights) for probe in dolls)
            return MemoryProfile(few - ADAM_SLOTS * FLOAT * _count(weights), more - few)

        model, decoder = whole.model, whole.decoder
        known = PhaseProfiles(
            model=_count(model.parameters()),
            decoder=_count(decoder.parameters()) if decoder else 0,
            anchor=_count(anchor.buffers()) if anchor else 0,
            train=held(lambda probe: probe.train(1, knowledge.codes, kl=1.0), model),
            classify=held(lambda probe: _without_gradients(model, probe)),
        )
        if anchor is not None:
            known = replace(known, measure=held(lambda probe: _without_gradients(anchor, probe)))
        if decoder is None:
            return known
        return replace(
            known,
            paint=held(lambda probe: probe.fit_decoder(1, knowledge, match=True), decoder),
            finetune=held(lambda probe: probe.finetune(1, knowledge, steps=_STEPS, kl=1.0), model),
            synthesise=held(lambda probe: probe.synthesise(knowledge, probe.labels)),
        )


def probe_copy(
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
    return METHODS.find(method.name).has_decoder


def probe_statistics(
    shape: ImageShape, classes: int, method: MethodSettings
) -> tuple[GlobalKnowledge, Anchor | None]:
    """Published statistics of the right shapes, and the anchor; what they say is noise."""
    device = torch.device("cpu")
    if not paints(method) or method.share != "anchored":
        return blank(classes, method.latent, device=device), None
    anchor = Anchor(shape, method.anchor, 0)
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


# ---------------------------------------------------------------- section
# What a runtime needs before it holds a single number of ours, by its build.
#
# Recorded once and never measured at plan time: a plan has to be the same on every machine.
# The CUDA build of torch is what ``pip install torch`` brings on x86-64 Linux; it takes far
# more than a CPU wheel, whether or not there is a GPU.

_TORCH_CUDA = Figure(
    value=549,
    kind="measured",
    source="VmHWM after what a client imports and one step with Adam, torch 2.14.1+cu130, x86-64, "
    "one thread: python -m fedvtc_edge.benchmarks.studies.planner, 2026-11-25",
)
_TORCH_CPU = Figure(
    value=259,
    kind="assumed",
    source="as on x86-64 with a CPU wheel, where it was measured: the same process, torch "
    "2.13.0+cpu, 2026-11-25",
)
_TORCHVISION_CUDA = Figure(
    value=711,
    kind="measured",
    source="the same process after the import of torchvision 0.29.1, which imports torch's "
    "compiler and Triton, 2026-11-26",
)
_TORCHVISION_CPU = Figure(
    value=344,
    kind="assumed",
    source="that of torch, 73 MB of torch's compiler, measured on x86-64 with a CPU wheel, and "
    "12 MB of torchvision itself, 2026-11-26",
)
_ONNXRUNTIME = Figure(
    value=62,
    kind="measured",
    source="VmHWM after the import of the bundle's runner, onnxruntime 1.32.0, x86-64: "
    "python -m fedvtc_edge.benchmarks.studies.planner, 2026-11-25",
)


def torch_mb(arch: str, *, torchvision: bool = False) -> Figure:
    """Of training with torch on a processor architecture, in MB of 2^20 bytes.

    Args:
        arch: As profiles name it.
        torchvision: Whether the network comes from there.
    """
    if arch == "x86_64":
        return _TORCHVISION_CUDA if torchvision else _TORCH_CUDA
    return _TORCHVISION_CPU if torchvision else _TORCH_CPU


def onnxruntime_mb(arch: str) -> Figure:
    """Of the bundle's runner on a processor architecture, in MB of 2^20 bytes."""
    if arch == "x86_64":
        return _ONNXRUNTIME
    return _ONNXRUNTIME.model_copy(
        update={"kind": "assumed", "source": f"as on x86-64: {_ONNXRUNTIME.source}"}
    )
