"""Bundles; every test that changes one gets a copy of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Document = dict[str, Any]
Rewrite = Callable[..., Path]

_PIXELS = {"images": {"dtype": "uint8", "shape": ["N", 8, 8, 1], "range": "0 to 255"}}
_FILES = {
    "classifier.onnx": b"no graph at all",
    "classifier.int8.onnx": b"nor this",
    "statistics.safetensors": b"\0" * 40,
}
_MADE: Document = {
    "schema": 1,
    "kind": "fedvtc-edge bundle",
    "client": "client-00",
    "architecture": "mlp",
    "device": None,
    "run": "5a" * 32,
    "source": {"classifier.safetensors": "a5" * 32},
    "method": "fedvtc",
    "share": "anchored",
    "revision": 0,
    "classes": ["cat", "chien été", "3"],
    "latent": 2,
    "anchor": 4,
    "image": {
        "size": 8,
        "channels": 1,
        "colour": "grey",
        "resize": "bilinear, antialiased, stretched to the square",
        "dtype": "uint8",
        "layout": "NHWC",
        "scale": "x / 255, inside the graph",
    },
    "noise": None,
    "files": {},
    "graphs": {
        "classifier": {
            "variants": {"fp32": "classifier.onnx", "int8": "classifier.int8.onnx"},
            "opset": 20,
            "ir": 10,
            "inputs": _PIXELS,
            "outputs": {"logits": {"dtype": "float32", "shape": ["N", 3], "range": "logits"}},
        }
    },
    "privacy": {"mode": "example", "epsilon": 1.5, "delta": 1e-05, "unit": "image"},
    "accuracy": {"images": 60, "classifier": 0.35},
    "parity": {"classifier": {"random": {"max_relative_error": 4.4e-07}}},
    "int8": {"classifier": {"agreement_images": 512, "agreement": 0.5}},
    "tools": {"fedvtc-edge": "0.1.0"},
}


@pytest.fixture(scope="session")
def export_document(exported: Path) -> dict[str, Any]:
    """What export returned for the folder of all bundles."""
    document: dict[str, Any] = json.loads(exported.with_name("bundles.json").read_text())
    return document


@pytest.fixture(scope="session")
def bundle_folder(exported: Path) -> Path:
    """The bundle of one client; read it only."""
    return min(exported.iterdir())


@pytest.fixture
def bundle(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy of that bundle, to be changed."""
    return Path(shutil.copytree(bundle_folder, tmp_path / bundle_folder.name))


@pytest.fixture(scope="session")
def signer() -> Ed25519PrivateKey:
    """Whoever exports."""
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture(scope="session")
def document() -> Callable[..., Document]:
    """``document(latent=3)``: a sound manifest made by hand, with some keys changed."""

    def make(files: Mapping[str, bytes] = _FILES, **changes: Any) -> Document:
        listed = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in files.items()
        }
        made: Document = json.loads(json.dumps({**_MADE, "files": listed, **changes}))
        if "graphs" not in changes and isinstance(made["classes"], list):
            made["graphs"]["classifier"]["outputs"]["logits"]["shape"][1] = len(made["classes"])
        return made

    return make


@pytest.fixture(scope="session")
def rewrite(signer: Ed25519PrivateKey) -> Rewrite:
    """``rewrite(folder, latent=3)``: change a bundle as whoever exported it could.

    All hashes are made anew; ``sign=True`` or an older signature signs it again.
    """

    def change(folder: Path, sign: bool | None = None, **changes: Any) -> Path:
        path, signature = folder / "manifest.json", folder / "manifest.sig"
        manifest = json.loads(path.read_text())
        manifest["files"] = {
            file.name: {
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "size": file.stat().st_size,
            }
            for file in sorted(folder.iterdir())
            if file not in (path, signature)
        }
        manifest |= changes
        path.write_text(json.dumps(manifest, indent=2) + "\n")
        if signature.exists() if sign is None else sign:
            signature.write_bytes(signer.sign(path.read_bytes()))
        return folder

    return change


@pytest.fixture
def made(tmp_path: Path, document: Callable[..., Document], rewrite: Rewrite) -> Path:
    """A signed bundle of a few bytes, none of them ONNX: all that verification looks at."""
    folder = tmp_path / "made"
    folder.mkdir()
    for name, data in _FILES.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(document()))
    return rewrite(folder, sign=True)


@pytest.fixture
def signed(bundle: Path, rewrite: Rewrite) -> Path:
    """A copy of the exported bundle, signed."""
    return rewrite(bundle, sign=True)
