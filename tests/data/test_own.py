"""A client's own images: matched by name, and whatever does not fit refused by name."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from fedvtc_edge.data import Dataset, own
from fedvtc_edge.data.own import DataTerms, OwnData, load_own, terms_of
from fedvtc_edge.errors import DataError

AGREED = ("cat", "dog", "owl", "Käfer", "train")
GREY = DataTerms(AGREED, 8, 8, 1, 0)
COLOUR = DataTerms(AGREED, 8, 8, 3, 0)
Kind = Literal["npz", "folder", "zip"]

relaxed = hypothesis_settings(deadline=None, max_examples=40)


def picture(value: int = 0, *, size: tuple[int, int] = (8, 8), mode: str = "L") -> bytes:
    stream = io.BytesIO()
    Image.new("L", size, value).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def laid(where: Path, kind: Kind, content: dict[str, bytes]) -> Path:
    """Files as a folder, or packed as one .zip file."""
    if kind == "zip":
        with zipfile.ZipFile(where / "mine.zip", "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return where / "mine.zip"
    for name, data in content.items():
        (where / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (where / "mine" / name).write_bytes(data)
    return where / "mine"


def saved(where: Path, **changes: Any) -> Path:
    fields: dict[str, Any] = {"x": np.zeros((4, 8, 8, 1), np.uint8), "y": np.arange(4)}
    np.savez(where / "mine.npz", **{k: v for k, v in (fields | changes).items() if v is not None})
    return where / "mine.npz"


def refused(path: Path, message: str, terms: DataTerms = GREY, **keys: Any) -> str:
    """The hint of the refusal."""
    with pytest.raises(DataError, match=message) as caught:
        load_own(path, terms, **keys)
    assert str(path) in str(caught.value)
    return caught.value.hint


# ---------------------------------------------------------------- what fits


def twin(samples: list[tuple[str, int]]) -> list[tuple[int, int]]:
    """Slow and obvious: (brightness, agreed label), sorted."""
    pairs = []
    for name, value in samples:
        for position, agreed in enumerate(AGREED):
            if agreed == name:
                pairs.append((value, position))
    return sorted(pairs)


def pairs_of(data: OwnData) -> list[tuple[int, int]]:
    assert data.x.dtype == np.uint8
    assert data.y.dtype == np.int64
    assert all(image.min() == image.max() for image in data.x)
    return sorted(zip(data.x[:, 0, 0, 0].tolist(), data.y.tolist(), strict=True))


@relaxed
@given(
    names=st.permutations(AGREED).flatmap(
        lambda order: st.integers(1, len(order)).map(lambda few: order[:few])
    ),
    kind=st.sampled_from(["npz", "folder", "zip"]),
    prefix=st.sampled_from(["", "train/", "toy/", "toy/train/"]),
    data=st.data(),
)
def test_classes_are_matched_by_name(
    names: list[str], kind: Kind, prefix: str, data: st.DataObject
) -> None:
    """Any subset in any order, each of the three ways to lay it out, gives the same pairs."""
    labels = data.draw(st.lists(st.integers(0, len(names) - 1), min_size=1, max_size=8))
    samples = [(names[label], value) for value, label in enumerate(labels)]
    with tempfile.TemporaryDirectory() as place:
        if kind == "npz":
            x = np.broadcast_to(
                np.arange(len(labels), dtype=np.uint8)[:, None, None, None], (len(labels), 8, 8, 1)
            )
            path = saved(Path(place), x=x, y=np.array(labels), class_names=np.array(names))
        else:
            content = {f"{prefix}{name}/{value}.png": picture(value) for name, value in samples}
            path = laid(Path(place), kind, content)
        assert pairs_of(load_own(path, GREY)) == twin(samples)


@pytest.mark.parametrize("keys", [("x", "y"), ("x_train", "y_train")])
def test_without_names_labels_number_the_agreed_list(tmp_path: Path, keys: tuple[str, str]) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "mine.npz", **{keys[0]: x, keys[1]: np.array([4, 0, 4], np.uint8)})
    data = load_own(tmp_path / "mine.npz", COLOUR)
    np.testing.assert_array_equal(data.x, x)
    assert data.y.tolist() == [4, 0, 4]
    assert data.origin == str(tmp_path / "mine.npz")


def test_floats_and_images_without_a_channel_axis(tmp_path: Path) -> None:
    data = load_own(saved(tmp_path, x=np.full((4, 8, 8), 0.2)), GREY)
    assert data.x.shape == (4, 8, 8, 1)
    assert data.x.max() == data.x.min() == 51


def test_test_arrays_are_never_read(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_test.npy", b"no array")
        archive.writestr("y_test.npy", b"no array")
    assert len(load_own(path, GREY).x) == 4


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """As one of CIFAR-100 is."""
    content = {"train/1.png": picture(1), "dog/1.png": picture(2), "owl/x/1.png": picture(3)}
    for kind in ("folder", "zip"):
        data = load_own(laid(tmp_path, kind, content), GREY)
        assert pairs_of(data) == [(1, 4), (2, 1), (3, 2)]


def test_one_class_with_folders_of_its_own(tmp_path: Path) -> None:
    content = {"owl/images/1.png": picture(1), "owl/images/2.png": picture(2)}
    assert pairs_of(load_own(laid(tmp_path, "zip", content), GREY)) == [(1, 2), (2, 2)]


def test_names_are_the_same_however_an_accent_is_spelt(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "Käfer")
    assert apart != "Käfer"
    assert load_own(laid(tmp_path, "zip", {f"{apart}/1.png": picture()}), GREY).y.tolist() == [3]
    path = saved(tmp_path, y=np.zeros(4, int), class_names=np.array([apart]))
    assert load_own(path, GREY).y.tolist() == [3] * 4


@pytest.mark.parametrize("prefix", ["", "toy/", "train/", "toy/train/"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_file_managers_leave_is_ignored(tmp_path: Path, kind: Kind, prefix: str) -> None:
    content = {
        f"{prefix}dog/1.png": picture(9),
        f"{prefix}dog/._1.png": b"?",
        f"{prefix}dog/Thumbs.db": b"?",
        f"{prefix}dog/.cache/1.png": b"?",
        f"{prefix}.hidden/1.png": b"?",
        f"{prefix}loose.png": b"?",
        f"{prefix}labels.csv": b"1,dog",
        "__MACOSX/toy/dog/._1.png": b"?",
    }
    assert pairs_of(load_own(laid(tmp_path, kind, content), GREY)) == [(9, 1)]


def test_grey_becomes_colour_where_that_is_agreed(tmp_path: Path) -> None:
    content = {"cat/1.png": picture(7), "cat/2.png": picture(8, mode="RGB")}
    data = load_own(laid(tmp_path, "folder", content), COLOUR)
    assert data.x[:, 0, 0].tolist() == [[7, 7, 7], [8, 8, 8]]


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_resized_where_that_is_agreed(tmp_path: Path, kind: Kind) -> None:
    terms = DataTerms(AGREED, 12, 12, 1, 12)
    if kind == "npz":
        path = saved(tmp_path, x=np.full((4, 30, 17, 1), 5, np.uint8))
    else:
        content = {"cat/1.png": picture(5, size=(30, 17)), "dog/2.png": picture(5, size=(12, 12))}
        path = laid(tmp_path, kind, content)
    data = load_own(path, terms)
    assert data.x.shape[1:] == (12, 12, 1)
    assert data.x.min() == data.x.max() == 5


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_limit_draws_the_same_few_each_time(tmp_path: Path, kind: Kind) -> None:
    if kind == "npz":
        x = np.broadcast_to(np.arange(30, dtype=np.uint8)[:, None, None], (30, 8, 8))
        path = saved(tmp_path, x=x, y=np.arange(30) % 5)
    else:
        content = {f"{AGREED[i % 5]}/{i:02}.png": picture(i) for i in range(30)}
        path = laid(tmp_path, kind, content)
    few = pairs_of(load_own(path, GREY, limit=7))
    assert len(few) == 7
    assert set(few) < set(pairs_of(load_own(path, GREY)))
    assert few == pairs_of(load_own(path, GREY, limit=7))
    assert all(label == value % 5 for value, label in few)
    assert len(load_own(path, GREY, limit=99).y) == 30


def test_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(saved(tmp_path).parent))
    assert load_own(Path("~/mine.npz"), GREY).origin == str(tmp_path / "mine.npz")


# ---------------------------------------------------------------- what does not


def test_unknown_class(tmp_path: Path) -> None:
    path = saved(tmp_path, class_names=np.array(["cat", "zebra", "dog", "yak"]))
    hint = refused(path, r"class_names: 'zebra' is none of the 5 agreed classes \(nor are 1 more\)")
    assert hint == "agreed: cat, dog, owl, Käfer, train"
    content = {"cat/1.png": picture(), "zebra/1.png": picture()}
    assert refused(laid(tmp_path, "zip", content), "class folders: 'zebra' is none of") == hint


@pytest.mark.parametrize("near", ["cats", "Cat", "CAT "])
def test_near_miss_of_a_class_name(tmp_path: Path, near: str) -> None:
    path = saved(tmp_path, y=np.zeros(4, int), class_names=np.array([near]))
    assert refused(path, f"class_names: '{near}' is none") == "did you mean 'cat'?"
    path = laid(tmp_path, "zip", {f"{near}/1.png": picture(), "dog/1.png": picture()})
    assert refused(path, f"class folders: '{near}' is none") == "did you mean 'cat'?"


def test_a_hint_stays_one_line_for_many_classes(tmp_path: Path) -> None:
    terms = replace(GREY, class_names=tuple(f"{number:03}" for number in range(100)))
    path = saved(tmp_path, y=np.zeros(4, int), class_names=np.array(["x\x1b" * 500]))
    hint = refused(path, r"class_names: 'x\\x1bx.{60,80} is none of the 100", terms)
    assert hint.endswith("008, 009, … (100 in all)")


def test_a_class_listed_twice(tmp_path: Path) -> None:
    path = saved(tmp_path, class_names=np.array(["cat", "dog", "cat", "owl"]))
    assert "merge" in refused(path, "class_names: 'cat' stands there twice")


@pytest.mark.parametrize("names", [np.array([], "U1"), np.array([["cat"]]), np.array([0.5])])
def test_class_names_that_are_no_list(tmp_path: Path, names: Any) -> None:
    refused(saved(tmp_path, class_names=names), r"class_names: .* of shape \[.*expected strings")


def test_colour_where_grey_is_agreed(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.zeros((4, 8, 8, 3), np.uint8))
    assert "greyscale" in refused(path, "images of 8x8x3, agreed are 8x8x1")
    content = {"cat/1.png": picture(), "cat/2.png": picture(mode="RGB")}
    for kind in ("folder", "zip"):
        hint = refused(laid(tmp_path, kind, content), "cat/2.png: a colour image, agreed is 1 chan")
        assert "greyscale" in hint


def test_grey_array_where_colour_is_agreed(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.zeros((4, 9, 9, 1), np.uint8))
    terms = replace(COLOUR, image_size=8)  # no resizing changes the channels
    assert "np.repeat" in refused(path, "images of 9x9x1, agreed are 8x8x3", terms)


def test_wrong_size(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.zeros((4, 28, 28, 1), np.uint8))
    hint = refused(path, "images of 28x28x1, agreed are 8x8x1")
    assert "resize them to 8x8" in hint
    assert "data.image_size" in hint


def test_mixed_sizes(tmp_path: Path) -> None:
    content = {"cat/1.png": picture(), "dog/1.png": picture(size=(12, 16))}
    for kind in ("folder", "zip"):
        path = laid(tmp_path, kind, content)
        assert "8x8" in refused(path, "dog/1.png: images of 16x12x1, agreed are 8x8x1")


def test_no_images(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.zeros((0, 8, 8, 1), np.uint8), y=np.zeros(0, int))
    assert "cannot take part" in refused(path, r"x: no images \(shape \[0, 8, 8, 1\]\)")
    (tmp_path / "mine" / "cat").mkdir(parents=True)
    refused(tmp_path / "mine", "no images in train/<class>/ or <class>/")
    refused(laid(tmp_path, "zip", {"cat/readme.txt": b"?"}), "no images in train/<class>/ or")


def test_images_without_class_folders(tmp_path: Path) -> None:
    for kind in ("folder", "zip"):
        path = laid(tmp_path, kind, {"1.png": picture(), "2.png": picture()})
        assert "one folder per class" in refused(path, "no images in train/<class>/ or <class>/")
    path = laid(tmp_path, "zip", {"photos/1.png": picture()})
    refused(path, "class folders: 'photos' is none of the 5 agreed classes")


@pytest.mark.parametrize("labels", [[0, 1, 2, 5], [0, -1, 2, 3], [0, 1, 2, 10**12]])
def test_labels_out_of_range(tmp_path: Path, labels: list[int]) -> None:
    low, high = min(labels), max(labels)
    path = saved(tmp_path, y=np.array(labels))
    refused(path, f"y: labels from {low} to {high}; expected 0 to 4")
    path = saved(tmp_path, y=np.array(labels), class_names=np.array(["owl", "dog", "cat"]))
    refused(path, f"y: labels from {low} to {high}; expected 0 to 2")


@pytest.mark.parametrize("y", [np.zeros(4), np.zeros((4, 1), int), np.array(1)])
def test_labels_that_are_none(tmp_path: Path, y: Any) -> None:
    refused(saved(tmp_path, y=y), "y: .* labels of shape")


def test_labels_of_other_samples(tmp_path: Path) -> None:
    refused(saved(tmp_path, y=np.zeros(3, int)), "x has 4 images, y 3 labels")


@pytest.mark.parametrize("key", ["x", "y", "class_names"])
def test_pickled_arrays_are_never_read(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path, **{key: np.array([{"a": 1}] * 4, dtype=object)})
    assert "never read" in refused(path, f"{key}: an array of pickled Python objects")


@pytest.mark.parametrize("x", [np.full((4, 8, 8), 255.0), np.full((4, 8, 8), -0.5)])
def test_float_images_out_of_range(tmp_path: Path, x: Any) -> None:
    assert "scale" in refused(saved(tmp_path, x=x), r"x: float images .*; expected \[0, 1\]")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None, "y": None}, "no key x_train; found: nothing"),
        ({"y": None}, "no key y; found: x"),
        ({"y": None, "y_train": np.arange(4)}, "keys x, y_train; expected one pair"),
        ({"x_train": np.zeros(1)}, "keys x, x_train, y; expected one pair"),
    ],
)
def test_keys(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert "np.savez(path, x=…, y=…" in refused(saved(tmp_path, **changes), message)


@pytest.mark.parametrize("kind", ["npz", "zip"])
def test_damaged_archive(tmp_path: Path, kind: Kind) -> None:
    path = saved(tmp_path) if kind == "npz" else laid(tmp_path, kind, {"cat/1.png": picture()})
    path.write_bytes(path.read_bytes()[:-30])
    assert "truncated" in refused(path, "cannot be read as a zip file")


def test_damaged_image(tmp_path: Path) -> None:
    for kind in ("folder", "zip"):
        path = laid(tmp_path, kind, {"cat/1.png": picture()[:-30]})
        refused(path, "cat/1.png: cannot be read as an image")


def test_more_files_than_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedvtc_edge.data.trees.MAX_MEMBERS", 2)
    path = laid(tmp_path, "folder", {f"cat/{number}.png": picture() for number in range(3)})
    refused(path, "more than 2 files")


@pytest.mark.parametrize("name", ["absent.npz", "absent", "notes.txt", "dir.npz/none"])
def test_nothing_to_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("?")
    assert "np.savez" in refused(tmp_path / name, "no images at .*expected an .npz file")


# ---------------------------------------------------------------- the terms


def test_terms_of_a_data_set() -> None:
    x, y = np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1])
    data = Dataset("toy", x, y, x, y, AGREED)
    assert terms_of(data, 0) == COLOUR
    assert terms_of(data, 8) == replace(COLOUR, image_size=8)
    with pytest.raises(DataError, match="image_size 12 for images of 8x8x3; expected 0 or 8"):
        terms_of(data, 12)


printable = st.text(min_size=1, max_size=200).filter(str.isprintable)


@relaxed
@given(
    names=st.lists(
        printable, min_size=2, unique_by=lambda name: unicodedata.normalize("NFC", name)
    ),
    size=st.integers(2, 16).map(lambda quarter: 4 * quarter),
    channels=st.sampled_from([1, 3]),
    resize=st.booleans(),
)
def test_terms_survive_json(names: list[str], size: int, channels: int, resize: bool) -> None:
    terms = DataTerms(tuple(names), size, size, channels, size if resize else 0)
    text = terms.to_json()
    assert json.loads(text)["class_names"] == names
    assert DataTerms.from_json(text) == DataTerms.from_json(text.encode()) == terms


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["cat"]}, "agreed class names: 1 classes"),
        ({"class_names": ["cat", "cat"]}, "'cat' stands there twice"),
        ({"class_names": ["é", "e\u0301"]}, "stands there twice"),
        ({"class_names": ["cat", "\x1b]0;x"]}, r"'\\x1b\]0;x' is no class name"),
        ({"class_names": [str(number) for number in range(10_001)]}, "10001 classes"),
        ({"class_names": ["cat", 1]}, "class_names.1: .*string"),
        ({"class_names": "cat"}, "class_names: "),
        ({"height": 12}, "agreed size: images of 12x8 pixels"),
        ({"height": 9, "width": 9}, "agreed size: images of 9x9 pixels"),
        ({"height": 10**9, "width": 10**9}, "agreed size"),
        ({"height": -8, "width": -8}, "agreed size"),
        ({"height": 8.0}, "height: .*integer"),
        ({"height": "8"}, "height: .*integer"),
        ({"channels": True}, "channels: .*integer"),
        ({"channels": 2}, "agreed channels: 2; expected 1 or 3"),
        ({"image_size": 16}, "image_size 16 for images of 8x8x1"),
        ({"image_size": None}, "image_size: "),
        ({"extra": 1}, "extra: "),
    ],
)
def test_terms_that_are_refused(changes: dict[str, Any], message: str) -> None:
    document = json.loads(GREY.to_json()) | changes
    with pytest.raises(DataError, match=message) as caught:
        DataTerms.from_json(json.dumps(document))
    assert caught.value.hint


@pytest.mark.parametrize("key", ["class_names", "height", "width", "channels", "image_size"])
def test_terms_without_a_key(key: str) -> None:
    document = json.loads(GREY.to_json())
    del document[key]
    with pytest.raises(DataError, match=f"{key}: "):
        DataTerms.from_json(json.dumps(document))


@relaxed
@given(
    st.binary(max_size=60)
    | st.text(st.characters(exclude_categories=()), max_size=60)
    | st.recursive(st.integers() | st.text(max_size=5), st.lists, max_leaves=5).map(json.dumps)
)
def test_no_bytes_do_anything_else(untrusted: str | bytes) -> None:
    with pytest.raises(DataError):
        DataTerms.from_json(untrusted)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, b"\xff", "\ud800", ""])
def test_hostile_json(text: str | bytes) -> None:
    with pytest.raises(DataError, match="terms of the data: JSON: "):
        DataTerms.from_json(text)


def test_terms_that_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "MAX_JSON", 50)
    with pytest.raises(DataError, match="expected at most 50"):
        DataTerms.from_json(GREY.to_json())


def test_the_longest_terms_fit() -> None:
    names = tuple(f"{number:05}" + '"\U0001f600' * 97 + "x" for number in range(10_000))
    assert max(map(len, names)) == 200
    terms = replace(GREY, class_names=names)
    assert DataTerms.from_json(terms.to_json().encode()) == terms


# ---------------------------------------------------------------- around it


def test_torch_stays_out(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fedvtc_edge.data.own import *;"
        "load_own(Path(sys.argv[1]), DataTerms.from_json(sys.argv[2]));"
        "sys.exit('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(saved(tmp_path)), GREY.to_json()]
    assert subprocess.run(words, check=False).returncode == 0


GUIDE = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text("utf-8")


def test_the_guide_saves_a_file_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    section = GUIDE.partition("## A client's own data")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    exec(code, {"images": np.zeros((2, 8, 8), np.uint8), "labels": np.array([0, 1])})
    assert load_own(Path("mine.npz"), GREY).y.tolist() == [2, 0]


@pytest.mark.parametrize(
    "content",
    [
        {"class_names": np.array(["Cat", "dog", "owl"])},
        {"zebra/1.png": picture()},
        {"y": np.array([1, 2, 3])},
        {"x": np.zeros((3, 28, 28), np.uint8)},
        {"cat/1.png": picture(size=(32, 32)), "cat/2.png": picture(mode="RGB")},
        {"1.png": picture()},
        {"x": np.linspace(0, 255, 3 * 32 * 32).reshape(3, 32, 32)},
    ],
    ids=lambda content: ", ".join(content),
)
def test_the_guide_quotes_refusals_as_they_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    if any(name.endswith(".png") for name in content):
        path = laid(Path(), "folder", content)
    else:
        fitting = {"x": np.zeros((3, 32, 32), np.uint8), "y": np.arange(3)}
        path = saved(Path(), **(fitting | content))
    with pytest.raises(DataError) as caught:
        load_own(path, DataTerms(("cat", "dog", "owl"), 32, 32, 1, 0))
    quoted = f"fedvtc-edge: error: {caught.value}\nfedvtc-edge: hint: {caught.value.hint}\n"
    assert quoted in GUIDE
