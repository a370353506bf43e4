"""A client's own training images, read on the terms that the server announced.

A client of a real federation has no test set, may lack classes, and may list the ones
it has in another order. What does not fit is refused by name and never bent to fit:
one client with two classes swapped would spoil everybody's statistics.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedvtc_edge.errors import DataError

from .arrays import read_pair
from .dataset import Labels, Pixels
from .folders import class_of, image_names, split_of
from .own_terms import DataTerms, agreed_numbers, terms_of, times
from .sources import _LIMIT_SEED
from .splits import Split, subset
from .trees import Tree, archive_tree, directory_tree, is_image_folder

__all__ = ["DataTerms", "OwnData", "load_own", "terms_of"]


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
        terms: What they have to fit.
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
