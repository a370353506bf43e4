"""Layers that several architectures share. GroupNorm only: no batch statistics leak or drift."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn


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
