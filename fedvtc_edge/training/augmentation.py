"""Pictures that are drawn from few images: warped, and joined in pairs.

What they show need not look real: a teacher labels each, so that all of them tell the
student how the teacher sees strokes and textures that no single image has. Draws are
made on the CPU, by one stream, whatever the device is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ROTATION = 0.175
"""Most, in radians."""
ZOOM = 0.15
"""Most, as a logarithm; as much again for a stretch of either axis."""
SHEAR = 0.125
SHIFT = 0.15
"""Most, in halves of the width."""
ELASTIC = 0.04
"""Standard deviation of the field of shifts, on a grid of 4 × 4, in halves of the width."""

PLAIN = 0.3
"""Share of images that are not warped."""
COLLAGES, AVERAGES = 0.6, 0.15
"""Shares of pairs that are joined along a border, and that are averaged."""


def warp(images: Tensor, stream: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """Turned, zoomed, sheared, shifted and bent images, by one bilinear look-up each.

    Colour images are mirrored with probability ½: digits are not.

    Args:
        images: [N, channels, size, size].
        strength: Factor of all ranges; 0 gives the images back.

    Returns:
        As many images, whose pixels are weighted means of the original's.
    """
    count, channels, size, _ = images.shape

    def uniform(most: float) -> Tensor:
        return strength * most * (2 * torch.rand(count, generator=stream) - 1)

    turn, zoom, stretch, shear = (uniform(most) for most in (ROTATION, ZOOM, ZOOM, SHEAR))
    wide, high = torch.exp(zoom + stretch / 2), torch.exp(zoom - stretch / 2)
    mirrored = torch.rand(count, generator=stream) < 0.5
    if channels == 3 and strength:
        wide = torch.where(mirrored, -wide, wide)
    across = torch.stack([wide * turn.cos(), high * (shear - turn.sin()), uniform(SHIFT)], 1)
    down = torch.stack([wide * turn.sin(), high * turn.cos(), uniform(SHIFT)], 1)
    places = F.affine_grid(
        torch.stack([across, down], 1), [count, 1, size, size], align_corners=False
    )
    if strength:
        field = strength * ELASTIC * torch.randn((count, 2, 4, 4), generator=stream)
        bent = F.interpolate(field, size=(size, size), mode="bicubic", align_corners=False)
        places = places + bent.permute(0, 2, 3, 1)
    return F.grid_sample(
        images, places.to(images.device), padding_mode="border", align_corners=False
    )


def paired(first: Tensor, second: Tensor, stream: torch.Generator) -> Tensor:
    """Pairs of images in one: collages along a smooth random border, averages, or the first.

    A piece of a known class beside a piece of another shows the strokes of
    classes that this client has never seen; the teacher says what they look like.

    Args:
        first: [N, channels, size, size].
        second: As many.
    """
    count, _, size, _ = first.shape
    kind = torch.rand((count, 1, 1, 1), generator=stream)
    share = torch.rand((count, 1, 1, 1), generator=stream)
    mask = torch.where(kind < COLLAGES, borders(count, size, stream), share)
    mask = torch.where(kind < COLLAGES + AVERAGES, mask, torch.ones(())).to(first)
    return mask * first + (1 - mask) * second


def borders(count: int, size: int, stream: torch.Generator) -> Tensor:
    """Masks of 0 and 1 with a smooth random border, [count, 1, size, size], on the CPU."""
    relief = torch.randn((count, 1, 3, 3), generator=stream)
    level = 0.7 * torch.randn((count, 1, 1, 1), generator=stream)
    relief = F.interpolate(relief, size=(size, size), mode="bilinear", align_corners=False)
    return (relief > level).float()
