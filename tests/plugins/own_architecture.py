"""An architecture of one's own: a function from the images' shape to a body, and its name."""

from torch import nn

from fedvtc_edge.models import ImageShape, register


@register("pyramid")
def pyramid(shape: ImageShape) -> nn.Module:
    """Two strided convolutions; [N, channels, size, size] in [0, 1] to [N, 64]."""
    return nn.Sequential(
        nn.Conv2d(shape.channels, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )
