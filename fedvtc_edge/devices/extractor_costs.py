"""Costs of a frozen extractor on this machine: bytes, multiplications and milliseconds."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.models.onnx_network import OnnxNetwork
from fedvtc_edge.models.pretrained import LITE0, Pretrained, source_of
from fedvtc_edge.plugins import EXTRACTORS

_IMAGES, _REPEATS = 4, 5
_WIDTH = 2
"""Features after projection; the product costs next to nothing whatever they are."""


@dataclass(frozen=True)
class ExtractorCosts:
    """Figures of one extractor for images of one shape.

    Args:
        weights_bytes: Of all its numbers, or of its file where onnxruntime holds them.
        macs: Multiplications and additions for one image; None where they cannot be counted.
        ms: Milliseconds of one core here for one image, the median of a few runs.
        features: Width d before the projection.
        resolution: Side of the images that its network is given.
        sha256: Hash of its weights; empty for what is drawn from a seed.
    """

    name: str
    weights_bytes: int
    macs: int | None
    ms: float
    features: int
    resolution: int
    licence: str
    origin: str
    sha256: str


def names() -> list[str]:
    """Extractors that are there without any file or fetch: built in, installed, registered."""
    found = list(EXTRACTORS.names())
    return [found[0], LITE0, *found[1:]]


def costs_of(name: str, shape: ImageShape, weights: str = "") -> ExtractorCosts:
    """Measure one extractor.

    Args:
        name: As in ``method.extractor``.
        shape: Of the images.
        weights: As in ``method.extractor_weights``.

    Raises:
        ConfigError: No such extractor, or one that does not take such images.
    """
    if shape.channels not in (1, 3):
        raise ConfigError(
            f"images of {shape.channels} channels", hint="grey ones have 1, colour ones 3"
        )
    source = source_of(name, weights)
    anchor = Anchor(shape, _WIDTH, 0, name, weights).eval()
    graphs = [part for part in anchor.modules() if isinstance(part, OnnxNetwork)]
    images = torch.rand(_IMAGES, shape.channels, shape.size, shape.size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            with FlopCounterMode(display=False) as counter:
                anchor(images)
            spans = []
            for _ in range(_REPEATS):
                begin = time.thread_time()
                anchor(images)
                spans.append(time.thread_time() - begin)
    finally:
        torch.set_num_threads(threads)
    return ExtractorCosts(
        name=name,
        weights_bytes=sum(map(_bytes, graphs)) or _bytes(anchor),
        macs=None if graphs else counter.get_total_flops() // (2 * _IMAGES),
        ms=1000 * statistics.median(spans) / _IMAGES,
        features=len(anchor.get_buffer("project")),
        resolution=anchor.body.resolution if isinstance(anchor.body, Pretrained) else shape.size,
        licence=source.licence if source else _ours(name, "Apache-2.0", "whatever its maker says"),
        origin=source.origin if source else _ours(name, "drawn from the run's seed", "a plug-in"),
        sha256=source.sha256 if source else "",
    )


def _ours(name: str, here: str, elsewhere: str) -> str:
    return here if name == "random" else elsewhere


def _bytes(module: nn.Module) -> int:
    if isinstance(module, OnnxNetwork):
        return module.size
    tensors = [
        value
        for name, value in (*module.named_parameters(), *module.named_buffers())
        if name != "project"
    ]
    return sum(value.nbytes for value in tensors)
