"""A frozen extractor of one's own: a function from the images' shape to a body, and its name.

Whoever takes part must have the same file. The package freezes the body, projects its
features to ``method.anchor`` numbers and scales them to one length; initial weights are
drawn from the run's public seed, so that they are the same for all.
"""

from torch import nn

from fedvtc_edge.models import ImageShape, register_extractor


@register_extractor("corners")
def corners(shape: ImageShape) -> nn.Module:
    """Random 3×3 filters, pooled; [N, channels, size, size] in [0, 1] to [N, 256]."""
    return nn.Sequential(
        nn.Conv2d(shape.channels, 64, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(shape.size // 2),
        nn.Flatten(),
    )
