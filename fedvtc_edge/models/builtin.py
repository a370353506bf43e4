"""Built-in architectures: five small bodies, and torchvision's networks as bodies.

A body maps images [N, channels, H, W] in [0, 1] to flat activations [N, d];
:class:`~fedvtc_edge.models.classifier.Classifier` adds projection and head. The small ones
are for 8–64 px and unequal on purpose, as edge fleets are. GroupNorm everywhere: no batch
statistics leak or drift.

The strides of torchvision's networks are made for 224 px, so smaller images are enlarged to
at least 32 px first, and their BatchNorm becomes GroupNorm. No weights are ever downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from fedvtc_edge.errors import MissingExtra

from .registry import ImageShape, register


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with about eight channels a group, whatever ``channels`` divides by."""
    return nn.GroupNorm(math.gcd(max(1, channels // 8), channels), channels)


def conv(cin: int, cout: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, GroupNorm, ReLU; "same" padding."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        group_norm(cout),
        nn.ReLU(),
    )


class Residual(nn.Module):
    """Basic residual block (He et al. 2016) with GroupNorm."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.first = conv(cin, cout, 3, stride=stride)
        self.second = nn.Sequential(nn.Conv2d(cout, cout, 3, 1, 1, bias=False), group_norm(cout))
        same = cin == cout and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(cin, cout, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] → [N, cout, H/stride, W/stride]."""
        return torch.relu(self.second(self.first(x)) + self.skip(x))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (Sandler et al. 2018), with GroupNorm."""

    def __init__(self, cin: int, cout: int, stride: int, expansion: int = 3) -> None:
        super().__init__()
        wide = cin * expansion
        self.body = nn.Sequential(
            conv(cin, wide, 1),
            conv(wide, wide, 3, stride=stride, groups=wide),
            nn.Conv2d(wide, cout, 1, bias=False),
            group_norm(cout),
        )
        self.residual = cin == cout and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """[N, cin, H, W] → [N, cout, H/stride, W/stride]."""
        y = cast(Tensor, self.body(x))
        return x + y if self.residual else y


class Shuffle(nn.Module):
    """Split, convolve one half, shuffle channels (Ma et al. 2018), with GroupNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv(half, half, 1),
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False),
            group_norm(half),
            conv(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] → the same shape."""
        left, right = x.chunk(2, dim=1)
        pair = torch.stack([left, self.branch(right)], dim=2)
        return pair.flatten(1, 2)


def _stem(shape: ImageShape, width: int) -> nn.Sequential:
    """First layer; halves images of more than 16 px so that cost stays edge-sized."""
    return conv(shape.channels, width, 3, stride=2 if shape.size > 16 else 1)


@register("lenet")
def lenet(shape: ImageShape) -> nn.Module:
    """Two convolutions with max pooling (LeCun et al. 1998)."""
    kernel = 3 if shape.size <= 16 else 5
    return nn.Sequential(
        conv(shape.channels, 16, kernel),
        nn.MaxPool2d(2),
        conv(16, 32, kernel),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )


@register("resnet8")
def resnet8(shape: ImageShape) -> nn.Module:
    """Three residual blocks, the smallest member of the CIFAR ResNet family."""
    return nn.Sequential(
        _stem(shape, 16),
        Residual(16, 16, 1),
        Residual(16, 32, 2),
        Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(2 if shape.size % 16 else 4) if shape.size > 16 else nn.Identity(),
        nn.Flatten(),
    )


@register("mobilenet")
def mobilenet(shape: ImageShape) -> nn.Module:
    """Inverted residuals with depthwise convolutions."""
    return nn.Sequential(
        _stem(shape, 16),
        InvertedResidual(16, 24, 2),
        InvertedResidual(24, 24, 1),
        InvertedResidual(24, 48, 2),
        nn.Flatten(),
    )


@register("shufflenet")
def shufflenet(shape: ImageShape) -> nn.Module:
    """Channel split and shuffle."""
    return nn.Sequential(
        _stem(shape, 32),
        Shuffle(32),
        conv(32, 48, 3, stride=2),
        Shuffle(48),
        conv(48, 64, 3, stride=2),
        nn.Flatten(),
    )


@register("mlp")
def mlp(shape: ImageShape) -> nn.Module:
    """Two hidden layers on raw pixels: the client with no convolution at all."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(shape.channels * shape.size**2, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
    )


def _without_batch_norm(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, group_norm(child.num_features))
        else:
            _without_batch_norm(child)
    return module


def _first_conv(module: nn.Module, channels: int) -> None:
    """Give the first convolution the images' number of channels."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d):
            fresh = nn.Conv2d(
                channels, child.out_channels, 3, child.stride[0], 1, bias=child.bias is not None
            )
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], fresh)
            return


def _adapt(name: str, last: str) -> Callable[[ImageShape], nn.Module]:
    def build(shape: ImageShape) -> nn.Module:
        try:
            from torchvision import models
        except (ImportError, OSError, RuntimeError) as error:
            raise MissingExtra(
                f"torchvision does not import: {error}",
                hint="torch and torchvision must come from one index: "
                "pip install --force-reinstall torch torchvision",
            ) from None
        network: nn.Module = getattr(models, name)(weights=None)
        setattr(network, last, nn.Identity())
        _first_conv(network, shape.channels)
        _without_batch_norm(network)
        factor = -(-32 // shape.size)
        enlarge = nn.Upsample(scale_factor=factor) if factor > 1 else nn.Identity()
        return nn.Sequential(enlarge, network)

    build.__doc__ = f"torchvision's {name} without its last layer."
    return build


_LAST = {"mobilenet_v3_small": "classifier", "shufflenet_v2_x0_5": "fc", "resnet18": "fc"}
for _name, _layer in _LAST.items():
    register(_name)(_adapt(_name, _layer))


def from_torchvision(architecture: str) -> bool:
    """True if building the network imports torchvision, and with it torch's compiler."""
    return architecture in _LAST
