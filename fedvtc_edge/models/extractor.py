"""The frozen extractor R, called the anchor: no private data ever shaped it.

Client and server each build it from a public seed. Because it is one function for all
clients, sums of its features add exactly over any partition of the data, and
because it saw no data, the sensitivity of such a sum is fixed and known.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedvtc_edge.config import Config
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.plugins import EXTRACTORS, METHODS
from fedvtc_edge.privacy.mechanism import anchor_width
from fedvtc_edge.seeding import derive_seed

from .registry import ImageShape

_FIRST, _SECOND, _KERNEL, _GRID = 32, 64, 5, 4
_NOISE_IMAGES, _NOISE_SEED = 256, 2508_01670


class Anchor(nn.Module):
    """Random convolutional features of norm √m.

    Smooth random 5×5 filters, ReLU, random 3×3 filters, ReLU, a coarse grid of
    averages, a random projection to m, normalised. The first filters are drawn
    in the cosine basis with the natural images' 1/f amplitudes and without mean:
    white filters waste most of their energy on pixel noise. Everything here was
    chosen on validation data (docs/decisions/0003).

    Args:
        shape: Shape of the images.
        width: Number m of features.
        seed: Public seed. NumPy's Philox generator makes it one function on
            every platform.
        extractor: A registered name; its features are projected to m and normalised in
            place of those filters'.

    Raises:
        ConfigError: No such extractor, or one that gives no features [N, d].
    """

    def __init__(self, shape: ImageShape, width: int, seed: int, extractor: str = "random") -> None:
        super().__init__()
        draw = np.random.Generator(np.random.Philox(key=seed))
        self.width = width
        build = EXTRACTORS.find(extractor)
        self.body = None if build is None else _frozen(build, extractor, shape, seed)
        if self.body is not None:
            inner = self.body(torch.zeros(1, shape.channels, shape.size, shape.size)).shape[1]
            project = draw.standard_normal((inner, width)) / np.sqrt(inner)
            self.register_buffer("project", torch.from_numpy(project.astype(np.float32)))
            return
        self.stride = 1 if shape.size <= 16 else 2
        side = -(-shape.size // self.stride)
        first = _smooth_filters(draw, shape.channels)
        second = draw.standard_normal((_SECOND, _FIRST, 3, 3)) / np.sqrt(9 * _FIRST)
        project = draw.standard_normal((_SECOND * _GRID**2, width)) / np.sqrt(_SECOND * _GRID**2)
        for name, value in (
            ("first", first),
            ("second", second),
            ("average", _averages(side, _GRID)),
            ("project", project),
        ):
            self.register_buffer(name, torch.from_numpy(value.astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] in [0, 1] → [N, m], each row of norm √m; differentiable in x."""
        h = self._filtered(x) if self.body is None else self.body(x).float()
        unit: Tensor = F.normalize(h @ cast(Tensor, self.project), dim=1)
        return unit.mul(self.width**0.5)

    def _filtered(self, x: Tensor) -> Tensor:
        x = x - x.mean(dim=(1, 2, 3), keepdim=True)
        h = F.relu(F.conv2d(x, cast(Tensor, self.first), stride=self.stride, padding=_KERNEL // 2))
        h = F.relu(F.conv2d(h - h.mean(1, keepdim=True), cast(Tensor, self.second), padding=1))
        average = cast(Tensor, self.average)
        return torch.matmul(torch.matmul(average, h), average.T).flatten(1)


def _frozen(build: Callable[..., Any], name: str, shape: ImageShape, seed: int) -> nn.Module:
    """A body that no step changes, with the same initial weights for everybody."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = copy.deepcopy(build(shape))  # what is given in memory stays as it is
        if not isinstance(body, nn.Module):
            raise ConfigError(
                f"extractor {name!r} builds a {type(body).__name__}, expected a torch.nn.Module",
                hint="return a module that maps images [N, channels, H, W] to [N, d]",
            )
        body = body.cpu().eval()
        features = body(torch.zeros(2, shape.channels, shape.size, shape.size))  # fills lazy layers
        body.requires_grad_(False)
    if features.ndim != 2 or len(features) != 2:
        raise ConfigError(
            f"extractor {name!r} gives features of shape {list(features.shape)} for two images",
            hint="let it return [N, d]; nn.Flatten() is often what is missing",
        )
    return body


EXTRACTORS.register("random", None)


def extractor_of(config: Config, shape: ImageShape, classes: int) -> Anchor | None:
    """The frozen extractor of a run, in evaluation mode; None where its method shares none.

    Args:
        classes: Number C of classes, on which the width depends under a privacy mode.
    """
    if METHODS.find(config.method.name).shared(config) != "anchored":
        return None
    width, seed = anchor_width(config, classes), derive_seed(config.seed, "anchor")
    return Anchor(shape, width, seed, config.method.extractor).eval()


@torch.no_grad()
def centre(anchor: Anchor, shape: ImageShape) -> NDArray[np.float64]:
    """Mean direction of R over public noise images, [m]: where features lie without any data.

    Private releases are about this point: what all pictures share needs no sensitivity.
    """
    draw = np.random.Generator(np.random.Philox(key=_NOISE_SEED))
    noise = draw.random((_NOISE_IMAGES, shape.channels, shape.size, shape.size), np.float32)
    device = cast(Tensor, anchor.project).device
    features = anchor(torch.from_numpy(noise).to(device)).double().cpu().numpy()
    mean: NDArray[np.float64] = features.mean(0) / anchor.width**0.5
    return mean


def _smooth_filters(draw: np.random.Generator, channels: int) -> NDArray[np.float64]:
    """Random filters [32, channels, 5, 5], zero mean, unit norm, 1/f amplitudes."""
    frequency = np.arange(_KERNEL)
    position = (frequency + 0.5)[:, None] * frequency[None, :]
    basis = np.cos(np.pi * position / _KERNEL) * np.where(frequency == 0, 0.5**0.5, 1.0)
    amplitude = 1.0 / (1.0 + frequency[:, None] + frequency[None, :])
    white = draw.standard_normal((_FIRST, channels, _KERNEL, _KERNEL))
    filters = np.einsum("xu,ncuv,yv->ncxy", basis, white * amplitude, basis)
    filters -= filters.mean(axis=(2, 3), keepdims=True)
    norm = np.sqrt(np.square(filters).sum(axis=(1, 2, 3), keepdims=True))
    return cast(NDArray[np.float64], filters / norm)


def _averages(side: int, grid: int) -> NDArray[np.float64]:
    """[grid, side] matrix whose rows average nearly equal stretches of ``side`` pixels.

    A matrix rather than adaptive pooling: the same in every runtime, and its
    gradient is deterministic on every device.
    """
    matrix = np.zeros((grid, side))
    for row in range(grid):
        begin, end = row * side // grid, -(-(row + 1) * side // grid)
        matrix[row, begin:end] = 1.0 / (end - begin)
    return matrix
