"""Images without labels that all parties have: what a method may teach by beside private data."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from fedvtc_edge.errors import DataError

from .dataset import RESIZE_HINT, Pixels
from .splits import Split, subset

if TYPE_CHECKING:
    from fedvtc_edge.config import DataSettings

PUBLIC = 1000
"""Images at most: of more, as many are drawn, whatever the run's seed is."""

REST = "rest"
"""``data.public`` for the training images that ``data.limit`` leaves out."""

_SEED = 1_000_081


def rest_of(train: Split, limit: int, kept: np.typing.NDArray[np.int64]) -> Split:
    """Images of a training set that a run leaves out.

    Args:
        kept: Indices of those that it keeps.

    Raises:
        DataError: It keeps all.
    """
    left = np.setdiff1d(np.arange(len(train.labels)), kept)
    if not len(left):
        raise DataError(
            f'data.public = "{REST}" with data.limit = {limit}: no training image is left over',
            hint=f"set data.limit below {len(train.labels)}, or name another data set",
        )
    return train.take(left)


def public_images(split: Split, settings: DataSettings, shape: tuple[int, int, int]) -> Pixels:
    """Some images of a split, uint8 [P, H, W, C]; their labels are dropped.

    Args:
        shape: (H, W, C) of the run's own images.

    Raises:
        DataError: No images, damaged ones, or some of another shape.
    """
    chosen = split.take(subset(len(split.labels), PUBLIC, _SEED))
    pixels = chosen.read(settings.image_size or shape[0])
    if pixels.shape[1:] != shape:
        raise DataError(
            f"data.public = {settings.public!r:.80}: images of shape {pixels.shape[1:]}, those of "
            f"{settings.name!r:.80} have {shape}",
            hint=RESIZE_HINT if pixels.shape[3] == shape[2] else "both must be grey or in colour",
        )
    return pixels


def digest_of_images(pixels: Pixels | None) -> str:
    """SHA-256 of images and their shape, by which two parties know that they have the same."""
    if pixels is None:
        return ""
    whole = hashlib.sha256(repr(pixels.shape).encode())
    whole.update(np.ascontiguousarray(pixels).tobytes())
    return whole.hexdigest()
