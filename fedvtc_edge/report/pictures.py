"""Synthetic and real images, side by side, as small PNG strips inside the page."""

from __future__ import annotations

import base64
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedvtc_edge.errors import RunError
from fedvtc_edge.runs.records import ClientRecord, Summary

Images = NDArray[np.uint8]

#: A row holds at most these many, and no more than fit side by side in half a page.
SYNTHETIC_PER_ROW, REAL_PER_ROW, ROW_WIDTH = 6, 4, 500
#: Up to this many classes, every class gets a row; beyond it, these many of each kind.
MANY_CLASSES, UNSEEN_ROWS, PRESENT_ROWS = 20, 10, 5
#: Clients whose pictures are shown; and raw bytes of synthetic pixels in the whole page.
MAX_CLIENTS, PIXEL_BUDGET = 12, 1_200_000
TILE = 40  #: CSS pixels that one image is wide at least.


@dataclass(frozen=True)
class Strip:
    """A row of images as one PNG data URI, with the size to show it at (CSS pixels)."""

    uri: str
    width: int
    height: int
    images: int


@dataclass(frozen=True)
class SynthesisRow:
    """One class at one client: its synthetic images, and how many real ones it holds."""

    label: int
    name: str
    held: int | None
    synthesised: Strip


@dataclass(frozen=True)
class SynthesisGallery:
    """A client's rows, unseen classes first: they are what the method is about."""

    client: ClientRecord
    unseen: list[SynthesisRow]
    present: list[SynthesisRow]
    unseen_total: int
    present_total: int


@dataclass(frozen=True)
class Pictures:
    """All galleries, and the real strips, which every gallery shares."""

    galleries: list[SynthesisGallery]
    real: dict[int, Strip]
    clients_left_out: int


def read_pictures(path: Path, summary: Summary) -> Pictures | None:
    """Reads ``samples.npz`` and lays its images out; ``None`` where there is none.

    Expects ``painted`` uint8 [K, C, n, H, W, ch] and ``real`` uint8 [C, n, H, W, ch]
    for the K clients and C classes of ``summary``; of its ``clients`` alone where they are named.

    Raises:
        RunError: the file is damaged or does not fit the summary.
    """
    if not path.is_file():
        return None
    try:
        # Opened here: numpy would leave its own file open when the archive is damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            synthetic, real = np.asarray(arrays["painted"]), np.asarray(arrays["real"])
            told = {str(name) for name in arrays["clients"]} if "clients" in arrays else None
    except _UNREADABLE as error:
        raise RunError(f"cannot read images from '{path}': {error}", hint=_HINT) from error
    painted = [client for client in summary.clients if told is None or client.id in told]
    K, C = len(painted), len(summary.classes)
    _check(path, "painted", synthetic, (K, C), rank=6)
    _check(path, "real", real, (C,), rank=5)
    return _lay_out(synthetic, real, painted, summary)


_UNREADABLE = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)
_HINT = "delete samples.npz to draw the report without pictures"


def _check(path: Path, name: str, array: Images, leading: tuple[int, ...], *, rank: int) -> None:
    fits = (
        array.dtype == np.uint8
        and array.ndim == rank
        and array.shape[: len(leading)] == leading
        and array.shape[-1] in (1, 3)
        and 0 not in array.shape
    )
    if not fits:
        lead = ", ".join(map(str, leading))
        raise RunError(
            f"'{path}': {name} is {array.dtype} {list(array.shape)}, "
            f"expected uint8 [{lead}, n, H, W, 1 or 3]",
            hint=_HINT,
        )


def _lay_out(
    synthetic: Images, real: Images, painted: list[ClientRecord], summary: Summary
) -> Pictures:
    shown = painted[:MAX_CLIENTS]
    rows = len(summary.classes)
    if rows > MANY_CLASSES:
        rows = UNSEEN_ROWS + PRESENT_ROWS
    # A page of large colour images must stay light enough to mail: fewer per row, never none.
    affordable = PIXEL_BUDGET // (len(shown) * rows * int(np.prod(synthetic.shape[3:])))
    scale, gap = _scale(synthetic.shape[4])
    slots = max(2, ROW_WIDTH // ((synthetic.shape[4] + gap) * scale))
    beside = min(REAL_PER_ROW, max(1, round(0.4 * slots)))
    per_row = max(1, min(SYNTHETIC_PER_ROW, slots - beside, affordable))
    galleries = [
        _gallery(client, images[:, :per_row], summary.classes)
        for client, images in zip(shown, synthetic, strict=False)
    ]
    used = {row.label for g in galleries for row in (*g.unseen, *g.present)}
    return Pictures(
        galleries,
        {label: strip(real[label, : min(beside, per_row)]) for label in sorted(used)},
        len(summary.clients) - len(shown),
    )


def _gallery(client: ClientRecord, images: Images, names: list[str]) -> SynthesisGallery:
    # A run that did not count its classes cannot call any of them unseen.
    counts: list[int | None] = [*(client.class_counts or ())] or [None] * len(names)
    unseen = [label for label, count in enumerate(counts) if count == 0]
    present = [label for label, count in enumerate(counts) if count != 0]
    chosen = (unseen, present)
    if len(names) > MANY_CLASSES:
        chosen = (unseen[:UNSEEN_ROWS], present[:PRESENT_ROWS])
    rows = [
        [SynthesisRow(label, names[label], counts[label], strip(images[label])) for label in labels]
        for labels in chosen
    ]
    return SynthesisGallery(client, rows[0], rows[1], len(unseen), len(present))


def _scale(width: int, tile: int = TILE) -> tuple[int, int]:
    """Whole screen pixels per image pixel, and the gap in image pixels: no pixel is cut."""
    scale = -(-tile // width)
    return scale, max(1, round(5 / scale))


def strip(images: Images, tile: int = TILE) -> Strip:
    """Images [n, H, W, ch] side by side, one see-through gap between them.

    Args:
        images: uint8, of 1 or 3 channels.
        tile: CSS pixels that one is wide at least.
    """
    n, H, W, ch = images.shape
    scale, gap = _scale(W, tile)
    sheet = np.zeros((H, n * (W + gap) - gap, ch + 1), dtype=np.uint8)
    for index, image in enumerate(images):
        left = index * (W + gap)
        sheet[:, left : left + W, :ch] = image
        sheet[:, left : left + W, ch] = 255
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "PNG", compress_level=9)
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return Strip(uri, sheet.shape[1] * scale, H * scale, n)
