"""Adapters: torchvision's mobile and residual networks as bodies.

Their strides are made for 224 px, so smaller images are enlarged to at least
32 px first; BatchNorm becomes GroupNorm. No weights are ever downloaded.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fedvtc_edge.errors import MissingExtra

from .blocks import group_norm
from .registry import ImageShape, register


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
    """Whether building the network imports torchvision, and with it torch's compiler."""
    return architecture in _LAST
