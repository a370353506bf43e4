"""A client's own training images, read on the terms that the server announced.

A client of a real federation has no test set, may lack classes, and may list the ones
it has in another order. What does not fit is refused by name and never bent to fit:
one client with two classes swapped would spoil everybody's statistics. Who lacks a test set
gets the server's, packed by :func:`pack_test`.
"""

from __future__ import annotations

import difflib
import json
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedvtc_edge.errors import DataError

from .arrays import read_pair
from .dataset import (
    Dataset,
    Labels,
    Pixels,
    Samples,
    as_labels,
    as_pixels,
    check_canvas,
    check_class_names,
    check_pairs,
)
from .folders import class_of, image_names, split_of
from .public import digest_of_images
from .sources import _LIMIT_SEED
from .splits import Split, subset
from .trees import Tree, archive_tree, directory_tree, is_image_folder

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
        height: Of an image in pixels: a multiple of 4 from 8 to 224, and so is `width`.
        width: The same as `height`.
        channels: 1 (grey) or 3 (RGB).
        image_size: Pixels that images are resized to (then it is `height`), or 0: they
            already have the size.
        public: Digest of the public images, or empty where there are none.

    Raises:
        DataError: Terms that no data set could meet.
    """

    class_names: tuple[str, ...]
    height: int
    width: int
    channels: int
    image_size: int
    public: str = ""

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
        """True if a class of that name was agreed on."""
        return _key(name) in map(_key, self.class_names)

    def to_json(self) -> str:
        """One JSON object; :meth:`from_json` reads it back."""
        document = asdict(self)
        if not self.public:  # which most runs have not, and earlier versions do not know
            del document["public"]
        return json.dumps(document, ensure_ascii=False)

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
        dataset: The server's, of which shape and class names are told, and which public images.
        image_size: ``data.image_size`` with which it was read.

    Raises:
        DataError: Two classes of one name, or images of another size than `image_size`.
    """
    public = digest_of_images(dataset.x_public)
    return DataTerms(dataset.class_names, *dataset.image_shape, image_size, public)


def agreed_numbers(names: Sequence[str], terms: DataTerms, where: str) -> Labels:
    """The number in the agreed list of each of a client's own classes.

    Args:
        names: The client's, in any order; agreed classes may be missing.
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


@dataclass(frozen=True, eq=False)
class OwnData:
    """One client's training data, which never leaves it.

    Attributes:
        x: uint8 [N, H, W, C], shaped as agreed; N is at least 1.
        y: int64 [N], numbers of the agreed classes.
        origin: File or folder, as errors and logs name it.
    """

    x: Pixels
    y: Labels
    origin: str


def load_own(path: Path, terms: DataTerms, *, limit: int = 0) -> OwnData:
    """Read one client's training images.

    `path` is one of:

    - an .npz file with ``x`` and ``y``, or ``x_train`` and ``y_train``. With ``class_names``
      labels number that list, which is matched by name with the agreed one; without, they
      number the agreed list. Test arrays are not opened.
    - an image folder, or a .zip file of one: ``train/<class>/*`` or ``<class>/*``, perhaps
      one directory down, classes matched by name. Grey images become RGB where three
      channels are agreed.

    Args:
        path: Where the images lie.
        limit: Images at most, drawn at random, the same ones each time; 0 is all.

    Raises:
        DataError: Not found, damaged, no images, a class that was not agreed on, a label
            out of range, or images of another size or other channels than agreed.
    """
    path = Path(os.path.expanduser(path))
    kind = path.suffix.lower()
    if os.path.isfile(path) and kind == ".npz":
        split = _open_arrays(path, terms)
    elif os.path.isdir(path) or (os.path.isfile(path) and kind == ".zip"):
        split = _open_folder(path, terms)
    else:
        raise DataError(
            f"no images at {path}; expected an .npz file, a .zip file or an image folder",
            hint="np.savez('mine.npz', x=…, y=…), or a folder with one folder per class",
        )
    kept = split.take(subset(len(split.labels), limit, _LIMIT_SEED))
    images = kept.read(terms.image_size, lambda where, image: _check(image.shape, terms, where))
    return OwnData(images, kept.labels, str(path))


def _open_arrays(path: Path, terms: DataTerms) -> Split:
    names, images, labels = read_pair(path, len(terms.class_names))
    if names is not None:
        labels = agreed_numbers(names, terms, f"{path}: class_names")[labels]
    return Split.of_array(str(path), "train", images, labels)


def _open_folder(path: Path, terms: DataTerms) -> Split:
    """A directory or .zip file: ``train/<class>/*`` or ``<class>/*``, perhaps one level down."""
    tree, folder, names = _layout(path, terms)
    if not names:
        raise DataError(
            f"{path}: no images in train/<class>/ or <class>/",
            hint="make one folder per class, named as agreed, with its png or jpg images in it",
        )
    kinds = sorted({class_of(name, folder) for name in names})
    numbers = agreed_numbers(kinds, terms, f"{path}: class folders")
    number = dict(zip(kinds, numbers.tolist(), strict=True))
    return split_of(tree, folder, names, number, terms.channels, convert=False)


def _check(shape: tuple[int, ...], terms: DataTerms, where: str) -> None:
    # Before any resizing: an error names the size that the file has.
    if shape[2] != terms.channels:
        hint = (
            "convert the images to greyscale"
            if terms.channels == 1
            else "repeat the grey channel: x = np.repeat(x, 3, axis=-1)"
        )
    elif shape != terms.shape and not terms.image_size:
        hint = (
            f"resize them to {terms.height}x{terms.width}; "
            "or the server sets data.image_size, and every client's are resized"
        )
    else:
        return
    raise DataError(
        f"{where}: images of {times(shape)}, agreed are {times(terms.shape)}", hint=hint
    )


def _layout(path: Path, terms: DataTerms) -> tuple[Tree, str, list[str]]:
    """The tree, the folder of it that holds the class folders, and the images in those."""
    packed = os.path.isfile(path)
    if packed or is_image_folder(path):
        tree = archive_tree(path) if packed else directory_tree(path)
        # Not so where train is a class like bus: then no class folders are in it.
        if names := image_names(tree, "train"):
            return tree, "train", names
    tree = archive_tree(path, "") if packed else directory_tree(path, path)
    names = image_names(tree, "")
    tops = sorted({class_of(name, "") for name in names})
    # A folder that was packed whole; or a client's one class, with folders of its own in it.
    if len(tops) == 1 and not terms.has_class(tops[0]) and (below := image_names(tree, tops[0])):
        return tree, tops[0], below
    return tree, "", names


TERMS, TEST_SET = "terms.json", "test.safetensors"
"""Files of a client's state folder that hold the agreed terms and the test set."""

TEST = "test-set"
"""Under which name the server publishes its test set to clients that lack it."""


def pack_test(test: Samples) -> bytes:
    """A test set as it is published."""
    arrays = {"images": test.images, "labels": test.labels}
    return save({name: np.ascontiguousarray(value) for name, value in arrays.items()})


def unpack_test(data: bytes, terms: DataTerms) -> Samples:
    """Read what :func:`pack_test` wrote.

    Raises:
        DataError: Damaged, or not of the agreed shapes and classes.
    """
    where = "the server's test set"
    try:
        arrays = load(data)
        images, labels = arrays["images"], arrays["labels"]
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise DataError(f"{where} is damaged", hint="join again") from None
    images = as_pixels(images, where)
    labels = as_labels(labels, where, len(terms.class_names))
    check_pairs(images, labels, where, "_test")
    if images.shape[1:] != terms.shape:
        raise DataError(
            f"{where}: images of {images.shape[1:]}, agreed are {terms.shape}",
            hint="the server contradicts itself: do not trust it",
        )
    return Samples(images, labels)
