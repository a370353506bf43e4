"""The checks that every data set has passed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedvtc_edge.data import Dataset
from fedvtc_edge.data.dataset import as_labels, as_pixels
from fedvtc_edge.errors import DataError


def build(**changes: Any) -> Dataset:
    rng = np.random.default_rng(0)
    fields: dict[str, Any] = {
        "name": "toy",
        "x_train": rng.integers(0, 256, (6, 8, 8, 3), np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": rng.integers(0, 256, (3, 8, 8, 3), np.uint8),
        "y_test": np.array([0, 1, 2]),
        "class_names": ("cat", "dog", "owl"),
    }
    return Dataset(**(fields | changes))


def test_properties() -> None:
    data = build()
    assert data.classes == 3
    assert data.image_shape == (8, 8, 3)


def test_greyscale_without_a_channel_axis_gets_one() -> None:
    data = build(x_train=np.zeros((6, 8, 8), np.uint8), x_test=np.zeros((3, 8, 8), np.uint8))
    assert data.x_train.shape == (6, 8, 8, 1)
    assert data.image_shape == (8, 8, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images_are_scaled_and_rounded(dtype: type) -> None:
    levels = np.arange(256)
    images = np.zeros((5000, 8, 8, 1), dtype)  # more than one chunk of the conversion
    images.reshape(5000, -1)[-4:] = (levels.astype(np.float64) / 255).reshape(4, 64)
    pixels = as_pixels(images, "x")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[-4:].ravel(), levels)
    assert not pixels[:-4].any()


def test_uint8_images_are_not_copied() -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    assert as_pixels(images, "x") is images


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_any_integer_labels_become_int64(dtype: type) -> None:
    labels = as_labels(np.array([0, 2, 1], dtype), "y", 3)
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((6, 64), np.uint8)}, r"toy: x_train: shape \[6, 64\]"),
        ({"x_train": np.zeros((6, 3, 8, 8), np.uint8)}, "x_train: shape"),
        ({"x_train": np.zeros((6, 8, 8, 4), np.uint8)}, "x_train: shape"),
        ({"x_test": np.zeros((0, 8, 8, 3), np.uint8), "y_test": np.zeros(0, int)}, "x_test: no im"),
        ({"x_train": np.zeros((6, 8, 8, 3), np.int64)}, "x_train: dtype int64"),
        ({"x_train": np.zeros((6, 8, 8, 3), object)}, "x_train: dtype object"),
        ({"x_test": np.full((3, 8, 8, 3), np.nan)}, "x_test: contains NaN"),
        ({"x_test": np.full((3, 8, 8, 3), np.inf)}, "x_test: float images from inf to inf"),
        ({"x_test": np.full((3, 8, 8, 3), 255.0)}, "x_test: float images from 255 to 255"),
        ({"x_test": np.full((3, 8, 8, 3), -0.1)}, "x_test: float images from -0.1 to -0.1"),
        ({"y_train": np.zeros(6)}, "y_train: float64 labels"),
        ({"y_train": np.zeros(6, bool)}, "y_train: bool labels"),
        ({"y_train": np.zeros((6, 1), int)}, r"y_train: int64 labels of shape \[6, 1\]"),
        ({"y_train": np.zeros(5, int)}, "x_train has 6 images, y_train 5 labels"),
        ({"y_test": np.array([0, 1, 3])}, "y_test: labels from 0 to 3; expected 0 to 2"),
        ({"y_test": np.array([0, 1, -1])}, "y_test: labels from -1 to 1; expected 0 to 2"),
        ({"y_test": np.array([0, 1, 2**64 - 1], np.uint64)}, "y_test: labels from 0 to 1844"),
        ({"x_test": np.zeros((3, 12, 12, 3), np.uint8)}, "8x8x3, x_test 12x12x3"),
        ({"x_test": np.zeros((3, 8, 8, 1), np.uint8)}, "8x8x3, x_test 8x8x1"),
        ({"class_names": ("cat",)}, "class_names: 1 classes; expected 2 to"),
        ({"class_names": ("cat", "dog", "\x1b[2J")}, "class_names: .* printable"),
        ({"class_names": ("cat", "dog", "")}, "class_names: .* printable"),
    ],
)
def test_refusals_name_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        build(**changes)
    assert caught.value.hint


@pytest.mark.parametrize("shape", [(4, 4), (8, 12), (30, 30), (98, 98), (228, 228)])
def test_sizes_that_no_network_takes_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=f"{shape[0]}x{shape[1]} pixels") as caught:
        build(x_train=np.zeros((6, *shape, 3), np.uint8))
    assert "data.image_size" in caught.value.hint


@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_sizes_that_can_be_painted(size: int) -> None:
    images = np.zeros((6, size, size, 1), np.uint8)
    assert build(x_train=images, x_test=images[:3]).image_shape == (size, size, 1)
