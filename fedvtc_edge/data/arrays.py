"""Data sets in one .npz file: x_train, y_train, x_test, y_test, optional class_names.

A client's own file has no test arrays, and may call the others x and y.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvtc_edge.errors import DataError

from .dataset import Dataset, Labels, Pixels, as_labels, as_pixels, check_class_names, check_pairs
from .splits import Part, Source, Split
from .trees import opened, reading

_HINT = "np.savez(path, x_train=…, y_train=…, x_test=…, y_test=…)"
_OWN_HINT = "np.savez(path, x=…, y=…, class_names=…)"
_PAIRS = {"x", "y", "x_train", "y_train"}


def open_arrays(path: Path) -> Source:
    """Open a NumPy archive; its images are read part by part.

    Raises:
        DataError: Not an .npz file, a missing key, a pickled object array, a header that
            does not fit the member's size, or contents that `Dataset` refuses.
    """
    with opened(path) as archive:
        names: tuple[str, ...] = ()
        if "class_names.npy" in archive.namelist():
            names = _names(_read(path, archive, "class_names"), f"{path}: class_names")
            check_class_names(names, f"{path}: class_names")

    def open_part(part: Part) -> Split:
        with opened(path) as archive:
            images = as_pixels(_read(path, archive, f"x_{part}"), f"{path}: x_{part}")
            labels = as_labels(_read(path, archive, f"y_{part}"), f"{path}: y_{part}")
        check_pairs(images, labels, str(path), f"_{part}")
        return Split.of_array(str(path), part, images, labels)

    return Source(path.stem, names, open_part)


def pack(data: Dataset | Mapping[str, npt.ArrayLike]) -> bytes:
    """A data set in memory, or its arrays by their keys, as such a file.

    Raises:
        DataError: An array of Python objects, or public images, which no such file has.
    """
    if isinstance(data, Dataset):
        if data.x_public is not None:
            raise DataError(
                "data: x_public goes into no file of a data set",
                hint="leave it out, and name public images by data.public",
            )
        keys = ("x_train", "y_train", "x_test", "y_test", "class_names")
        data = {key: getattr(data, key) for key in keys}
    arrays = {key: np.asarray(value) for key, value in data.items()}
    for key, array in arrays.items():
        if array.dtype.hasobject:
            raise DataError(f"data: {key}: an array of Python objects", hint=_HINT)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_pair(path: Path, classes: int) -> tuple[tuple[str, ...] | None, Pixels, Labels]:
    """A client's own images: ``x`` and ``y``, or ``x_train`` and ``y_train``; no other is opened.

    Args:
        path: The file.
        classes: How many classes labels number where the file has no ``class_names``.

    Returns:
        The file's ``class_names``, not yet checked, or None; images uint8 [N, H, W, C],
        N at least 1; labels int64 [N], which number those names, else `classes`.

    Raises:
        DataError: As :func:`open_arrays`; or keys of both pairs.
    """
    with opened(path) as archive:
        keys = {name.removesuffix(".npy") for name in archive.namelist()}
        if keys & {"x", "y"} and keys & {"x_train", "y_train"}:
            raise DataError(
                f"{path}: keys {', '.join(sorted(keys & _PAIRS))}; expected one pair of them",
                hint="save one set of images: " + _OWN_HINT,
            )
        x, y = ("x", "y") if keys & {"x", "y"} else ("x_train", "y_train")
        names = None
        if "class_names" in keys:
            names = _names(_read(path, archive, "class_names"), f"{path}: class_names")
        images, labels = (_read(path, archive, key, _OWN_HINT) for key in (x, y))
    if not images.size:
        raise DataError(
            f"{path}: {x}: no images (shape {list(images.shape)}); expected at least one",
            hint="a client without images cannot take part",
        )
    pixels = as_pixels(images, f"{path}: {x}")
    numbers = as_labels(labels, f"{path}: {y}", classes if names is None else len(names))
    check_pairs(pixels, numbers, str(path), x.removeprefix("x"))
    return names, pixels, numbers


def _read(path: Path, archive: zipfile.ZipFile, key: str, hint: str = _HINT) -> npt.NDArray[Any]:
    try:
        info = archive.getinfo(f"{key}.npy")
    except KeyError:
        found = ", ".join(sorted(name.removesuffix(".npy") for name in archive.namelist())[:10])
        raise DataError(
            f"{path}: no key {key}; found: {found or 'nothing'}",
            hint=hint,
        ) from None
    _check_header(path, archive, info, key)
    with reading(path, key), archive.open(info) as member:
        array: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _check_header(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, key: str) -> None:
    """Refuse a header that asks for more memory than the archive's checked directory says."""
    with reading(path, key), archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        else:
            raise ValueError(f".npy version {version}; expected (1, 0) or (2, 0)")
        start = member.tell()
    if dtype.hasobject:
        raise DataError(
            f"{path}: {key}: an array of pickled Python objects; expected plain numbers or strings",
            hint="pickles can run code and are never read: save it with a dtype such as uint8",
        )
    expected = start + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or expected != info.file_size:
        raise DataError(
            f"{path}: {key}: {info.file_size} bytes stored; "
            f"its header, {dtype} {list(shape)}, asks for {expected}",
            hint="the file is damaged: write it again with np.savez",
        )


def _names(array: npt.NDArray[Any], where: str) -> tuple[str, ...]:
    if array.ndim != 1 or not array.size or array.dtype.kind not in "USiu":
        raise DataError(
            f"{where}: {array.dtype} of shape {list(array.shape)}; expected strings [classes]",
            hint="class_names=np.array(['cat', 'dog'])",
        )
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    return tuple(str(name) for name in array.tolist())
