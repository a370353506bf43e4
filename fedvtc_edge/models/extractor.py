"""The frozen extractor R, called the anchor: no private data ever shaped it.

Client and server each build it from a public seed. Because it is one function for all
clients, sums of its features add exactly over any partition of the data, and
because it saw no data, the sensitivity of such a sum is fixed and known.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from fedvtc_edge.config import Config, MethodSettings
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.plugins import EXTRACTORS, METHODS
from fedvtc_edge.privacy.mechanism import anchor_width
from fedvtc_edge.seeding import derive_seed

from .efficientnet import CUT, EfficientNetLite0
from .pretrained import Pretrained, source_of
from .registry import ImageShape

_FIRST, _SECOND, _KERNEL, _GRID = 32, 64, 5, 4
CHUNK = 256
"""Images per forward: LeNet's activations of 512 digits no longer fit the cache (twice as slow)."""

PRETRAINED_CHUNK = 16
"""Images per forward of a pretrained network: 0.1 GB at 224 px."""

_LARGE = 64
"""Side above which fewer images go forward at once, so that they need no more memory."""

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
        extractor: A registered name, or one of :mod:`fedvtc_edge.models.pretrained`; its
            features are projected to m and normalised in place of those filters'.
        weights: A file of weights for it; see there.

    Attributes:
        chunk: Images of one pass; fewer where a pretrained network holds more for each.
        matches: Whether decoders match distributions in its space. Not in that of a pretrained
            network, which costs 25 ms an image where the random filters cost 0.1, if
            gradients flow through it at all: through onnxruntime none do.
        sha256: Hash of a pretrained extractor's weights, or empty.

    Raises:
        ConfigError: No such extractor, or one that does not give m features or more, [N, d].
    """

    first: Tensor
    second: Tensor
    average: Tensor
    project: Tensor

    def __init__(
        self,
        shape: ImageShape,
        width: int,
        seed: int,
        extractor: str = "random",
        weights: str = "",
    ) -> None:
        super().__init__()
        draw = np.random.Generator(np.random.Philox(key=seed))
        self.width, self.sha256, self.chunk = width, "", chunk_of(shape.size)
        self.matches = True
        self._embedded: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._cuts: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.body = self._body(shape, seed, extractor, weights)
        if self.body is not None:
            project = _projection(self.body, shape, width, draw, extractor)
            self.register_buffer("project", torch.from_numpy(project.astype(np.float32)))
            return
        self.stride = 1 if shape.size <= 16 else 2
        side = -(-shape.size // self.stride)
        first = _smooth_filters(draw, shape.channels)
        second = draw.standard_normal((_SECOND, _FIRST, 3, 3)) / np.sqrt(9 * _FIRST)
        second -= second.mean(1, keepdims=True)  # as if each position's mean were taken off first
        project = draw.standard_normal((_SECOND * _GRID**2, width)) / np.sqrt(_SECOND * _GRID**2)
        # Positions before channels, as features lie in memory after a channels-last kernel.
        project = project.reshape(_SECOND, _GRID**2, width).swapaxes(0, 1).reshape(-1, width)
        average = _averages(side, _GRID)
        for name, value in (
            ("first", first),
            ("second", second),
            ("average", np.kron(average, average)),
            ("project", project),
        ):
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value, np.float32)))
        for name in ("first", "second"):  # cloned: of one channel, either order would count as last
            filters = getattr(self, name).clone(memory_format=torch.channels_last)
            self.register_buffer(name, filters)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] in [0, 1] → [N, m], each row of norm √m; differentiable in x."""
        return self.projected(self._filtered(x) if self.body is None else self.body(x))

    def projected(self, h: Tensor) -> Tensor:
        """The body's features [N, d] → [N, m], each row of norm √m."""
        unit: Tensor = F.normalize(h.float() @ self.project, dim=1)
        return unit.mul(self.width**0.5)

    @property
    def is_seedless(self) -> bool:
        """True if the seed decides nothing: the network is public, and so is its projection."""
        return bool(self.sha256) and getattr(self.body, "classifier", None) is not None

    def embed(self, images: Tensor) -> Tensor:
        """Features [N, m] of images, on the CPU, in pieces; not computed again for a tensor.

        A pretrained network takes milliseconds an image, and a run asks for the same images'
        features after each round: they are kept for as long as that tensor lives. Those of
        an image do not depend on the others, which private training on them relies on.
        """
        return self._once(self._embedded, self, images)

    def embed_together(self, tensors: Sequence[Tensor]) -> None:
        """Compute :meth:`embed` of several small tensors in one pass, bit for bit the same.

        Passes are all equally long: alone, ten images take as long as a whole one.
        """
        new = [images for images in tensors if images not in self._embedded]
        if new:
            features = one_by_one(self, torch.cat(new), self.chunk)
            for images, own in zip(
                new, torch.split(features, [len(one) for one in new]), strict=True
            ):
                self._embedded[images] = own.clone()

    @property
    def trunk(self) -> EfficientNetLite0 | None:
        """The body's network, where it has a tail that may be trained; else None."""
        network = self.body.network if isinstance(self.body, Pretrained) else None
        return network if isinstance(network, EfficientNetLite0) else None

    @property
    def cut_shape(self) -> tuple[int, int, int]:
        """Shape of an image's activations at the cut, [channels, side, side]."""
        assert isinstance(self.body, Pretrained)
        side = self.body.resolution // 32
        return CUT, side, side

    def cut(self, images: Tensor) -> Tensor:
        """Activations of images at the cut, [N, *cut_shape]: inputs of the trunk's tail."""
        assert isinstance(self.body, Pretrained)
        assert self.trunk is not None
        return self.trunk.below(self.body.prepared(images))

    def embed_cut(self, images: Tensor) -> Tensor:
        """:meth:`cut`, flat, with features behind it, [N, k + m]; kept as :meth:`embed` does."""
        return self._once(self._cuts, self._cut_and_features, images)

    def _cut_and_features(self, x: Tensor) -> Tensor:
        assert self.trunk is not None
        cut = self.cut(x)
        return torch.cat([cut.flatten(1), self.projected(self.trunk.tail(cut))], 1)

    def _once(
        self, kept: WeakIdKeyDictionary, function: Callable[[Tensor], Tensor], images: Tensor
    ) -> Tensor:
        if images not in kept:
            kept[images] = one_by_one(function, images, self.chunk)
        values: Tensor = kept[images]
        return values

    def _body(self, shape: ImageShape, seed: int, extractor: str, weights: str) -> nn.Module | None:
        source = source_of(extractor, weights)
        if source is not None:
            self.sha256, self.chunk = source.sha256, PRETRAINED_CHUNK
            self.matches = False
            return source.build(shape).eval().requires_grad_(False)
        build = EXTRACTORS.find(extractor)
        return None if build is None else _frozen(build, extractor, shape, seed)

    def _filtered(self, x: Tensor) -> Tensor:
        x = x - x.mean(dim=(1, 2, 3), keepdim=True)
        first = _Edges.apply if x.requires_grad else _edges
        h = F.conv2d(F.relu(first(x, self.first, self.stride)), self.second, padding=1)
        return self._pooled(F.relu(h)).flatten(1)

    def _pooled(self, h: Tensor) -> Tensor:
        """Averages over a coarse grid, [N, positions, 64]."""
        side = h.shape[2]
        if side % _GRID == 0:
            return F.avg_pool2d(h, side // _GRID).permute(0, 2, 3, 1).flatten(1, 2)
        return torch.matmul(self.average, h.permute(0, 2, 3, 1).flatten(1, 2))


def _edges(x: Tensor, filters: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, filters, stride=stride, padding=_KERNEL // 2)


class _Edges(torch.autograd.Function):
    """:func:`_edges`, whose gradient in x is one matrix product and a sum over overlaps.

    On a CPU torch's own, to so few channels, takes two to five times as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, filters: Tensor, stride: int) -> Tensor:
        return _edges(x, filters, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        x, filters, ctx.stride = inputs
        ctx.side = x.shape[-1]
        ctx.save_for_backward(filters)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (filters,) = ctx.saved_tensors
        patches = gradient.permute(0, 2, 3, 1).flatten(1, 2) @ filters.flatten(1)
        sides, padding = (ctx.side, ctx.side), _KERNEL // 2
        columns = patches.transpose(1, 2)
        return F.fold(columns, sides, _KERNEL, padding=padding, stride=ctx.stride), None, None


def chunk_of(side: int) -> int:
    """Images of one pass through a network that has no number of its own."""
    return CHUNK if side <= _LARGE else max(1, CHUNK * _LARGE**2 // side**2)


def _chunk(function: object, images: Tensor) -> int:
    own = getattr(function, "chunk", None)
    if isinstance(own, int):
        return own
    return chunk_of(images.shape[2]) if images.ndim == 4 else CHUNK  # else they are features


@torch.no_grad()
def in_chunks(
    function: Callable[[Tensor], Tensor], images: Tensor, chunk: int | None = None
) -> Tensor:
    """Apply ``function`` to images in bounded pieces, without gradients; the result is on CPU."""
    pieces = torch.split(images, chunk or _chunk(function, images))
    return torch.cat([function(piece).float().cpu() for piece in pieces])


def one_by_one(
    function: Callable[[Tensor], Tensor], images: Tensor, chunk: int | None = None
) -> Tensor:
    """:func:`in_chunks`, bit for bit the same for an image whatever the others are.

    A short batch is multiplied by another kernel, whose last bits differ: all chunks
    are made equally long, or one image more would change the others' features.
    """
    chunk = chunk or _chunk(function, images)
    padding = torch.zeros(-len(images) % chunk, *images.shape[1:]).to(images)
    return in_chunks(function, torch.cat([images, padding]), chunk)[: len(images)]


@torch.no_grad()
def _projection(
    body: nn.Module, shape: ImageShape, width: int, draw: np.random.Generator, name: str
) -> NDArray[np.float64]:
    """Public projection [d, m] of a body's features.

    Where the network has a public classifier, the directions that it reads most: 1 to 10
    points better on natural images than random ones of equal number (docs/decisions/0032).
    """
    features = body(torch.zeros(2, shape.channels, shape.size, shape.size))
    if features.ndim != 2 or len(features) != 2:
        raise ConfigError(
            f"extractor {name!r} gives features of shape {list(features.shape)} for two images",
            hint="let it return [N, d]; nn.Flatten() is often what is missing",
        )
    if not torch.isfinite(features).all():
        raise ConfigError(
            f"extractor {name!r} gives features of black images that are not finite",
            hint="check its weights and its normalisation: pixels are given in [0, 1]",
        )
    inner = features.shape[1]
    matrix = getattr(body, "classifier", None) if isinstance(body, Pretrained) else None
    if matrix is None or matrix.shape[1] != inner:  # some classifiers read a layer before
        random: NDArray[np.float64] = draw.standard_normal((inner, width)) / np.sqrt(inner)
        return random
    if width > min(matrix.shape):
        raise ConfigError(
            f"method.anchor = {width} with extractor {name!r}, which has {min(matrix.shape)} "
            "directions",
            hint="lower method.anchor",
        )
    rows = matrix.double().cpu().numpy()
    _, _, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    kept: NDArray[np.float64] = directions[:width]
    # A singular vector has no sign of its own: the same one on every machine.
    largest = np.take_along_axis(kept, np.abs(kept).argmax(1)[:, None], axis=1)
    return (kept * np.sign(largest)).T


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
        body(torch.zeros(2, shape.channels, shape.size, shape.size))  # fills lazy layers
        return body.requires_grad_(False)


EXTRACTORS.register("random", None)


def extractor_of(config: Config, shape: ImageShape, classes: int) -> Anchor | None:
    """The frozen extractor of a run, in evaluation mode; None where its method shares none.

    Args:
        classes: Number C of classes, on which the width depends under a privacy mode.
    """
    if METHODS.find(config.method.name).shared(config) != "anchored":
        return None
    return frozen(config, shape, classes)


_alive: WeakValueDictionary[Any, Anchor] = WeakValueDictionary()


def frozen(config: Config, shape: ImageShape, classes: int) -> Anchor:
    """The frozen extractor that the settings name, in evaluation mode, whatever they share.

    One for as long as it is in use: a pretrained network and the features of a run's images
    are in a process once.

    Args:
        classes: Number C of classes, on which the width depends under a privacy mode.
    """
    method, seed = config.method, derive_seed(config.seed, "anchor")
    width = anchor_width(config, classes)
    source = source_of(method.extractor, method.extractor_weights)
    # A name may come to stand for something else: what is lent to one run, for example.
    thing = EXTRACTORS.find(method.extractor) if source is None else source.sha256
    key = (shape, width, seed, method.extractor, method.extractor_weights, thing)
    anchor = _alive.get(key)
    if anchor is None:
        anchor = Anchor(shape, width, seed, method.extractor, method.extractor_weights).eval()
        _alive[key] = anchor
    _check_hash(method, anchor.sha256)
    return anchor


def pinned(config: Config) -> Config:
    """Settings that name the hash of their pretrained extractor, so that a run does.

    Raises:
        ConfigError: No such extractor, or not the one of ``method.extractor_sha256``.
    """
    method = config.method
    source = source_of(method.extractor, method.extractor_weights)
    if source is None:
        EXTRACTORS.find(method.extractor)
    digest = source.sha256 if source else ""
    _check_hash(method, digest)
    return (
        config
        if digest == method.extractor_sha256
        else config.replace(method={"extractor_sha256": digest})
    )


def _check_hash(method: MethodSettings, digest: str) -> None:
    if method.extractor_sha256 not in ("", digest):
        name, here = Path(method.extractor).name, digest[:16] or "none"
        raise ConfigError(
            f"extractor {name!r} here has sha256 {here}…, the run's has "
            f"{method.extractor_sha256[:16]}…",
            hint="features of two extractors cannot be added: use the same file everywhere",
        )


@torch.no_grad()
def centre(anchor: Anchor, shape: ImageShape) -> NDArray[np.float64]:
    """Mean direction of R over public noise images, [m]: where features lie without any data.

    Private releases are about this point: what all pictures share needs no sensitivity. Of a
    pretrained network it is the origin: noise is no picture to it, and its features of noise
    are farther from those of pictures than these are from each other (docs/decisions/0033).
    """
    if anchor.sha256:
        return np.zeros(anchor.width)
    draw = np.random.Generator(np.random.Philox(key=_NOISE_SEED))
    noise = draw.random((_NOISE_IMAGES, shape.channels, shape.size, shape.size), np.float32)
    device = anchor.project.device
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
