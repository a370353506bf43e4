"""From a name to a data set: the built-in one, the rules of subsets, and the real files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.config import DataSettings, load_config
from fedvtc_edge.data import Dataset, load_dataset
from fedvtc_edge.data.splits import stratified, subset
from fedvtc_edge.errors import DataError


def load(**keys: Any) -> Dataset:
    return load_dataset(DataSettings(**keys))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load()


@pytest.fixture(scope="module")
def root() -> str:
    folder = os.environ.get("FEDVTC_DATA")
    if not folder:
        pytest.skip("FEDVTC_DATA names no folder with the real data sets")
    return folder


def rows(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def test_digits(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    original = load_digits()
    assert digits.x_train.shape == (1297, 8, 8, 1)
    assert digits.x_test.shape == (500, 8, 8, 1)
    assert digits.class_names == tuple("0123456789")
    assert digits.x_train.max() == 255
    # Every level 0 to 16 has its own value, so the pictures can be compared whole.
    expected = {np.uint8([int(v * 255 / 16 + 0.5) for v in x]).tobytes() for x in original.data}
    assert rows(digits.x_train) | rows(digits.x_test) == expected
    assert len(digits.x_train) + len(digits.x_test) == len(original.data)


def test_digits_are_stratified_and_fixed(digits: Dataset) -> None:
    counts = np.bincount(digits.y_train) + np.bincount(digits.y_test)
    share = np.bincount(digits.y_test) / counts
    assert abs(share - 500 / 1797).max() < 0.01
    # A change here changes every published number.
    assert digits.y_test[:12].tolist() == [1, 3, 6, 9, 3, 6, 9, 0, 3, 4, 8, 9]
    assert int(digits.x_test.astype(np.int64).sum()) == 2_472_643


def test_validation_comes_from_training_alone(digits: Dataset) -> None:
    held = load(evaluate="validation")
    assert (len(held.x_train), len(held.x_test)) == (1038, 259)
    assert rows(held.x_train) | rows(held.x_test) == rows(digits.x_train)
    assert not rows(held.x_test) & rows(digits.x_test)
    share = np.bincount(held.y_test) / np.bincount(digits.y_train)
    assert abs(share - 0.2).max() < 0.01


def test_validation_comes_before_the_limit(digits: Dataset) -> None:
    whole = load(evaluate="validation", test_limit=0)
    small = load(evaluate="validation", limit=100, test_limit=50)
    assert (len(small.x_train), len(small.x_test)) == (100, 50)
    assert rows(small.x_train) <= rows(whole.x_train)
    assert rows(small.x_test) <= rows(whole.x_test)


def test_limits_keep_images_and_labels_together(digits: Dataset) -> None:
    small = load(limit=200, test_limit=30)
    label_of = {x.tobytes(): y for x, y in zip(digits.x_train, digits.y_train, strict=True)}
    assert len(small.x_train) == 200
    assert [label_of[x.tobytes()] for x in small.x_train] == small.y_train.tolist()
    assert rows(small.x_test) <= rows(digits.x_test)
    assert small.classes == 10
    np.testing.assert_array_equal(small.x_train, load(limit=200).x_train)


def test_a_limit_beyond_the_end_is_all(digits: Dataset) -> None:
    np.testing.assert_array_equal(load(limit=10**9, test_limit=0).x_train, digits.x_train)


def test_image_size_resizes_any_source() -> None:
    assert load(image_size=16, limit=10).image_shape == (16, 16, 1)


@pytest.mark.parametrize("held", [0, 1, 7, 50, 100])
def test_stratified_holds_out_exactly(held: int) -> None:
    labels = np.random.default_rng(1).integers(0, 7, 100)
    kept, out = stratified(labels, held, seed=3)
    assert len(out) == held
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, out])), np.arange(100))
    exact = np.bincount(labels, minlength=7) * held / 100
    assert (abs(np.bincount(labels[out], minlength=7) - exact) < 1).all()


def test_subset_is_sorted_distinct_and_fixed() -> None:
    chosen = subset(1000, 100, seed=5)
    assert len(np.unique(chosen)) == 100
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, subset(1000, 100, seed=5))


@pytest.mark.parametrize(
    ("name", "near"),
    [("digit", "digits"), ("cifra10", "cifar10"), ("fashon-mnist", "fashionmnist")],
)
def test_unknown_name(name: str, near: str) -> None:
    with pytest.raises(DataError, match=f"unknown data set '{name}'") as caught:
        load(name=name)
    assert "did you mean" in caught.value.hint
    assert near in caught.value.hint


def test_near_names_include_files_in_root(tmp_path: Path) -> None:
    (tmp_path / "mushrooms.npz").touch()
    with pytest.raises(DataError) as caught:
        load(name="mushroms", root=str(tmp_path))
    assert caught.value.hint == "did you mean mushrooms?"


@pytest.mark.parametrize("name", ["absent.npz", "absent.zip", "absent/folder", "~nobody-at-all/x"])
def test_absent_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no data set at") as caught:
        load(name=name, root=str(tmp_path))
    assert "data.root" in caught.value.hint


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000])
def test_odd_names_are_errors_too(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        load(name=name, root=str(tmp_path))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"a \.csv file; expected \.npz, \.zip or a folder"):
        load(name=str(tmp_path / "data.csv"))


def test_torchvision_files_are_no_image_folder(tmp_path: Path) -> None:
    (tmp_path / "mnist" / "raw").mkdir(parents=True)  # as seen on a disk that ignores case
    with pytest.raises(DataError, match="torchvision MNIST"):
        load(name="mnist", root=str(tmp_path))


def test_digits_and_files_need_no_torch(tmp_path: Path) -> None:
    images, labels = np.zeros((8, 8, 8), np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    code = (
        "import sys; from fedvtc_edge.data import load_dataset as load\n"
        "from fedvtc_edge.config import DataSettings as S\n"
        "load(S()); load(S(name=sys.argv[1], image_size=12))\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.npz")], check=True, env=environment
    )


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [
        ("mnist", (60000, 28, 28, 1), (10000, 28, 28, 1), 10),
        ("CIFAR10", (10000, 32, 32, 3), (2000, 32, 32, 3), 10),
        ("cifar100", (10000, 32, 32, 3), (2000, 32, 32, 3), 100),
    ],
)
def test_real_arrays(
    root: str, name: str, train: tuple[int, ...], test: tuple[int, ...], classes: int
) -> None:
    data = load(name=name, root=root, test_limit=0)
    assert data.x_train.shape == train
    assert data.x_test.shape == test
    assert data.classes == len(np.unique(data.y_train)) == classes


def test_real_image_archive(root: str) -> None:
    data = load(name="tinyimagenet", root=root, image_size=32, limit=300, test_limit=100)
    assert data.x_train.shape == (300, 32, 32, 3)
    assert data.x_test.shape == (100, 32, 32, 3)
    assert data.classes == 200
    assert data.class_names[0] == "n01443537"
    assert 80 < data.x_train.mean() < 150


def test_under_privacy_the_list_of_classes_is_not_counted_from_labels(tmp_path: Path) -> None:
    path = tmp_path / "unnamed.npz"
    x, y = np.zeros((6, 8, 8), np.uint8), np.array([0, 1, 2, 0, 1, 2])
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    settings = load_config({"data": {"name": str(path)}}).data
    assert load_dataset(settings).classes == 3
    with pytest.raises(DataError, match="must be public") as caught:
        load_dataset(settings, public_classes=True)
    assert "class_names" in caught.value.hint
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y, class_names=np.array(list("abcd")))
    assert load_dataset(settings, public_classes=True).classes == 4
    assert load_dataset(load_config({}).data, public_classes=True).classes == 10
