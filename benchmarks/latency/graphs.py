"""The graphs that a fleet's bundles hold, exported with fresh weights and ready to run.

Trained weights would take the same time: the arithmetic does not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedvtc_edge.export.graphs import AnchorGraph, ClassifierGraph, SynthesizerGraph, convert
from fedvtc_edge.export.runtime import Arrays, Session
from fedvtc_edge.models import ImageShape, build, vtc
from fedvtc_edge.models.extractor import Anchor

_LATENT, _ANCHOR, _CLASSES, _SEED = 64, 128, 10, 0
_COLOURED = 32
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}


@dataclass(frozen=True)
class Exported:
    """One graph for images of one size.

    Args:
        network: Name of the architecture, or ``synthesizer`` or ``anchor``.
        size: Of the images.
        model: The ONNX file.
        session: What runs it, on one thread.
    """

    network: str
    size: int
    model: bytes
    session: Session

    def feed(self, batch: int) -> Arrays:
        """Inputs for one inference of ``batch`` samples, the same every time."""
        draw = np.random.Generator(np.random.Philox(key=_SEED))
        arrays = {}
        for name, (kind, axes) in self.session.inputs.items():
            shape = [axis if isinstance(axis, int) else batch for axis in axes]
            top = _CLASSES if name == "labels" else 256
            arrays[name] = draw.integers(0, top, shape).astype(_TYPES[kind])
        return arrays


def exported(networks: Sequence[str], sizes: Sequence[int], folder: Path) -> Iterator[Exported]:
    """Export the networks' classifiers, the synthesiser and the anchor for every size.

    Args:
        networks: Architectures by their names.
        sizes: Of the images; grey below 32 pixels, coloured from there.
        folder: An empty one, for as long as the graphs are used.

    Raises:
        ConfigError: No such architecture.
    """
    for size in sizes:
        shape = ImageShape(size, 1 if size < _COLOURED else 3)
        images = {"images": torch.zeros(2, size, size, shape.channels, dtype=torch.uint8)}
        for name in networks:
            model = build(name, shape, latent=_LATENT, classes=_CLASSES, seed=_SEED)
            yield _export(name, size, ClassifierGraph(model), images, folder)
        painter = SynthesizerGraph(vtc.build(shape, latent=_LATENT, seed=_SEED))
        yield _export("synthesizer", size, painter, _latents(), folder, ("means", "stds"))
        yield _export("anchor", size, AnchorGraph(Anchor(shape, _ANCHOR, _SEED)), images, folder)


def _latents() -> dict[str, Tensor]:
    return {
        "labels": torch.zeros(2, dtype=torch.int64),
        "means": torch.zeros(_CLASSES, _LATENT),
        "stds": torch.ones(_CLASSES, _LATENT),
        "noise": torch.zeros(2, _LATENT),
    }


def _export(
    network: str,
    size: int,
    module: nn.Module,
    example: dict[str, Tensor],
    folder: Path,
    fixed: tuple[str, ...] = (),
) -> Exported:
    path = folder / f"{network}-{size}.onnx"
    convert(module, example, path, output="out", fixed=fixed)
    model = path.read_bytes()
    return Exported(network, size, model, Session(model, name=path.name, folder=folder))
