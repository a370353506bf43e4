"""What is given to a graph, checked before it runs.

A graph does not complain: label -1 wraps to the last class, noise that is not a
number paints black.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvtc_edge.errors import BundleError

from .codes import LARGEST
from .manifest import Image


def as_labels(
    labels: ArrayLike, names: Sequence[str], known: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Labels as int64 [N].

    Args:
        labels: [N] whole numbers, N at least 1.
        names: Of the C classes.
        known: Classes [C] that can be painted.

    Raises:
        BundleError: Another type or shape, a label outside 0…C-1 or of an unknown class.
    """
    try:
        given = np.asarray(labels)
    except (TypeError, ValueError) as error:  # rows of unequal length
        raise BundleError(f"labels: {error}", hint="for example [0, 1, 2]") from None
    if given.ndim != 1 or given.dtype.kind not in "iu" or not given.size:
        raise BundleError(
            f"labels: {given.dtype} of shape {list(given.shape)}, expected whole numbers [N], "
            "at least one",
            hint="for example [0, 1, 2]",
        )
    # Compared before the cast, by which a large uint64 would turn negative.
    if given.min() < 0 or given.max() >= len(names):
        off = given.min() if given.min() < 0 else given.max()
        raise BundleError(
            f"label {off}, expected 0 to {len(names) - 1}",
            hint="labels are positions in the manifest's classes",
        )
    wanted = given.astype(np.int64)
    unknown = np.unique(wanted[~known[wanted]])
    if unknown.size:
        raise BundleError(
            f"label {unknown[0]} ({names[unknown[0]]}): no client had a sample of it, "
            "so nobody can paint it",
            hint="leave that class out",
        )
    return wanted


def check_noise(noise: Any, count: int, latent: int) -> None:
    """Refuse noise that is not float32 [count, latent] and finite.

    Raises:
        BundleError: It is not.
    """
    if not isinstance(noise, np.ndarray) or noise.dtype != np.float32:
        got = noise.dtype if isinstance(noise, np.ndarray) else type(noise).__name__
        raise BundleError(f"noise: {got}, expected float32", hint="noise.astype('float32')")
    if noise.shape != (count, latent):
        raise BundleError(
            f"noise of shape {list(noise.shape)}, expected [{count}, {latent}]",
            hint="one row of the bundle's latent width per label",
        )
    if not (np.abs(noise) <= LARGEST).all():  # NaN compares false
        raise BundleError(
            f"noise holds NaN or infinity, or a value beyond {LARGEST:g}",
            hint="draw it with Bundle.noise",
        )


def check_images(images: Any, form: Image) -> None:
    """Refuse images that are not uint8 [N, H, W, channels] of the bundle's size.

    Raises:
        BundleError: They are not.
    """
    expected = (form.size, form.size, form.channels)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        got = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise BundleError(f"images: {got}, expected uint8", hint="pixels from 0 to 255")
    if images.ndim != 4 or images.shape[1:] != expected or not len(images):
        raise BundleError(
            f"images of shape {list(images.shape)}, expected [N, "
            f"{', '.join(map(str, expected))}] with N at least 1",
            hint="fedvtc-edge classify brings files into this form",
        )
