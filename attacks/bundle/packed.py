"""Bytes within texts and bytes: what base64, compression and picture formats wrap, unwrapped."""

from __future__ import annotations

import base64
import binascii
import bz2
import contextlib
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LARGEST = 2**24
"""Bytes that anything is unwrapped to, and bytes of the pixels of a picture."""

SHORTEST = 16
"""Bytes below which nothing is unwrapped: no image fits."""

_DEEPEST, _MOST_PICTURES = 4, 64
_PICTURE = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0", re.S
)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]+={0,2}")
_HEX = re.compile(rb"[0-9A-Fa-f]+")
_KINDS = ("u1", "<f2", "<f4", "<f8")


def unwrapped(data: bytes, depth: int = 0) -> Iterator[bytes]:
    """The bytes themselves, and what they are a wrapping of, layer by layer.

    Text escapes what is no text in it: where each character is below 256 they are bytes, too.
    """
    if len(data) < SHORTEST:
        return
    yield data
    if depth >= _DEEPEST:
        return
    for inner in _layers(data):
        if inner != data:
            yield from unwrapped(inner, depth + 1)


def arrays_of(data: bytes) -> Iterator[NDArray[Any]]:
    """Numbers that bytes may stand for: unwrapped, as pixels, and as usual types of numbers."""
    for inner in unwrapped(data):
        yield from pictures_in(inner)
        for kind in _KINDS:
            size = np.dtype(kind).itemsize
            whole = len(inner) // size * size
            if whole >= SHORTEST * size:
                yield np.frombuffer(inner[:whole], kind)


def pictures_in(data: bytes) -> Iterator[NDArray[np.uint8]]:
    """Pixels of pictures of the usual formats, wherever in the bytes they begin."""
    for number, match in enumerate(_PICTURE.finditer(data)):
        if number >= _MOST_PICTURES:
            return
        # Not a picture after all, or one that is damaged or too large: Pillow has many errors.
        with contextlib.suppress(Exception):
            picture = Image.open(io.BytesIO(data[match.start() :]))
            if picture.width * picture.height * 4 <= LARGEST:
                mode = "L" if picture.mode in ("1", "L", "LA", "I;16") else "RGB"
                yield np.asarray(picture.convert(mode))


def _layers(data: bytes) -> Iterator[bytes]:
    text = b"".join(data.split())
    if _HEX.fullmatch(text) and len(text) % 2 == 0:
        yield binascii.unhexlify(text)
    if _BASE64.fullmatch(text):
        with contextlib.suppress(ValueError):
            yield base64.urlsafe_b64decode(text.translate(bytes.maketrans(b"+/", b"-_")) + b"==")
    for decode in (base64.b85decode, base64.a85decode):
        with contextlib.suppress(ValueError):
            yield decode(text)
    with contextlib.suppress(UnicodeError):
        yield data.decode("utf-8").encode("latin-1")
    for expand in _EXPANDERS:
        inner = expand(data)
        if inner:
            yield inner


def _bounded(make: Callable[[], Any]) -> Callable[[bytes], bytes]:
    def expand(data: bytes) -> bytes:
        try:
            found: bytes = make().decompress(data, LARGEST)
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError):
            return b""
        return found

    return expand


_EXPANDERS = (
    _bounded(lambda: zlib.decompressobj(zlib.MAX_WBITS | 32)),  # zlib's and gzip's headers
    _bounded(lambda: zlib.decompressobj(-zlib.MAX_WBITS)),
    _bounded(bz2.BZ2Decompressor),
    _bounded(lzma.LZMADecompressor),
)
