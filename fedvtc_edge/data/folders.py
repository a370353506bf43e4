"""Image folders, train/<class>/* and test/<class>/*, plain or in one .zip file.

The folder may lie one directory down, as it does when a folder was packed whole.
Classes are the folder names in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from fedvtc_edge.errors import DataError

from .dataset import Labels, Pixels, check_class_names
from .images import SUFFIXES, decode, is_grey
from .splits import Part, Source, Split
from .trees import LAYOUT_HINT, Tree, archive_tree, below, directory_tree


def open_folder(path: Path) -> Source:
    """Open an image folder or a .zip file of one; images are decoded when read.

    If every training image is greyscale the data set has one channel, else three,
    and all images of both parts are converted to that.

    Raises:
        DataError: No images, other classes in the test part than in the training part,
            a damaged image (named), or an archive that `archives.opened` refuses.
    """
    tree = archive_tree(path) if path.is_file() else directory_tree(path)
    training = _images(tree, "train")
    classes = sorted({class_of(name, "train") for name in training})
    check_class_names(tuple(classes), f"{path}: class folders")
    channels = 1 if _all_grey(tree, training) else 3

    def open_part(part: Part) -> Split:
        names = training if part == "train" else _images(tree, part)
        _check_same_classes(path, classes, sorted({class_of(name, part) for name in names}))
        number = {name: position for position, name in enumerate(classes)}
        return split_of(tree, part, names, number, channels)

    return Source(path.stem if path.is_file() else path.resolve().name, tuple(classes), open_part)


def split_of(
    tree: Tree,
    folder: str,
    names: Sequence[str],
    number: Mapping[str, int],
    channels: int,
    *,
    convert: bool = True,
) -> Split:
    """Labels of images in class folders, and the images when they are fetched.

    Args:
        tree: The files.
        folder: Holds the class folders.
        names: The images, as :func:`image_names` lists them.
        number: Label by name of the class folder.
        channels: 1 or 3.
        convert: Whether colour images become grey where `channels` is 1; else they are refused.
    """
    labels = np.array([number[class_of(name, folder)] for name in names], np.int64)

    def fetch(indices: Labels) -> Iterator[tuple[str, Pixels]]:
        wanted = [names[index] for index in indices]
        for name, data in zip(wanted, tree.read(wanted), strict=True):
            where = f"{tree.origin}: {name}"
            if channels == 1 and not convert and not is_grey(data, where):
                raise DataError(
                    f"{where}: a colour image, agreed is 1 channel (grey)",
                    hint="convert the images to greyscale, or leave that one out",
                )
            yield where, decode(data, where, channels)

    return Split(str(tree.origin), "test" if folder == "test" else "train", labels, fetch)


def _all_grey(tree: Tree, names: Sequence[str]) -> bool:
    # Ends at the first colour image, which in a colour set is nearly always the first one.
    return all(
        is_grey(data, f"{tree.origin}: {name}")
        for name, data in zip(names, tree.read(names), strict=True)
    )


def _images(tree: Tree, part: Part) -> list[str]:
    names = image_names(tree, part)
    if not names:
        raise DataError(f"{tree.origin}: no images in {part}/<class>/", hint=LAYOUT_HINT)
    return names


def image_names(tree: Tree, folder: str) -> list[str]:
    """Names of the images in the class folders in a folder of the tree, sorted."""
    return sorted(name for name in tree.names(folder) if _is_image(name, folder))


def class_of(name: str, folder: str) -> str:
    """The class folder in `folder` that a file lies in."""
    return name.removeprefix(below(folder)).split("/", 1)[0]


def _is_image(name: str, folder: str) -> bool:
    # class/file at least; hidden files are what file managers leave behind (._1.png).
    return (
        "/" in name.removeprefix(below(folder))
        and PurePosixPath(name).suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    )


def _check_same_classes(path: Path, train: list[str], test: list[str]) -> None:
    if train != test:
        extra = ", ".join(sorted(set(test) - set(train))[:3]) or "none"
        absent = ", ".join(sorted(set(train) - set(test))[:3]) or "none"
        raise DataError(
            f"{path}: {len(train)} classes in train/, {len(test)} in test/; "
            f"only in test/: {extra}; only in train/: {absent}",
            hint="both parts need images of the same classes, in folders of the same names",
        )
