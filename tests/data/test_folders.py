"""Image folders and zip files of them, honest and hostile."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedvtc_edge.config import DataSettings
from fedvtc_edge.data import Dataset, images, load_dataset, trees
from fedvtc_edge.data import trees as archives
from fedvtc_edge.errors import DataError

Files = dict[str, bytes]
Pack = Callable[[Files], Path]


def picture(
    value: int = 0, *, size: tuple[int, int] = (8, 8), mode: str = "RGB", kind: str = "PNG"
) -> bytes:
    image = Image.new("L", size, value).convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def files(prefix: str = "", **changes: bytes) -> Files:
    return {
        f"{prefix}train/cat/1.png": picture(10),
        f"{prefix}train/cat/2.PNG": picture(20),
        f"{prefix}train/dog/1.JPEG": picture(30, kind="JPEG"),
        f"{prefix}test/cat/1.bmp": picture(40, kind="BMP"),
        f"{prefix}test/dog/1.webp": picture(50, kind="WEBP"),
    } | changes


@pytest.fixture(params=["folder", "zip"])
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> Pack:
    """Lays files out both ways, so that every test holds for both."""

    def lay(content: Files) -> Path:
        if request.param == "zip":
            return zipped(tmp_path / "toy.zip", content)
        for name, data in content.items():
            (tmp_path / "toy" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "toy" / name).write_bytes(data)
        return tmp_path / "toy"

    return lay


def zipped(path: Path, content: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def load(path: Path, **keys: Any) -> Dataset:
    return load_dataset(DataSettings(name=str(path), **keys))


def refused(path: Path, message: str, **keys: Any) -> str:
    with pytest.raises(DataError, match=message) as caught:
        load(path, **keys)
    return caught.value.hint


@pytest.mark.parametrize("prefix", ["", "toyset/"])
def test_images_labels_and_names(pack: Pack, prefix: str) -> None:
    junk = {
        f"{prefix}classes.csv": b"0,cat",
        f"{prefix}train/cat/notes.txt": b"?",
        f"{prefix}train/cat/._1.png": b"?",
        f"{prefix}train/loose.png": b"?",
        "__MACOSX/x/y.png": b"?",
    }
    data = load(pack(files(prefix) | junk))
    assert data.name == "toy"
    assert data.class_names == ("cat", "dog")
    assert data.y_train.tolist() == [0, 0, 1]
    assert data.y_test.tolist() == [0, 1]
    assert data.image_shape == (8, 8, 3)
    assert data.x_train[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert data.x_test[0, 0, 0].tolist() == [40, 40, 40]


def test_found_by_name_below_root(pack: Pack) -> None:
    path = pack(files())
    data = load_dataset(DataSettings(name="toy", root=str(path.parent)))
    assert data.y_train.tolist() == [0, 0, 1]


def test_folders_below_a_class_belong_to_it(pack: Pack) -> None:
    data = load(pack(files() | {"train/dog/images/3.png": picture(60)}))
    assert data.y_train.tolist() == [0, 0, 1, 1]
    assert data.x_train[3, 0, 0, 0] == 60


def test_grey_among_colour_becomes_colour(pack: Pack) -> None:
    grey = picture(70, mode="L", kind="JPEG")
    data = load(pack(files() | {"train/cat/1.png": grey, "test/cat/1.bmp": grey}))
    assert data.image_shape == (8, 8, 3)
    assert data.x_train[0, 0, 0].tolist() == [70, 70, 70]


def test_all_grey_stays_one_channel(pack: Pack) -> None:
    content = {name: picture(80, mode="L") for name in files()}
    content["train/dog/1.JPEG"] = picture(255, mode="1")
    data = load(pack(content))
    assert data.image_shape == (8, 8, 1)
    assert data.x_train[:, 0, 0, 0].tolist() == [80, 80, 255]


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK"])
def test_other_colour_modes(pack: Pack, mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    data = load(pack(files() | {"train/cat/1.png": picture(90, mode=mode, kind=kind)}))
    assert abs(int(data.x_train[0, 0, 0, 0]) - 90) <= 1


def test_resized_to_one_size(pack: Pack) -> None:
    path = pack(files() | {"train/cat/1.png": picture(10, size=(30, 17))})
    hint = refused(path, r"images of 30x17|images of 17x30|of 8x8x3")
    assert "data.image_size" in hint
    data = load(path, image_size=12)
    assert data.image_shape == (12, 12, 3)
    assert data.x_train[0].max() == data.x_train[0].min() == 10


def test_two_legal_sizes_need_image_size(pack: Pack) -> None:
    path = pack(files() | {"train/cat/2.PNG": picture(10, size=(12, 12))})
    assert "data.image_size" in refused(path, "of 8x8x3 and of 12x12x3; expected one size")


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    stream = io.BytesIO()
    Image.fromarray(stripes).save(stream, "PNG")
    content = {name: stream.getvalue() for name in files()}
    data = load(zipped(tmp_path / "toy.zip", content), image_size=8)
    inner = data.x_train[:, :, 1:-1].astype(int)
    assert abs(inner - 127).max() <= 4  # sampling without a filter would give 0 or 255


def test_limit_decodes_few(pack: Pack) -> None:
    content = {name: data for name, data in files().items() if "/cat/" not in name}
    for number in range(30):
        content[f"train/cat/{number:02}.png"] = picture(number)
        content[f"test/cat/{number:02}.png"] = picture(number)
    data = load(pack(content), limit=5, test_limit=7)
    assert (len(data.x_train), len(data.x_test)) == (5, 7)


def test_validation_never_reads_the_test_set(pack: Pack) -> None:
    content = {f"train/{kind}/{i}.png": picture(i) for kind in ("a", "b") for i in range(10)}
    data = load(pack(content | {"test/a/1.png": b"damaged"}), evaluate="validation")
    assert np.bincount(data.y_train).tolist() == [8, 8]
    assert np.bincount(data.y_test).tolist() == [2, 2]


def test_other_classes_in_test(pack: Pack) -> None:
    path = pack(files() | {"test/owl/1.png": picture()})
    assert "same classes" in refused(path, "only in test/: owl; only in train/: none")


@pytest.mark.parametrize("part", ["train", "test"])
def test_no_images(pack: Pack, part: str) -> None:
    content = {name: data for name, data in files().items() if not name.startswith(part)}
    path = pack(content | {f"{part}/cat/readme.txt": b"no images here"})
    assert f"{part}/<class>" in refused(path, f"no images in {part}/<class>/")


def test_one_class(pack: Pack) -> None:
    content = {name: data for name, data in files().items() if "/cat/" in name}
    refused(pack(content), "class folders: 1 classes")


def test_empty_folder(tmp_path: Path) -> None:
    refused(tmp_path, "no directory train/")


@pytest.mark.parametrize(
    "damage",
    [b"", b"not an image", picture(kind="JPEG")[:-40], picture()[:45]],
    ids=["empty", "text", "jpeg", "png"],
)
@pytest.mark.parametrize("name", ["train/cat/2.PNG", "test/cat/1.bmp"])
def test_damaged_image_is_named(pack: Pack, name: str, damage: bytes) -> None:
    assert "damaged" in refused(pack(files() | {name: damage}), f"{name}: cannot be read as an")


def test_other_formats_stay_closed(pack: Pack) -> None:
    refused(pack(files() | {"train/cat/2.PNG": picture(kind="TIFF")}), "2.PNG: cannot be read")


def test_sixteen_bits_are_refused(pack: Pack) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(stream, "PNG")
    refused(pack(files() | {"train/cat/2.PNG": stream.getvalue()}), "2.PNG: pixels of .* I;16")


@pytest.mark.parametrize("extent", [8_001, 9_500, 60_000])
def test_pixel_bomb(pack: Pack, extent: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", extent, extent, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    refused(pack(files() | {"train/cat/2.PNG": bomb}), "2.PNG: .*pixels")


def test_file_that_is_too_large(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "MAX_FILE_BYTES", 1_000)
    path = pack(files() | {"train/cat/2.PNG": picture() + bytes(2_000)})
    refused(path, "2.PNG: .* bytes")


def test_too_many_files(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "MAX_MEMBERS", 2)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    refused(pack(files()), "more than 2 files|expected at most 2")


def test_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name, data in files().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "train/cat/0.png")
    assert stat.S_ISFIFO((tmp_path / "train/cat/0.png").stat().st_mode)
    refused(tmp_path, "0.png: not a regular file")


@pytest.mark.parametrize(
    "name", ["../x.png", "train/../../x.png", "/x.png", "a\\..\\x.png", "C:x.png"]
)
def test_zip_with_names_that_escape(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "toy.zip", files() | {name: b""})
    assert "do not trust" in refused(path, "expected a relative path")


def test_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 100_000)
    path = zipped(tmp_path / "toy.zip", files() | {"train/zeros": bytes(200_000)})
    refused(path, "bytes in all once decompressed; expected at most 1000000 of 100000")


def test_zip_member_that_lies_about_its_size(tmp_path: Path) -> None:
    path = zipped(tmp_path / "toy.zip", files() | {"train/cat/2.PNG": bytes(10_000_000)})
    content = path.read_bytes()
    true, claimed = struct.pack("<I", 10_000_000), struct.pack("<I", 500)
    assert content.count(true) == 2
    path.write_bytes(content.replace(true, claimed))
    refused(path, "train/cat/2.PNG: .*CRC")


def test_encrypted_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "toy.zip", files())
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "password" in refused(path, "is encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unbounded_compression(tmp_path: Path, method: int) -> None:
    refused(zipped(tmp_path / "toy.zip", files(), method), f"compression method {method}")


def test_truncated_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "toy.zip", files())
    path.write_bytes(path.read_bytes()[:-50])
    assert "truncated" in refused(path, "cannot be read as a zip file")


def test_zip_of_something_else(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "toy.zip", {"a/b/c.png": picture()}), "no images in train/<class>/")


def test_pixels_of_every_mode_agree_with_pillow() -> None:
    image = Image.effect_noise((9, 5), 60).convert("RGB")
    np.testing.assert_array_equal(images.to_pixels(image), np.asarray(image))
    np.testing.assert_array_equal(
        images.to_pixels(image, 1)[..., 0], np.asarray(image.convert("L"))
    )
