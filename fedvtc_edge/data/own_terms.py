"""Terms of a federation's images, which every client's own data has to fit."""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedvtc_edge.errors import DataError

from .dataset import Dataset, Labels, check_canvas, check_class_names

MAX_JSON = 16 * 2**20
"""Length of terms as JSON: room for as many class names, as long, as are allowed."""

_SHOWN = 10  # names in a hint
_AGAIN = "the terms come from the server: it and this client need the same fedvtc-edge"


@dataclass(frozen=True)
class DataTerms:
    """Public description of the images that the server announces before clients read theirs.

    All of it is public. The class names were agreed on; they are not counted from anybody's data.

    Args:
        class_names: Of the C classes, in the order of their numbers; no name twice.
        height: Of an image in pixels: a multiple of 4 from 8 to 64, and so is `width`.
        width: The same as `height`.
        channels: 1 (grey) or 3 (RGB).
        image_size: Pixels that images are resized to (then it is `height`), or 0: they
            already have the size.

    Raises:
        DataError: Terms that no data set could meet.
    """

    class_names: tuple[str, ...]
    height: int
    width: int
    channels: int
    image_size: int

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        check_class_names(self.class_names, "agreed class names")
        twice = _repeated(self.class_names)
        if twice is not None:
            raise DataError(
                f"agreed class names: {twice!r} stands there twice; expected each name once",
                hint="clients find their classes by name: give every class its own",
            )
        check_canvas(self.shape, "agreed size")
        if self.channels not in (1, 3):
            raise DataError(
                f"agreed channels: {self.channels}; expected 1 or 3",
                hint="images are greyscale (1) or RGB (3)",
            )
        if self.image_size not in (0, self.height):
            raise DataError(
                f"agreed image_size {self.image_size} for images of {times(self.shape)}; "
                f"expected 0 or {self.height}",
                hint="announce the size that data.image_size resizes to",
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.height, self.width, self.channels

    def has_class(self, name: str) -> bool:
        """Whether a class of that name was agreed on."""
        return _key(name) in map(_key, self.class_names)

    def to_json(self) -> str:
        """One JSON object; :meth:`from_json` reads it back."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, untrusted: str | bytes) -> DataTerms:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: Too long, not JSON, a key too many or too few, a value of another
                type, or terms that no data set could meet.
        """
        if len(untrusted) > MAX_JSON:
            raise DataError(
                f"terms of the data: {len(untrusted)} long; expected at most {MAX_JSON}",
                hint=_AGAIN,
            )
        try:
            return TypeAdapter(cls).validate_json(untrusted, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part)[:40] for part in first["loc"]) or "JSON"
            raise DataError(f"terms of the data: {where}: {first['msg']}", hint=_AGAIN) from None


def terms_of(dataset: Dataset, image_size: int) -> DataTerms:
    """The terms that clients need to meet to train along with whoever holds `dataset`.

    Args:
        dataset: The server's, of which only shape and class names are told.
        image_size: ``data.image_size`` with which it was read.

    Raises:
        DataError: Two classes of one name, or images of another size than `image_size`.
    """
    return DataTerms(dataset.class_names, *dataset.image_shape, image_size)


def agreed_numbers(names: Sequence[str], terms: DataTerms, where: str) -> Labels:
    """The number in the agreed list of each of a client's own classes.

    Args:
        names: The client's, in any order; agreed classes may be missing.
        terms: Hold the agreed list.
        where: File and key, for the error.

    Returns:
        int64 [own classes]: own label → agreed label.

    Raises:
        DataError: A name that is not in the list, or one that stands there twice.
    """
    number = {_key(name): position for position, name in enumerate(terms.class_names)}
    strange = [name for name in names if _key(name) not in number]
    if strange:
        more = f" (nor are {len(strange) - 1} more)" if len(strange) > 1 else ""
        raise DataError(
            f"{where}: {strange[0]!r:.80} is none of the {len(number)} agreed classes{more}",
            hint=_nearest(strange[0], terms.class_names),
        )
    twice = _repeated(names)
    if twice is not None:
        raise DataError(
            f"{where}: {twice!r} stands there twice; expected each class once",
            hint="merge the two, or give one of them its right name",
        )
    return np.array([number[_key(name)] for name in names], np.int64)


def times(shape: Sequence[int]) -> str:
    """``28x28x1``."""
    return "x".join(str(extent) for extent in shape)


def _key(name: str) -> str:
    # macOS spells the ü of a folder's name as two characters, and so do zip files made there.
    return unicodedata.normalize("NFC", name)


def _repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if _key(name) in seen:
            return name
        seen.add(_key(name))
    return None


def _nearest(name: str, agreed: tuple[str, ...]) -> str:
    folded = {other.lower(): other for other in agreed}
    # Cut, for a stranger's file decides how long it is and difflib compares letter by letter.
    near = difflib.get_close_matches(name[:200].lower(), folded, n=1)
    if near:
        return f"did you mean {folded[near[0]]!r}?"
    shown = ", ".join(agreed[:_SHOWN])
    return f"agreed: {shown}" + (f", … ({len(agreed)} in all)" if len(agreed) > _SHOWN else "")
