"""Bytes within texts and bytes are unwrapped, and nothing that is none grows."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedvtc_edge.attacks.bundle import packed
from fedvtc_edge.attacks.bundle.packed import arrays_of, pictures_in, unwrapped

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
RAW = PIXELS.tobytes()


def picture(kind: str) -> bytes:
    held = io.BytesIO()
    Image.fromarray(PIXELS).save(held, kind)
    return held.getvalue()


WRAPPINGS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: data,
    "base64": base64.b64encode,
    "base64 in lines": base64.encodebytes,
    "base64 for addresses": base64.urlsafe_b64encode,
    "base85": base64.b85encode,
    "ascii85": base64.a85encode,
    "hex": lambda data: data.hex().encode(),
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "latin-1 as UTF-8": lambda data: data.decode("latin-1").encode(),
}


@pytest.mark.parametrize("inner", WRAPPINGS)
@pytest.mark.parametrize("outer", ["nothing", "base64", "hex"])
def test_wrappings_are_taken_off(outer: str, inner: str) -> None:
    assert RAW in set(unwrapped(WRAPPINGS[outer](WRAPPINGS[inner](RAW))))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
@pytest.mark.parametrize("wrapping", ["nothing", "base64"])
def test_pictures_become_pixels(kind: str, wrapping: str) -> None:
    data = WRAPPINGS[wrapping](b"of 3 May: " * (wrapping == "nothing") + picture(kind))
    found = [array for array in arrays_of(data) if array.shape[:2] == PIXELS.shape]
    assert any(np.array_equal(array.reshape(16, 16, -1)[:, :, 0], PIXELS) for array in found)


def test_a_jpeg_is_about_the_picture() -> None:
    smooth = np.tile(np.arange(0, 160, 10, dtype=np.uint8), (16, 1))
    held = io.BytesIO()
    Image.fromarray(smooth).save(held, "JPEG", quality=95)
    (found,) = pictures_in(held.getvalue())
    assert np.abs(found.astype(int) - smooth).max() < 10


@pytest.mark.parametrize("kind", ["u1", "<f2", "<f4", "<f8"])
def test_numbers_of_usual_types_are_read(kind: str) -> None:
    values = np.linspace(0, 1, 32).astype(kind)
    arrays = list(arrays_of(base64.b64encode(values.tobytes())))
    assert any(array.dtype == kind and np.array_equal(array, values) for array in arrays)


def test_a_bomb_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LARGEST", 2**16)
    bomb = zlib.compress(zlib.compress(bytes(10**7)))
    assert max(len(data) for data in unwrapped(bomb)) <= 2**16
    held = io.BytesIO()
    Image.new("L", (4000, 4000)).save(held, "PNG")
    assert list(pictures_in(held.getvalue())) == []


def test_many_beginnings_of_pictures_take_no_time() -> None:
    begun = time.process_time()
    assert list(pictures_in(b"\x89PNG\r\n\x1a\n" * 50_000)) == []
    assert time.process_time() - begun < 5


@given(st.binary(max_size=300))
def test_any_bytes_are_unwrapped_or_left(data: bytes) -> None:
    for array in arrays_of(data):
        assert array.nbytes <= 4 * packed.LARGEST
