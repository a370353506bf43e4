"""Parts of a data set: labels at once, images only when and where asked for.

That keeps the test set unread while settings are chosen, and
lets a small ``limit`` decode few images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from fedvtc_edge.errors import DataError

from .dataset import RESIZE_HINT, Labels, Pixels, check_canvas

Part: TypeAlias = Literal["train", "test"]

Fetch: TypeAlias = Callable[[Labels], Iterable[tuple[str, Pixels]]]
"""Indices int64 [M] → images uint8 [h, w, c] in that order, each with its name for errors."""


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set, its images not yet read.

    Attributes:
        origin: File, folder or library, as errors name it.
        part: Which part it was stored as.
        labels: int64 [N].
        fetch: Reads images.
    """

    origin: str
    part: Part
    labels: Labels
    fetch: Fetch

    @classmethod
    def of_array(cls, origin: str, part: Part, images: Pixels, labels: Labels) -> Split:
        """Images that are in memory already, uint8 [N, H, W, C]."""
        return cls(origin, part, labels, lambda indices: ((origin, images[i]) for i in indices))

    def take(self, indices: Labels) -> Split:
        """The samples at `indices` [M], in that order."""
        return Split(
            self.origin, self.part, self.labels[indices], lambda inner: self.fetch(indices[inner])
        )

    def read(self, size: int, check: Callable[[str, Pixels], None] | None = None) -> Pixels:
        """All images, uint8 [N, H, W, C].

        Args:
            size: Pixels to resize to (stretching what is not square), or 0 to keep the size.
            check: Called with each image's name and the image before it is resized.

        Raises:
            DataError: No image, a damaged one, or, with `size` 0, sizes that differ or do not fit.
        """
        where = f"{self.origin}: x_{self.part}"
        pixels: Pixels | None = None
        images = self.fetch(np.arange(len(self.labels), dtype=np.int64))
        for position, (name, image) in enumerate(images):
            if check is not None:
                check(name, image)
            if size:
                from .images import resized  # Pillow is not part of the smallest installation

                image = resized(image, size)
            if pixels is None:
                # Before the allocation: it bounds one image to 224 × 224 × 3 bytes.
                check_canvas(image.shape, where)
                pixels = np.empty((len(self.labels), *image.shape), np.uint8)
            if image.shape != pixels.shape[1:]:
                raise DataError(
                    f"{where}: images of {_size(pixels[0])} and of {_size(image)}; "
                    "expected one size",
                    hint=RESIZE_HINT,
                )
            pixels[position] = image
        if pixels is None:
            raise DataError(f"{where}: no images", hint="expected at least one")
        return pixels


@dataclass(frozen=True, eq=False)
class Source:
    """A data set that was found, its parts not yet opened.

    Attributes:
        name: What reports call it.
        class_names: One per class, or empty to number them by the training labels.
        open: Opens a part, reading its labels.
    """

    name: str
    class_names: tuple[str, ...]
    open: Callable[[Part], Split]


def stratified(labels: Labels, held: int, seed: int) -> tuple[Labels, Labels]:
    """Hold out the same share of every class.

    Args:
        labels: int64 [N].
        held: How many samples to hold out, 0 to N. The shares of the classes are
            rounded by largest remainder, so that they add up to it.

    Returns:
        Indices kept and indices held out, each sorted.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (held / max(len(labels), 1))
    quota = np.floor(exact).astype(np.int64)
    remainders = np.argsort(quota - exact, kind="stable")  # the largest first
    quota[remainders[: held - int(quota.sum())]] += 1
    out = np.zeros(len(labels), bool)
    for label, count in zip(classes, quota, strict=True):
        out[rng.permutation(np.flatnonzero(labels == label))[:count]] = True
    return np.flatnonzero(~out), np.flatnonzero(out)


def subset(total: int, limit: int, seed: int) -> Labels:
    """Sorted indices of `limit` samples out of `total`, drawn without replacement; 0 is all."""
    if not 0 < limit < total:
        return np.arange(total, dtype=np.int64)
    chosen = np.random.default_rng(seed).choice(total, limit, replace=False)
    return np.sort(chosen).astype(np.int64, copy=False)


def _size(image: Pixels) -> str:
    return "x".join(str(extent) for extent in image.shape)
