"""Image files to a bundle's input, and synthesised images to a picture with labels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fedvtc_edge.data.images import decode, resized
from fedvtc_edge.errors import BundleError

from .manifest import Image as ImageForm

Images = NDArray[np.uint8]

MAX_IMAGE_BYTES = 200_000_000
MAX_SIDE = 16_000
"""Longest side of a grid in pixels: what viewers still open."""

_CELL = 48
"""Side that small images are enlarged to, in pixels; larger ones keep their own."""

_GAP, _TEXT, _LONGEST = 2, 14, 24
_PAPER, _INK = 255, 0


def read(path: Path, form: ImageForm) -> Images:
    """One image file as uint8 [H, W, channels], as training reads image folders.

    Raises:
        BundleError: No such file, or one that is too large.
        DataError: Not an image that Pillow reads.
    """
    try:
        if not path.is_file():
            what = "a folder" if path.is_dir() else "no such file"
            raise BundleError(f"{path}: {what}", hint="give the paths of image files")
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}", hint="check the path") from None
    if len(data) > MAX_IMAGE_BYTES:
        raise BundleError(f"{path}: over {MAX_IMAGE_BYTES} bytes", hint="store the image smaller")
    return resized(decode(data, str(path), form.channels), form.size)


def grid(images: Images, names: Sequence[str]) -> bytes:
    """A PNG with one row of images per name, the name to its left.

    Args:
        images: uint8 [rows · n, H, W, channels], row after row.
        names: Names of the rows.

    Raises:
        BundleError: A picture too large for viewers.
    """
    count, height, width, channels = images.shape
    columns = count // len(names)
    factor = max(1, _CELL // height)
    cell = factor * height + _GAP
    font = ImageFont.load_default(_TEXT)
    texts = [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…" for name in names]
    margin = 4 * _GAP + max(int(np.ceil(font.getlength(text))) for text in texts)
    size = (margin + columns * cell, max(len(names) * cell + _GAP, _TEXT))
    if max(size) > MAX_SIDE:
        raise BundleError(
            f"a picture of {size[0]}x{size[1]} pixels, expected at most {MAX_SIDE} a side",
            hint="ask for fewer images, or write an .npz file",
        )
    paper = Image.new("L" if channels == 1 else "RGB", size, _PAPER if channels == 1 else "white")
    draw = ImageDraw.Draw(paper)
    for row, text in enumerate(texts):
        top = _GAP + row * cell
        draw.text(
            (2 * _GAP, top + (cell - _GAP) / 2),
            text,
            font=font,
            fill=_INK if channels == 1 else "black",
            anchor="lm",
        )
        for column in range(columns):
            pixels = images[row * columns + column]
            tile = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            tile = tile.resize((width * factor, height * factor), Image.Resampling.NEAREST)
            paper.paste(tile, (margin + column * cell, top))
    buffer = io.BytesIO()
    paper.save(buffer, "PNG")
    return buffer.getvalue()
