"""Image files to pixels, and pixels to another size, by Pillow."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fedvtc_edge.errors import DataError, MissingExtra

from .dataset import Pixels

try:
    from PIL import Image, UnidentifiedImageError
except ImportError as error:  # pragma: no cover - the tests need Pillow
    raise MissingExtra(
        f"reading or resizing images needs Pillow: {error}",
        hint="pip install pillow",
    ) from None

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".webp"})
MAX_PIXELS = 64_000_000

# Pillow knows some forty formats; those nobody keeps data sets in stay closed to strangers' bytes.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")
_GREY = frozenset({"1", "L", "LA"})
_COLOUR = frozenset({"RGB", "RGBA", "P", "CMYK", "YCbCr"})


def decode(data: bytes, where: str, channels: int) -> Pixels:
    """One image file as uint8 [h, w, channels].

    Args:
        data: The file's bytes.
        where: The file's name, for the error.
        channels: 1 or 3; grey is repeated and colour is averaged as needed.

    Raises:
        DataError: Damaged, truncated, of another format or depth, or over `MAX_PIXELS` pixels.
    """
    with _opened(data, where) as image:
        return to_pixels(image, channels)


def is_grey(data: bytes, where: str) -> bool:
    """True if an image file holds one channel; reads its header alone.

    Raises:
        DataError: As `decode`.
    """
    with _opened(data, where) as image:
        return image.mode in _GREY


def to_pixels(image: Image.Image, channels: int | None = None) -> Pixels:
    """A Pillow image as uint8 [h, w, channels]; None keeps grey at 1 and makes all else 3."""
    if channels is None:
        channels = 1 if image.mode in _GREY else 3
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns of a palette with transparency otherwise
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return pixels[..., np.newaxis] if channels == 1 else pixels


def resized(image: Pixels, size: int) -> Pixels:
    """One image [h, w, C] stretched to [size, size, C], bilinear and antialiased."""
    if image.shape[:2] == (size, size):
        return image
    grey = image.shape[2] == 1
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image))
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR), dtype=np.uint8)
    return pixels[..., np.newaxis] if grey else pixels


@contextmanager
def _opened(data: bytes, where: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            # The header alone was read so far: a few bytes can claim gigabytes of pixels.
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{where}: {image.width}x{image.height} pixels; "
                    f"expected at most {MAX_PIXELS} in all",
                    hint="leave that image out, or store it smaller",
                )
            if image.mode not in _GREY | _COLOUR:
                raise DataError(
                    f"{where}: pixels of Pillow's mode {image.mode}; expected 8 bits per channel",
                    hint="convert the image to 8-bit greyscale or RGB",
                )
            yield image
    except DataError:
        raise
    except UnidentifiedImageError:  # its own message names a buffer's address
        raise DataError(
            f"{where}: cannot be read as an image: its format is not known",
            hint="the image is damaged or of another format: replace it or leave it out",
        ) from None
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise DataError(
            f"{where}: cannot be read as an image: {str(error) or type(error).__name__}",
            hint="the image is damaged or of another format: replace it or leave it out",
        ) from None
