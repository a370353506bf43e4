"""Five small bodies for 8–64 px images, unequal on purpose, as edge fleets are.

A body maps images [N, channels, H, W] in [0, 1] to flat activations [N, d];
:class:`~fedvtc_edge.models.classifier.Classifier` adds projection and head.
"""

from __future__ import annotations

from torch import nn

from .blocks import InvertedResidual, Residual, Shuffle, conv
from .registry import ImageShape, register


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
