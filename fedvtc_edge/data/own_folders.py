"""A client's own images in class folders, plain or in one .zip file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedvtc_edge.errors import DataError

from .dataset import Labels, Pixels
from .folders import class_of, image_names
from .images import decode, is_grey
from .own_terms import DataTerms, Fetch, agreed_numbers
from .trees import Tree, archive_tree, directory_tree, is_image_folder


def open_own_folder(path: Path, terms: DataTerms) -> tuple[Labels, Fetch]:
    """The labels of a client's images, int64 [N], and the images when asked for.

    Args:
        path: A directory or a .zip file: ``train/<class>/*`` or ``<class>/*``, either
            perhaps one directory down, as it is when a folder was packed whole.
        terms: Class folders are matched with its names.

    Raises:
        DataError: No images in class folders, a class that was not agreed on, or an archive
            that `archives.opened` refuses; later, a damaged image or a colour image where
            grey is agreed, each by its name.
    """
    tree, folder, names = _layout(path, terms)
    if not names:
        raise DataError(
            f"{path}: no images in train/<class>/ or <class>/",
            hint="make one folder per class, named as agreed, with its png or jpg images in it",
        )
    kinds = sorted({class_of(name, folder) for name in names})
    numbers = agreed_numbers(kinds, terms, f"{path}: class folders")
    number = dict(zip(kinds, numbers, strict=True))
    labels = np.array([number[class_of(name, folder)] for name in names], np.int64)

    def fetch(indices: Labels) -> Iterator[tuple[str, Pixels]]:
        wanted = [names[index] for index in indices]
        for name, data in zip(wanted, tree.read(wanted), strict=True):
            where = f"{path}: {name}"
            if terms.channels == 1 and not is_grey(data, where):
                raise DataError(
                    f"{where}: a colour image, agreed is 1 channel (grey)",
                    hint="convert the images to greyscale, or leave that one out",
                )
            yield where, decode(data, where, terms.channels)

    return labels, fetch


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
