"""``verify``, ``synthesize``, ``classify`` and ``refresh`` as their user meets them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image

from fedvtc_edge.export import Bundle
from fedvtc_edge.export import verify as verified
from fedvtc_edge.export.codes import log_softmax
from fedvtc_edge.sealing import signing

Call = Callable[..., Any]
Rewrite = Callable[..., Path]
Json = Callable[[str], Any]


@pytest.fixture(autouse=True)
def _quick(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No disk is awaited, and no passphrase is set."""
    monkeypatch.delenv(signing.PASSPHRASE, raising=False)


@pytest.fixture
def keys(tmp_path: Path, signer: Ed25519PrivateKey) -> dict[str, str]:
    """Files of the exporter's keys, a stranger's public key, and what is no key."""
    signing.save(signer, tmp_path / "key")
    signing.save(signing.generate(), tmp_path / "stranger")
    (tmp_path / "garbage").write_text("no key")
    return {
        "private": "key",
        "public": "key.pub",
        "stranger": "stranger.pub",
        "heir": "stranger",
        "print": signing.fingerprint(signer.public_key()),
    }


def succeeded(answer: Any) -> str:
    assert (answer.code, answer.err) == (0, "")
    out: str = answer.out
    return out


# ---------------------------------------------------------------- verify


def test_verify_lists_every_file(call: Call, bundle: Path) -> None:
    lines = succeeded(call("verify", bundle)).splitlines()
    files = verified(bundle).manifest.files
    assert lines[0].split() == ["file", "bytes", "SHA-256"]
    assert [line.split() for line in lines[1 : 1 + len(files)]] == [
        [name, str(file.size), file.sha256] for name, file in files.items()
    ]
    assert lines[1 + len(files) :] == [
        "",
        "client-00, revision 0: every byte is as exported",
        "privacy: nothing is claimed: treat the bundle as the client's data",
        "NOT signed: whoever can write here could have changed it",
    ]


def test_verify_says_what_a_signature_is_worth(
    call: Call, signed: Path, keys: dict[str, str], strict_json: Json
) -> None:
    last = succeeded(call("verify", signed)).splitlines()[-1]
    assert last == "signed, but the signature was NOT checked: give --key PUB"
    last = succeeded(call("verify", signed, "--key", keys["public"])).splitlines()[-1]
    assert last == f"signed by {keys['print']}"
    for words, signer, signature in (
        (("--key", keys["public"]), keys["print"], "valid"),
        ((), None, "unchecked"),
    ):
        document = strict_json(succeeded(call("verify", signed, "--json", *words)))
        assert (document["signed_by"], document["signature"]) == (signer, signature)
        assert document["verified"] is True
        assert document["schema"] == 1
    (signed / "manifest.sig").unlink()
    assert strict_json(succeeded(call("verify", signed, "--json")))["signature"] == "none"


def test_verify_as_json(call: Call, bundle: Path, strict_json: Json) -> None:
    document = strict_json(succeeded(call("verify", bundle, "--json")))
    listed = json.loads((bundle / "manifest.json").read_text())["files"]
    assert document == {
        "schema": 1,
        "verified": True,
        "signed_by": None,
        "signature": "none",
        "client": "client-00",
        "revision": 0,
        "extractor": False,
        "privacy": dict.fromkeys(
            ("epsilon", "delta", "unit", "relation", "covers", "covers_models")
        )
        | {"mode": "none"},
        "files": listed,
    }


_RELEASES = {
    "mode": "anchored",
    "epsilon": 4.0,
    "delta": 1e-5,
    "unit": "one training example",
    "relation": "add/remove",
    "covers": "each client's upload",
    "covers_models": False,
}


@pytest.mark.parametrize(
    ("changed", "lines"),
    [
        (
            {},
            [
                "privacy: epsilon 4, delta 1e-05 about each client's upload; "
                "unit: one training example",
                "NOT covered: classifier and decoder, which were trained without noise: "
                "treat them as the client's data",
            ],
        ),
        (
            {"covers_models": True},
            [
                "privacy: epsilon 4, delta 1e-05 about each client's upload; "
                "unit: one training example"
            ],
        ),
        (
            {"relation": None, "covers": None, "covers_models": None},
            [
                "privacy: epsilon 4, delta 1e-05; unit: one training example",
                "NOT covered: classifier and decoder, which were trained without noise: "
                "treat them as the client's data",
            ],
        ),
        (
            {"epsilon": None},
            ["privacy: nothing is claimed: treat the bundle as the client's data"],
        ),
    ],
    ids=["releases", "models too", "an older bundle", "nothing"],
)
def test_verify_says_what_the_claim_covers(
    call: Call, signed: Path, rewrite: Any, changed: dict[str, Any], lines: list[str]
) -> None:
    privacy = {k: v for k, v in {**_RELEASES, **changed}.items() if v is not None or k == "epsilon"}
    out = succeeded(call("verify", rewrite(signed, privacy=privacy))).splitlines()
    assert out[-1 - len(lines) : -1] == lines


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda b: (b / "extra").touch(), "extra: not listed in the manifest"),
        (lambda b: (b / "a\x1b[2J\nb").touch(), r"a\x1b[2J"),
        (lambda b: (b / "classifier.onnx").unlink(), "classifier.onnx is missing"),
        (lambda b: (b / "classifier.onnx").write_bytes(b"x"), "classifier.onnx: 1 bytes, expected"),
        (lambda b: (b / "manifest.json").write_text("{"), "manifest.json is not JSON"),
        (lambda b: (b / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda b: (b / "manifest.sig").write_bytes(b"x"), "manifest.sig: 1 bytes, expected 64"),
        (lambda b: (b / "link").symlink_to("anchor.onnx"), "link: a link"),
        (lambda b: (b / "sub").mkdir(), "sub: not listed"),
    ],
)
def test_every_command_refuses_a_harmed_bundle(
    call: Call, bundle: Path, harm: Callable[[Path], Any], message: str, as_json: bool
) -> None:
    harm(bundle)
    flags = ["--json"] if as_json else []
    call("verify", bundle, *flags).refuses(message, code=1)
    call("synthesize", bundle, "--out", "a.png", *flags).refuses(message, code=1)
    call("classify", bundle, "absent.png", *flags).refuses(message, code=1)
    call("refresh", bundle, "absent", *flags).refuses(message, code=1)
    assert not Path("a.png").exists()


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        ((), "manifest.sig is missing: nobody signed this bundle", 1),
        (("--key", "absent.pub"), "cannot read the key absent.pub", 2),
        (("--key", "garbage"), "garbage is not an Ed25519 public key", 2),
        (("--key", "key"), "key is a private key, expected the public one", 2),
    ],
)
def test_every_command_refuses_without_the_right_key(
    call: Call, bundle: Path, keys: dict[str, str], words: Any, message: str, code: int
) -> None:
    words = words or ("--key", keys["public"])
    call("verify", bundle, *words).refuses(message, code=code)
    call("synthesize", bundle, "--out", "a.png", *words).refuses(message, code=code)
    call("classify", bundle, "absent.png", *words).refuses(message, code=code)
    call("refresh", bundle, "absent", *words).refuses(message, code=code)


def test_another_keys_signature(call: Call, signed: Path, keys: dict[str, str]) -> None:
    answer = call("verify", signed, "--key", keys["stranger"])
    answer.refuses("signature of manifest.json", "do not use it", code=1)


@pytest.mark.parametrize("path", ["absent", "file", "x" * 300])
def test_what_is_no_folder(call: Call, tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    for words in (
        ("verify", path),
        ("synthesize", path, "--out", "a.png"),
        ("classify", path, "a.png"),
        ("refresh", path, "file"),
    ):
        call(*words).refuses("not a folder" if path == "file" else "no such folder")


def test_a_folder_of_bundles(call: Call, exported: Path) -> None:
    call("verify", exported).refuses("is no bundle", "client-00", code=1)


# ---------------------------------------------------------------- synthesize


def test_synthesize_draws_a_row_per_class(call: Call, bundle: Path) -> None:
    words = ("--label", "3", "--label", "0", "--count", "5", "--seed", "7")
    out = succeeded(call("synthesize", bundle, *words, "--out", "a.png"))
    assert out == "10 images of 3, 0, seed 7: a.png\n"
    images = Bundle.open(bundle, variant="fp32").synthesize([3] * 5 + [0] * 5, 7)
    with Image.open("a.png", formats=["PNG"]) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[0] == 2 * 50 + 2
    margin = pixels.shape[1] - 5 * 50
    for number, image in enumerate(images):
        top, left = 2 + number // 5 * 50, margin + number % 5 * 50
        tile = pixels[top : top + 48 : 6, left : left + 48 : 6]
        np.testing.assert_array_equal(tile, image[..., 0])


def test_synthesize_writes_arrays(call: Call, bundle: Path, strict_json: Json) -> None:
    words = ("--count", "3", "--out", "a.NPZ", "--variant", "int8")
    document = strict_json(succeeded(call("synthesize", bundle, *words, "--json")))
    assert document == {
        "schema": 1,
        "out": "a.NPZ",
        "images": 30,
        "labels": list(range(10)),
        "seed": 0,
        "signed_by": None,
    }
    with np.load("a.NPZ", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["images", "labels"]
        np.testing.assert_array_equal(arrays["labels"], np.repeat(np.arange(10), 3))
        expected = Bundle.open(bundle, variant="int8").synthesize(arrays["labels"], 0)
        np.testing.assert_array_equal(arrays["images"], expected)


def test_synthesize_takes_every_known_class(call: Call, bundle: Path, rewrite: Rewrite) -> None:
    codes = Bundle.open(bundle).codes
    codes.known[[2, 5]] = False
    (bundle / "statistics.safetensors").write_bytes(codes.to_bytes())
    rewrite(bundle)
    out = succeeded(call("synthesize", bundle, "--count", "1", "--out", "a.npz"))
    assert out.startswith("8 images of 0, 1, 3, 4, 6, 7, 8, 9, seed 0")
    answer = call("synthesize", bundle, "--label", "5", "--out", "b.npz")
    answer.refuses("label 5 (5): no client had a sample", "leave that class out")
    assert not Path("b.npz").exists()


def test_synthesize_checks_a_signature(call: Call, signed: Path, keys: dict[str, str]) -> None:
    words = ("--out", "a.png", "--key", keys["public"], "--json")
    assert json.loads(succeeded(call("synthesize", signed, *words)))["signed_by"] == keys["print"]


def test_labels_by_name(call: Call, bundle: Path, rewrite: Rewrite, strict_json: Json) -> None:
    names = ["cat", "chien été", "-7", *map(str, range(3, 10))]
    rewrite(bundle, classes=names)

    def painted(*labels: str) -> Any:
        words = [f"--label={label}" for label in labels]
        answer = call("synthesize", bundle, *words, "--count", "1", "--out", "a.npz", "--json")
        return strict_json(succeeded(answer))["labels"]

    assert painted("cat", "chien été", "2", "9") == [0, 1, 2, 9]
    answer = call("synthesize", bundle, "--label", "catt", "--out", "a.npz")
    answer.refuses("--label 'catt' is no class of this bundle", "did you mean cat?")
    answer = call("synthesize", bundle, "--label", "zebra", "--out", "a.npz")
    answer.refuses("--label 'zebra' is no class of this bundle", "classes: cat, chien été")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--out", "a.gif"], "expected a name that ends in .png or .npz", "synthesize --help"),
        (["--out", "png"], "expected a name that ends in", ""),
        (["--out", "absent/a.png"], "absent/a.png: no such folder", "mkdir -p absent"),
        (["--out", "folder.png"], "folder.png: a folder", "choose another name"),
        ([], "Missing option '--out'", "synthesize --help"),
        (["--out", "a.png", "--label", "10"], "label 10, expected 0 to 9", "classes"),
        (["--out", "a.png", "--label=-1"], "label -1, expected 0 to 9", "classes"),
        (["--out", "a.png", "--label=--1"], "'--1' is no class", "classes:"),
        (["--out", "a.png", "--label=-"], "'-' is no class", "classes:"),
        (["--out", "a.png", "--label", "²"], "'²' is no class", "classes:"),
        (["--out", "a.png", "--label", ""], "'' is no class", "classes:"),
        (["--out", "a.png", "--label", "9" * 30], "is no class", "classes:"),
        (["--out", "a.png", "--label", "1.0"], "'1.0' is no class", ""),
        (["--out", "a.png", "--count", "0"], "0 is not in the range", "--help"),
        (["--out", "a.png", "--count", "x"], "'x' is not a valid integer", "--help"),
        (["--out", "a.png", "--count", "99999"], "999990 images, expected at most 100000", ""),
        (["--out", "a.png", "--count", "999", "--label", "1"], "at most 16000 a side", ".npz"),
        (["--out", "a.png", "--seed", "-1"], "-1 is not in the range", "--help"),
        (["--out", "a.png", "--seed", str(2**63)], "is not in the range", "--help"),
        (["--out", "a.png", "--variant", "fp16"], "'fp16' is not one of", "--help"),
        (["--out", "a.png", "--lable", "1"], "unknown option --lable", "--label"),
    ],
)
def test_what_cannot_be_painted(
    call: Call, bundle: Path, tmp_path: Path, words: list[str], message: str, hint: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    before = sorted(os.listdir(tmp_path))
    for flags in ([], ["--json"]):
        call("synthesize", bundle, *words, *flags).refuses(message, hint)
    assert sorted(os.listdir(tmp_path)) == before


def test_the_largest_seed(call: Call, bundle: Path) -> None:
    words = ("--label", "0", "--seed", str(2**63 - 1), "--out", "a.npz")
    succeeded(call("synthesize", bundle, *words))


def test_int8_where_there_is_none(
    call: Call, bundle: Path, rewrite: Rewrite, tmp_path: Path
) -> None:
    graphs = json.loads((bundle / "manifest.json").read_text())["graphs"]
    for name in ("classifier", "synthesizer"):
        (bundle / graphs[name]["variants"].pop("int8")).unlink()
    rewrite(bundle, graphs=graphs, int8={})
    (tmp_path / "a.png").write_bytes(png())
    for words in (("synthesize", bundle, "--out", "b.png"), ("classify", bundle, "a.png")):
        call(*words, "--variant", "int8").refuses("no int8 variant", "--int8")


def test_a_picture_is_whole_or_the_old_one(
    call: Call, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    before = sorted(os.listdir(tmp_path))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        answer = call("synthesize", bundle, "--out", "a.png")
    answer.refuses("No space left on device", "free some space")
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == before
    succeeded(call("synthesize", bundle, "--out", "a.png"))
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


# ---------------------------------------------------------------- classify


def png(size: tuple[int, int] = (8, 8), *, seed: int = 0, mode: str = "L") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    names = ["a.png", "b.png", "c.png"]
    for seed, name in enumerate(names):
        (tmp_path / name).write_bytes(png(seed=seed))
    return names


def pixels_of(name: str) -> Any:
    with Image.open(name) as image:
        return np.asarray(image)[None, ..., None]


@pytest.mark.parametrize("both", [False, True])
def test_classify_as_json(
    call: Call, bundle: Path, images: list[str], strict_json: Json, both: bool
) -> None:
    flags = ["--calibrated"] if both else []
    words = ("--top", "10", "--variant", "fp32", "--json", *flags)
    document = strict_json(succeeded(call("classify", bundle, *images, *words)))
    head = {key: value for key, value in document.items() if key != "results"}
    assert head == {
        "schema": 1,
        "variant": "fp32",
        "calibrated": both,
        "prior": "uniform",
        "signed_by": None,
    }
    opened = Bundle.open(bundle, variant="fp32")
    assert [result["image"] for result in document["results"]] == images
    for result in document["results"]:
        (scores,) = opened.classify(pixels_of(result["image"]), calibrated=both)
        shares = np.exp(log_softmax(scores[None].astype(float)))[0]
        order = [entry["label"] for entry in result["top"]]
        assert sorted(order) == list(range(10))
        assert order[0] == scores.argmax()
        assert [entry["class"] for entry in result["top"]] == [str(label) for label in order]
        listed = [entry["probability"] for entry in result["top"]]
        np.testing.assert_allclose(listed, shares[order])
        assert listed == sorted(listed, reverse=True)
        assert abs(sum(listed) - 1) < 1e-6


def test_classify_as_a_table(call: Call, bundle: Path, images: list[str]) -> None:
    lines = succeeded(call("classify", bundle, *images, "--top", "2")).splitlines()
    assert lines[0].split() == ["image", "top", "1", "top", "2"]
    assert [line.split()[0] for line in lines[1:]] == images
    assert all(line.count(" %") == 2 for line in lines[1:])
    lines = succeeded(call("classify", bundle, images[0], "--top", "99")).splitlines()
    assert lines[0].split()[-2:] == ["top", "10"]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("size", [(8, 8), (30, 17)])
def test_classify_resizes_as_in_training(
    call: Call, bundle: Path, tmp_path: Path, strict_json: Json, mode: str, size: tuple[int, int]
) -> None:
    from fedvtc_edge.data.images import decode, resized

    data = png(size, mode=mode)
    (tmp_path / "a").write_bytes(data)
    words = ("classify", bundle, "a", "--top", "10", "--variant", "fp32", "--json")
    (result,) = strict_json(succeeded(call(*words)))["results"]
    pixels = resized(decode(data, "a", 1), 8)[None]
    scores = Bundle.open(bundle, variant="fp32").classify(pixels)
    shares = np.exp(log_softmax(scores.astype(float)))[0]
    for entry in result["top"]:
        assert entry["probability"] == pytest.approx(shares[entry["label"]])


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "Missing argument 'IMAGE...'", "classify --help"),
        (["a.png", "absent.png"], "absent.png: no such file", "paths of image files"),
        (["."], ".: a folder", "paths of image files"),
        (["a.png", "empty.png"], "empty.png: cannot be read as an image", "damaged"),
        (["text.png"], "text.png: cannot be read as an image", "damaged"),
        (["half.png"], "half.png: cannot be read as an image", "damaged"),
        (["x" * 300], "File name too long", "check the path"),
        (["a.png", "--top", "0"], "0 is not in the range", "--help"),
        (["a.png", "--calibrate"], "unknown option --calibrate", "--calibrated"),
    ],
)
def test_what_cannot_be_classified(
    call: Call, bundle: Path, tmp_path: Path, words: list[str], message: str, hint: str
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "half.png").write_bytes(png((64, 64))[:3000])
    for flags in ([], ["--json"]):
        call("classify", bundle, *words, *flags).refuses(message, hint)


def test_a_bundle_without_an_anchor_is_not_calibrated(
    call: Call, bundle: Path, rewrite: Rewrite, images: list[str]
) -> None:
    graphs = json.loads((bundle / "manifest.json").read_text())["graphs"]
    for name in ("anchor.onnx", "synthesizer.onnx", "synthesizer.int8.onnx"):
        (bundle / name).unlink()
    (bundle / "statistics.safetensors").unlink()
    keep = {"classifier": graphs["classifier"]}
    rewrite(bundle, graphs=keep, noise=None, anchor=None, method="fedavg")
    succeeded(call("classify", bundle, *images))
    answer = call("classify", bundle, *images, "--calibrated")
    answer.refuses("no anchor statistics to calibrate with", "method.share = anchored")
    answer = call("synthesize", bundle, "--out", "a.png")
    answer.refuses("'fedavg' published no statistics", "fedvtc")


# ---------------------------------------------------------------- refresh


@pytest.fixture
def newer(tiny_run: Path) -> Path:
    (published,) = tiny_run.rglob("statistics.safetensors")
    return published


def test_refresh_raises_the_revision(
    call: Call, bundle: Path, newer: Path, strict_json: Json
) -> None:
    out = succeeded(call("refresh", bundle, newer))
    assert out == f"{bundle}: client-00 is at revision 1, not signed\n"
    document = strict_json(succeeded(call("refresh", bundle.name, newer, "--json")))
    assert document == {"schema": 1, "bundle": bundle.name, "revision": 2, "signed": False}
    assert verified(bundle).manifest.revision == 2


def test_refresh_signs(call: Call, signed: Path, newer: Path, keys: dict[str, str]) -> None:
    answer = call("refresh", signed, newer)
    answer.refuses("is signed, and would lose its signature", "--sign KEY")
    out = succeeded(call("refresh", signed, newer, "--sign", keys["private"]))
    assert out.endswith("is at revision 1, signed\n")
    succeeded(call("verify", signed, "--key", keys["public"]))
    answer = call("refresh", signed, newer, "--sign", keys["heir"])
    answer.refuses("signature of manifest.json", code=1)
    words = ("--sign", keys["heir"], "--key", keys["public"])
    succeeded(call("refresh", signed, newer, *words))
    succeeded(call("verify", signed, "--key", keys["stranger"]))


def test_refresh_with_a_locked_key(
    call: Call,
    signed: Path,
    newer: Path,
    signer: Ed25519PrivateKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signing.save(signer, Path("locked"), passphrase="secret")
    words = ("refresh", signed, newer, "--sign", "locked")
    call(*words).refuses("locked is locked with a passphrase", signing.PASSPHRASE)
    monkeypatch.setenv(signing.PASSPHRASE, "wrong")
    call(*words).refuses("locked cannot be unlocked", signing.PASSPHRASE)
    monkeypatch.setenv(signing.PASSPHRASE, "secret")
    succeeded(call(*words))


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "Missing argument 'STATISTICS'", "refresh --help"),
        (["absent"], "absent: no such file", "statistics.safetensors"),
        (["garbage"], "not safetensors", "damaged"),
        (["large"], "more than statistics of this bundle's shape have", "same settings"),
        (["garbage", "--sign", "absent"], "cannot read the key absent", "check the path"),
        (["garbage", "--sign", "key.pub"], "is not an Ed25519 private key", "keys new FILE"),
    ],
)
def test_what_cannot_be_refreshed(
    call: Call, bundle: Path, keys: dict[str, str], words: list[str], message: str, hint: str
) -> None:
    Path("large").write_bytes(b"\0" * 100_000)
    before = (bundle / "manifest.json").read_bytes()
    for flags in ([], ["--json"]):
        call("refresh", bundle, *words, *flags).refuses(message, hint)
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_refresh_on_a_full_disk(
    call: Call, bundle: Path, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfile", full)
        call("refresh", bundle, newer).refuses("No space left on device", "free some space")
    assert verified(bundle).manifest.revision == 0


# ---------------------------------------------------------------- a device's installation

DEVICE = """
import io, json, sys
from contextlib import redirect_stdout

BARRED = {"torch", "torchvision", "onnx", "onnxscript", "matplotlib", "jinja2", "sklearn",
          "tqdm", "opacus", "tomli_w", "flwr", "scipy", "pydantic"}

class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BARRED:
            raise ModuleNotFoundError(f"no {name} on this device", name=name)

sys.meta_path.insert(0, Bar())
from fedvtc_edge.__main__ import main

for words in json.loads(sys.argv[1]):
    try:
        with redirect_stdout(io.StringIO()):
            main(words)
    except SystemExit as left:
        print(words[0], left.code)
assert not BARRED & {name.partition(".")[0] for name in sys.modules}
"""


def test_every_command_of_a_device_runs_without_a_training_package(
    signed: Path, newer: Path, keys: dict[str, str], images: list[str], tmp_path: Path
) -> None:
    bundle, key = str(signed), ["--key", keys["public"]]
    commands = [
        ["keys", "new", "another"],
        ["keys", "show", keys["public"]],
        ["verify", bundle, *key],
        ["synthesize", bundle, *key, "--out", "made.png"],
        ["synthesize", bundle, *key, "--out", "made.npz", "--variant", "int8"],
        ["classify", bundle, *images, *key],
        ["classify", bundle, *images, *key, "--calibrated", "--json"],
        ["refresh", bundle, str(newer), "--sign", keys["private"]],
        ["verify", bundle, *key, "--json"],
        ["--help"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", DEVICE, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{words[0]} 0" for words in commands]
    export = [["export", "absent", "--out", "there"]]
    done = subprocess.run(
        [sys.executable, "-c", DEVICE, json.dumps(export)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout == "export 2\n"
    assert done.stderr.splitlines()[-1].endswith('pip install "fedvtc-edge[train]"')
