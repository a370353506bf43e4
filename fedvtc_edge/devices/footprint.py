"""How many bytes an architecture needs on a device: to train, to classify, to paint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from fedvtc_edge.config import Config
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import ImageShape, from_torchvision

from . import baseline
from .phases import ADAM_SLOTS, FLOAT, Held, Phases, phases_of
from .profile import Figure

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
        baseline=_bytes(baseline.torch_mb(arch, torchvision=from_torchvision(architecture))),
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
        baseline=_bytes(baseline.onnxruntime_mb(arch)),
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


def _graph(phases: Phases, use: Use, config: Config) -> tuple[int, Held]:
    if use == "infer":
        return phases.model, phases.classify
    if phases.synthesise is None:
        raise ConfigError(
            f"method.name = {config.method.name!r} has no synthesiser",
            hint="use method.name = fedvtc",
        )
    return phases.decoder, phases.synthesise


def _peak(held: Held | None, batch: int) -> float:
    return held.peak(batch) if held else 0.0


def _pixels(shape: ImageShape) -> int:
    return shape.channels * shape.size**2


def _bytes(figure: Figure) -> int:
    return round(figure.value * MB)
