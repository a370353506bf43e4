"""Data sets in .npz files, and every damaged one by name."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.config import DataSettings
from fedvtc_edge.data import Dataset, load_dataset, trees
from fedvtc_edge.errors import DataError


def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    fields: dict[str, Any] = {
        "x_train": rng.integers(0, 256, (20, 8, 8, 3), np.uint8),
        "y_train": np.arange(20) % 4,
        "x_test": rng.integers(0, 256, (8, 8, 8, 3), np.uint8),
        "y_test": np.arange(8) % 4,
    }
    return {key: value for key, value in (fields | changes).items() if value is not None}


def load(path: Path, **keys: Any) -> Dataset:
    return load_dataset(DataSettings(name=str(path), **keys))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "toy.npz"


def refused(path: Path, message: str, **keys: Any) -> str:
    with pytest.raises(DataError, match=message) as caught:
        load(path, **keys)
    assert path.name in str(caught.value)
    return caught.value.hint


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_arrive_unchanged(file: Path, save: Any) -> None:
    saved = arrays(class_names=np.array(["a", "b", "c", "ü"]))
    save(file, **saved)
    data = load(file)
    for key in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(data, key), saved[key])
    assert data.name == "toy"
    assert data.class_names == ("a", "b", "c", "ü")


def test_classes_are_numbered_without_names(file: Path) -> None:
    np.savez(file, **arrays())
    assert load(file).class_names == ("0", "1", "2", "3")


def test_bytes_and_numbers_as_class_names(file: Path) -> None:
    np.savez(file, **arrays(class_names=np.array([b"a", b"b", b"c", b"d"])))
    assert load(file).class_names == ("a", "b", "c", "d")
    np.savez(file, **arrays(class_names=np.arange(4)))
    assert load(file).class_names == ("0", "1", "2", "3")


def test_fortran_order_and_greyscale(file: Path) -> None:
    grey = np.asfortranarray(arrays()["x_train"][..., 0])
    np.savez(file, **arrays(x_train=grey, x_test=grey[:8]))
    np.testing.assert_array_equal(load(file).x_train[..., 0], grey)


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_missing_key(file: Path, key: str) -> None:
    np.savez(file, **arrays(**{key: None}))
    assert "np.savez" in refused(file, f"no key {key}; found: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((20, 8, 8, 3), np.int32)}, "x_train: dtype int32"),
        ({"x_test": np.full((8, 8, 8, 3), np.nan)}, "x_test: contains NaN"),
        ({"x_test": np.full((8, 8, 8, 3), 2.0)}, "x_test: float images from 2 to 2"),
        ({"y_train": np.zeros(20)}, "y_train: float64 labels"),
        ({"y_train": np.zeros(19, int)}, "x_train has 20 images, y_train 19 labels"),
        ({"y_test": np.arange(8)}, "y_test: labels from 0 to 7; expected 0 to 3"),
        ({"y_train": np.full(20, 10**12)}, "y_train: labels from 1000000000000"),
        ({"y_train": np.zeros(20, int), "y_test": np.zeros(8, int)}, "1 classes"),
        ({"x_train": np.zeros((0, 8, 8, 3), np.uint8), "y_train": np.zeros(0, int)}, "no images"),
        ({"x_test": np.zeros((8, 12, 12, 3), np.uint8)}, "8x8x3, x_test 12x12x3"),
        ({"class_names": np.array(["a", "b"])}, "y_train: labels from 0 to 3; expected 0 to 1"),
        ({"class_names": np.array([["a", "b"]])}, "class_names: <U1 of shape"),
        ({"class_names": np.array([0.5, 1.5])}, "class_names: float64 of shape"),
        ({"class_names": np.array(["a", "b", "c", "\x1b]0;x"])}, "class_names: .*printable"),
    ],
)
def test_refused_contents(file: Path, changes: dict[str, Any], message: str) -> None:
    np.savez(file, **arrays(**changes))
    with pytest.raises(DataError, match=message) as caught:
        load(file)
    assert "toy" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("key", ["x_train", "class_names"])
def test_pickled_objects_are_never_read(file: Path, key: str) -> None:
    payload = np.array([{"a": 1}] * 20, dtype=object)
    np.savez(file, **arrays(**{key: payload}))
    assert "never read" in refused(file, f"{key}: an array of pickled Python objects")


def test_truncated_file(file: Path) -> None:
    np.savez(file, **arrays())
    file.write_bytes(file.read_bytes()[:-100])
    assert "truncated" in refused(file, "cannot be read as a zip file")


def test_flipped_bytes_fail_the_checksum(file: Path) -> None:
    np.savez(file, **arrays())
    content = bytearray(file.read_bytes())
    content[1000] ^= 0xFF  # in the middle of the images
    file.write_bytes(content)
    refused(file, "x_train: .*CRC")


def test_not_an_archive(file: Path) -> None:
    file.write_bytes(b"not an archive")
    refused(file, "cannot be read as a zip file")


def test_header_that_asks_for_more_than_is_stored(file: Path) -> None:
    def header(shape: tuple[int, ...]) -> bytes:
        stream = io.BytesIO()
        fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, fields)
        return stream.getvalue()

    for shape in ((10**9, 64, 64, 3), (2, 8, 8, 3), (-1, -8, 8, 3)):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x_train.npy", header(shape) + bytes(8 * 8 * 3))
        refused(file, "x_train: .* bytes stored; its header, uint8 .*, asks for")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", b"\x93NUMPY\x03\x00\x00\x00\x00\x00", b"?" * 99],
    ids=["empty", "magic", "version", "text"],
)
def test_member_that_is_no_array(file: Path, content: bytes) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x_train.npy", content)
    refused(file, "x_train: ")


def test_bomb_is_refused_by_its_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "MAX_BYTES", 10_000)
    np.savez_compressed(file, **arrays(extra=np.zeros(20_000, np.uint8)))
    refused(file, "bytes in all once decompressed; expected at most 1000000 of 10000")


def test_validation_never_reads_the_test_set(file: Path) -> None:
    np.savez(file, **arrays(x_test=None, y_test=None))
    data = load(file, evaluate="validation")
    assert (len(data.x_train), len(data.x_test)) == (16, 4)
    assert np.bincount(data.y_test).tolist() == [1, 1, 1, 1]
