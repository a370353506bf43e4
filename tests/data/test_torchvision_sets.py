"""Sets that torchvision knows, from small files in torchvision's own formats."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fedvtc_edge.config import DataSettings
from fedvtc_edge.data import load_dataset
from fedvtc_edge.data.torchvision_sets import SETS
from fedvtc_edge.errors import DataError, MissingExtra


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(
    folder: Path, prefix: str = "", classes: int = 10, test: str = "t10k"
) -> dict[str, npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    written = {}
    for part, stem, count in (("train", "train", 2 * classes), ("test", test, classes)):
        written[f"x_{part}"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        written[f"y_{part}"] = (np.arange(count) % classes).astype(np.uint8)
        write_idx(folder / f"{prefix}{stem}-images-idx3-ubyte", written[f"x_{part}"])
        write_idx(folder / f"{prefix}{stem}-labels-idx1-ubyte", written[f"y_{part}"])
    return written


@pytest.mark.parametrize("name", ["MNIST", "fashionmnist", "KMNIST"])
def test_sets_with_a_train_flag(tmp_path: Path, name: str) -> None:
    folder = next(known for known in SETS if known.lower() == name.lower())
    written = write_mnist(tmp_path / folder / "raw")
    data = load_dataset(DataSettings(name=name, root=str(tmp_path)))
    assert data.name == name.lower()
    assert data.image_shape == (28, 28, 1)
    for part in ("train", "test"):
        np.testing.assert_array_equal(getattr(data, f"x_{part}")[..., 0], written[f"x_{part}"])
        np.testing.assert_array_equal(getattr(data, f"y_{part}"), written[f"y_{part}"])
    assert data.classes == 10


def test_emnist_is_balanced_and_upright(tmp_path: Path) -> None:
    written = write_mnist(tmp_path / "EMNIST" / "raw", "emnist-balanced-", 47, "test")
    data = load_dataset(DataSettings(name="emnist", root=str(tmp_path)))
    assert data.classes == 47
    np.testing.assert_array_equal(data.x_test[..., 0], written["x_test"].transpose(0, 2, 1))


def test_sets_with_a_split_name(tmp_path: Path) -> None:
    folder = tmp_path / "rendered-sst2"
    for split in ("train", "test"):
        for level, kind in ((0, "negative"), (200, "positive")):
            (folder / split / kind).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (40, 40), (level, 7, 9)).save(
                    folder / split / kind / f"{number}.png"
                )
    settings = DataSettings(name="renderedsst2", root=str(tmp_path), image_size=16)
    data = load_dataset(settings)
    assert data.image_shape == (16, 16, 3)
    assert data.class_names == ("negative", "positive")
    assert data.x_test[data.y_test == 1][:, 3, 3].tolist() == [[200, 7, 9]] * 2
    (folder / "train" / "negative" / "0.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"RenderedSST2 in .*: image \d cannot be read"):
        load_dataset(settings)


def test_stl10_keeps_its_size_or_is_resized(tmp_path: Path) -> None:
    from torchvision.datasets import STL10

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join(f"thing{i}" for i in range(10)))
    for stem in ("train", "test"):
        (folder / f"{stem}_X.bin").write_bytes(bytes(20 * 3 * 96 * 96))
        (folder / f"{stem}_y.bin").write_bytes(bytes(range(1, 11)) * 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(STL10, "_check_integrity", lambda self: True)
        whole = load_dataset(DataSettings(name="stl10", root=str(tmp_path)))
        assert whole.image_shape == (96, 96, 3)
        data = load_dataset(DataSettings(name="stl10", root=str(tmp_path), image_size=32))
    assert data.x_train.shape == (20, 32, 32, 3)
    assert data.class_names[9] == "thing9"


@pytest.mark.parametrize("name", sorted(SETS))
def test_absent_files_are_not_downloaded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.request

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(DataError, match=f"torchvision {name}: cannot be read from") as caught:
        load_dataset(DataSettings(name=name.upper(), root=str(tmp_path)))
    assert "tried to download" not in str(caught.value)
    assert "download" in caught.value.hint
    assert "\n" not in caught.value.hint
    if "python -c" in caught.value.hint:
        code = caught.value.hint.split('"')[1]
        assert code.count("download=True") == 2
        compile(code, "hint", "exec")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RuntimeError('operator torchvision::nms does not exist')", "nms does not exist"),
        ("OSError('undefined symbol')", "undefined symbol"),
        ("ImportError('cannot import name')", "cannot import name"),
    ],
)
def test_torchvision_that_does_not_fit_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, message: str
) -> None:
    broken_torchvision(tmp_path, monkeypatch, error)
    with pytest.raises(MissingExtra, match=f"{message}; expected both from the same") as caught:
        load_dataset(DataSettings(name="kmnist", root=str(tmp_path)))
    assert "pip install" in caught.value.hint


def test_no_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_torchvision(tmp_path, monkeypatch, "ModuleNotFoundError('No module named torch')")
    with pytest.raises(MissingExtra, match="need torch and torchvision") as caught:
        load_dataset(DataSettings(name="kmnist", root=str(tmp_path)))
    assert "fedvtc-edge[train]" in caught.value.hint


def broken_torchvision(path: Path, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    (path / "torchvision").mkdir()
    (path / "torchvision" / "__init__.py").write_text(f"raise {error}")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(path)
