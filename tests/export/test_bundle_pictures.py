"""Image files in, as training reads them; pictures with labels out, as viewers open them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedvtc_edge.config import DataSettings
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import BundleError, DataError
from fedvtc_edge.export import pictures
from fedvtc_edge.export.manifest import Image as Form

GREY, RGB = (
    Form(
        size=8,
        channels=channels,
        colour=colour,
        resize="bilinear, antialiased, stretched to the square",
    )
    for channels, colour in ((1, "grey"), (3, "rgb"))
)


def noise(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# ---------------------------------------------------------------- in


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(8, 8), (32, 20), (5, 40), (300, 300)])
def test_files_are_read_exactly_as_in_training(
    tmp_path: Path, kind: str, mode: str, size: tuple[int, int]
) -> None:
    """The same files as a data set and one by one: not a pixel differs."""
    for part in ("train", "test"):
        for number, label in enumerate(("cat", "dog")):
            folder = tmp_path / "toy" / part / label
            folder.mkdir(parents=True)
            image = Image.fromarray(noise(size[1], size[0], 3, seed=number)).convert(mode)
            image.save(folder / f"1.{kind.lower()}", kind)
    data = load_dataset(DataSettings(name=str(tmp_path / "toy"), image_size=8))
    form = GREY if data.image_shape[-1] == 1 else RGB
    for number, label in enumerate(("cat", "dog")):
        path = tmp_path / "toy" / "test" / label / f"1.{kind.lower()}"
        got = pictures.read(path, form)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, data.x_test[number])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("form", [GREY, RGB], ids=["grey", "rgb"])
def test_every_mode_is_brought_into_form(tmp_path: Path, mode: str, form: Form) -> None:
    path = tmp_path / "image"  # the name does not matter, the content does
    image = Image.fromarray(noise(12, 9, 3)).convert(mode)
    image.save(path, "JPEG" if mode == "CMYK" else "PNG")
    got = pictures.read(path, form)
    assert (got.shape, got.dtype) == ((8, 8, form.channels), np.uint8)
    if form.channels == 3 and mode in ("1", "L", "LA"):
        assert (got == got[..., :1]).all()


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"%PDF-1.4", b"\0" * 99]
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png: cannot be read as an image"):
        pictures.read(path, GREY)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.fromarray(noise(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"half\.png: cannot be read"):
        pictures.read(path, GREY)


def test_an_image_of_another_depth_is_named(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(noise(9, 9).astype(np.uint16) * 257).save(path)
    with pytest.raises(DataError, match=r"deep\.png: .*8 bits per channel"):
        pictures.read(path, GREY)


def test_a_file_that_is_too_large_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "decode", lambda *_: pytest.fail("decoded"))
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(pictures.MAX_IMAGE_BYTES + 1)
    with pytest.raises(BundleError, match=r"large\.png: over 200000000 bytes"):
        pictures.read(path, GREY)


@pytest.mark.parametrize(
    ("name", "reason"), [("absent.png", "no such file"), (".", "a folder"), ("x" * 300, "x: ")]
)
def test_what_is_no_file_is_named(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        pictures.read(tmp_path / name, GREY)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="pipe: no such file"):
        pictures.read(tmp_path / "pipe", GREY)


# ---------------------------------------------------------------- out


def decoded(data: bytes) -> Any:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.asarray(image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "factor"), [(8, 6), (28, 1), (64, 1)])
@pytest.mark.parametrize(("names", "columns"), [(["a"], 1), (["cat", "a long dog"], 3)])
def test_every_image_is_in_the_grid_where_it_belongs(
    channels: int, side: int, factor: int, names: list[str], columns: int
) -> None:
    """Enlarged by whole factors, so that every pixel can be read back."""
    images = noise(len(names) * columns, side, side, channels)
    picture = decoded(pictures.grid(images, names))
    cell = side * factor + 2
    assert picture.ndim == (2 if channels == 1 else 3)
    assert picture.shape[0] == len(names) * cell + 2
    margin = picture.shape[1] - columns * cell
    assert margin > 8
    picture = picture.reshape(*picture.shape[:2], channels)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = 2 + row * cell, margin + column * cell
        tile = picture[top : top + side * factor, left : left + side * factor]
        np.testing.assert_array_equal(tile[::factor, ::factor], image)
        np.testing.assert_array_equal(tile[factor - 1 :: factor, factor - 1 :: factor], image)
    text = picture[:, :margin]
    assert text.min() < 128 < text.max()  # black on white: the names


def test_each_row_has_its_own_name() -> None:
    images = noise(2, 8, 8, 1)
    one, other = (decoded(pictures.grid(images, names)) for names in (["ab", "cd"], ["cd", "ab"]))
    margin = one.shape[1] - 50
    assert one.shape == other.shape
    assert (one[:51, :margin] != other[:51, :margin]).any()
    np.testing.assert_array_equal(one[2:50, :margin], other[52:100, :margin])


def test_a_long_name_is_cut() -> None:
    images = noise(1, 8, 8, 1)
    short, long = (decoded(pictures.grid(images, ["m" * n])).shape[1] for n in (24, 200))
    assert long <= short + 14


@pytest.mark.parametrize("name", ["chien été", "犬", "🐕", "a\u0301", "שלום"])
def test_names_of_any_script_are_drawn(name: str) -> None:
    assert decoded(pictures.grid(noise(1, 8, 8, 3), [name])).shape[2] == 3


@pytest.mark.parametrize(("rows", "columns"), [(1, 400), (400, 1)])
def test_a_picture_too_large_for_viewers_is_refused(rows: int, columns: int) -> None:
    images = np.zeros((rows * columns, 8, 8, 1), np.uint8)
    with pytest.raises(BundleError, match="expected at most 16000 a side") as error:
        pictures.grid(images, ["a"] * rows)
    assert ".npz" in error.value.hint


def test_the_same_images_give_the_same_bytes() -> None:
    images = noise(6, 8, 8, 3)
    one, other = (pictures.grid(images, ["a", "b"]) for _ in range(2))
    assert one == other
