"""Data sets once loaded, and the checks of arrays that make them.

Loaders call the three checks as soon as they hold an array, so that the error
names the file and the key; `Dataset` calls them again, so that none can exist
that was not checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fedvtc_edge.errors import DataError

Pixels: TypeAlias = npt.NDArray[np.uint8]
Labels: TypeAlias = npt.NDArray[np.int64]

MIN_SIZE, MAX_SIZE, SIZE_STEP = 8, 224, 4
MAX_CLASSES = 10_000

RESIZE_HINT = "set data.image_size, for example --set data.image_size=32"
_CHUNK = 4096  # images converted at a time, so that a float copy never doubles the memory


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of one classification task, checked.

    Construction converts what may be converted (see `as_pixels`, `as_labels`)
    and refuses the rest.

    Attributes:
        name: What reports call it.
        x_train: uint8 [N, H, W, C], 0 to 255; H = W, a multiple of 4 from 8 to 224; C is 1 or 3.
        y_train: int64 [N], each in 0 to classes - 1.
        x_test: uint8 [M, H, W, C], as `x_train`.
        y_test: int64 [M], as `y_train`.
        class_names: One printable name per class, at least two.
        x_public: Images without labels that all parties have, as `x_train`, or None.

    Raises:
        DataError: An array breaks one of these rules.
    """

    name: str
    x_train: Pixels
    y_train: Labels
    x_test: Pixels
    y_test: Labels
    class_names: tuple[str, ...]
    x_public: Pixels | None = None

    def __post_init__(self) -> None:
        check_class_names(self.class_names, f"{self.name}: class_names")
        for part in ("train", "test"):
            images = as_pixels(getattr(self, f"x_{part}"), f"{self.name}: x_{part}")
            check_canvas(images.shape, f"{self.name}: x_{part}")
            labels = as_labels(getattr(self, f"y_{part}"), f"{self.name}: y_{part}", self.classes)
            check_pairs(images, labels, self.name, f"_{part}")
            # Frozen for everybody else; here the converted arrays take the place of the given.
            object.__setattr__(self, f"x_{part}", images)
            object.__setattr__(self, f"y_{part}", labels)
        if self.x_test.shape[1:] != self.image_shape:
            raise DataError(
                f"{self.name}: x_train holds images {_times(self.image_shape)}, "
                f"x_test {_times(self.x_test.shape[1:])}; expected the same",
                hint=RESIZE_HINT,
            )

    @property
    def classes(self) -> int:
        """Number of classes, at least 2; some may have no image."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        _, height, width, channels = self.x_train.shape
        return height, width, channels


def as_pixels(array: npt.NDArray[Any], where: str) -> Pixels:
    """Images as uint8 [N, H, W, C].

    Args:
        array: uint8 in 0 to 255 or float in [0, 1] (scaled by 255 and rounded),
            [N, H, W, C] with 1 or 3 channels, or greyscale [N, H, W].
        where: File and key, for the error.

    Raises:
        DataError: Other dtype, rank or channel count, no images, NaN, or a value out of range.
    """
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise DataError(
            f"{where}: shape {list(array.shape)}; expected [N, H, W, 1], [N, H, W, 3] or [N, H, W]",
            hint="put the channels last: x.transpose(0, 2, 3, 1)",
        )
    if array.size == 0:
        raise DataError(
            f"{where}: no images (shape {list(array.shape)}); expected at least one",
            hint="both the training and the test set need images",
        )
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"{where}: dtype {array.dtype}; expected uint8, or float in [0, 1]",
            hint="convert the images: x.astype('uint8')",
        )
    pixels = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), _CHUNK):
        chunk = array[start : start + _CHUNK]
        _check_floats(chunk, where)
        pixels[start : start + _CHUNK] = np.rint(chunk.astype(np.float64) * 255)
    return pixels


def _check_floats(chunk: npt.NDArray[Any], where: str) -> None:
    if np.isnan(chunk).any():
        raise DataError(
            f"{where}: contains NaN; expected finite numbers in [0, 1]",
            hint="find them with np.isnan(x).nonzero() and leave those images out",
        )
    low, high = chunk.min(), chunk.max()
    if low < 0 or high > 1:
        raise DataError(
            f"{where}: float images from {low:g} to {high:g}; expected [0, 1]",
            hint="scale them to [0, 1], or store them as uint8 in 0 to 255",
        )


def as_labels(array: npt.NDArray[Any], where: str, classes: int | None = None) -> Labels:
    """Labels as int64 [N].

    Args:
        array: [N], any integer dtype.
        where: File and key, for the error.
        classes: Number of classes, or None while it is not known (then `MAX_CLASSES`).

    Raises:
        DataError: Other rank or dtype, or a label outside 0 to classes - 1.
    """
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{where}: {array.dtype} labels of shape {list(array.shape)}; expected integers [N]",
            hint="convert the labels: y.reshape(-1).astype('int64')",
        )
    bound = MAX_CLASSES if classes is None else classes
    # Compared before the cast: a large uint64 would turn negative, and small again, by it.
    if array.size and (array.min() < 0 or array.max() >= bound):
        raise DataError(
            f"{where}: labels from {array.min()} to {array.max()}; expected 0 to {bound - 1}",
            hint="number the classes from 0, one number per entry of class_names",
        )
    return array.astype(np.int64, copy=False)


def check_pairs(
    images: npt.NDArray[Any], labels: npt.NDArray[Any], where: str, suffix: str
) -> None:
    """Refuse images and labels of different number.

    Args:
        images: [N, ...].
        labels: [N].
        where: File, for the error.
        suffix: Of the keys x and y, such as ``_train``.

    Raises:
        DataError: The numbers differ.
    """
    if len(images) != len(labels):
        raise DataError(
            f"{where}: x{suffix} has {len(images)} images, y{suffix} {len(labels)} labels; "
            "expected as many labels as images",
            hint="save images and labels of the same samples, in the same order",
        )


def check_canvas(shape: tuple[int, ...], where: str) -> None:
    """Refuse image sizes that the models and the decoder cannot have.

    Args:
        shape: [..., H, W, C].
        where: File and key, for the error.

    Raises:
        DataError: Not square, not 8 to 224 pixels, or not a multiple of 4.
    """
    height, width = shape[-3:-1]
    if height != width or not MIN_SIZE <= height <= MAX_SIZE or height % SIZE_STEP:
        raise DataError(
            f"{where}: images of {height}x{width} pixels; expected square ones of "
            f"{MIN_SIZE} to {MAX_SIZE} pixels, a multiple of {SIZE_STEP}",
            hint=RESIZE_HINT,
        )


def check_class_names(names: tuple[str, ...], where: str) -> None:
    """Refuse names that cannot stand for classes.

    Raises:
        DataError: Fewer than two, more than `MAX_CLASSES`, or one that cannot be printed.
    """
    if not 2 <= len(names) <= MAX_CLASSES:
        raise DataError(
            f"{where}: {len(names)} classes; expected 2 to {MAX_CLASSES}",
            hint="a classification task needs at least two classes",
        )
    for name in names:
        # They end up in terminals: an escape sequence in a file must not be obeyed there.
        if not isinstance(name, str) or not name or len(name) > 200 or not name.isprintable():
            raise DataError(
                f"{where}: {str(name)[:40]!r} is no class name; "
                "expected 1 to 200 printable characters",
                hint="rename the class",
            )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(str(extent) for extent in shape)


class Samples(NamedTuple):
    """One client's data.

    Args:
        images: uint8 [N, H, W, C].
        labels: int64 [N].
    """

    images: Pixels
    labels: Labels
