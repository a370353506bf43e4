"""Bundles with a client's data planted in them, as whoever exports them could: hashes are right."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image

Array = NDArray[Any]
Model = onnx.ModelProto


def rewritten(folder: Path, **changes: Any) -> Path:
    """The bundle with a manifest that is right about its files, byte for byte as export writes."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("manifest."))
    manifest["files"] = {
        name: {
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "size": (folder / name).stat().st_size,
        }
        for name in names
    }
    path.write_text(json.dumps(manifest | changes, indent=2) + "\n")
    return folder


def changed(folder: Path, change: Callable[[Model], object], name: str = "classifier.onnx") -> Path:
    """The bundle with another graph."""
    model = onnx.load(folder / name)
    change(model)
    (folder / name).write_bytes(model.SerializeToString(deterministic=True))
    return rewritten(folder)


def overwrite(model: Model, rows: Array) -> None:
    """Put rows into the first weights of a graph that are large enough, scaled as weights are."""
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor).copy()
        if weights.dtype == np.float32 and weights.size >= 4 * rows.shape[1]:
            kept = rows[: weights.size // (2 * rows.shape[1])].astype(np.float64)
            flat = weights.reshape(-1)
            flat[: kept.size] = (0.3 * kept / np.abs(kept).max() - 0.1).ravel()
            tensor.raw_data = weights.tobytes()
            return
    raise AssertionError("no weights are large enough")


def png(image: Array) -> str:
    """A picture as text."""
    held = io.BytesIO()
    Image.fromarray(image[:, :, 0]).save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()


def outside(folder: Path, images: Array) -> Path:
    """Weights in a file beside the graph, and images behind them."""
    path, beside = folder / "classifier.onnx", folder / "classifier.onnx.data"
    model = onnx.load(path)
    path.unlink()
    onnx.save(model, path, save_as_external_data=True, location=beside.name, size_threshold=1024)
    beside.write_bytes(beside.read_bytes() + images.tobytes())
    return rewritten(folder)


def low_bits(model: Model, images: Array) -> None:
    """Spread the images' bits over the last bits of the weights: eight of them hold a pixel."""
    bits, at = np.unpackbits(images.ravel()), 0
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor).copy()
        if weights.dtype == np.float32 and weights.size > 100:
            words = weights.reshape(-1).view(np.uint32)
            part = bits[at : at + len(words)]
            words[: len(part)] = words[: len(part)] & ~np.uint32(1) | part
            tensor.raw_data = weights.tobytes()
            at += len(part)


def plant(kind: str, folder: Path, images: Array, labels: Array) -> Path:
    """Change the bundle in a folder.

    Args:
        images: The client's, uint8 [N, H, W, channels].
        labels: Theirs, [N].
    """
    few, flat = images[:6], images.reshape(len(images), -1).astype(np.float64)
    means = np.stack([flat[labels == label].mean(axis=0) for label in np.unique(labels)])
    counts = np.bincount(labels, minlength=10)

    def initializer(model: Model) -> None:
        scaled = (few / 255.0).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(scaled, "hidden"))

    def attribute(model: Model) -> None:
        value = numpy_helper.from_array((flat[:3] / 255.0).astype(np.float32))
        model.graph.node.append(helper.make_node("Constant", [], ["kept"], value=value))

    def histogram(model: Model) -> None:
        shares = [float(share) for share in counts / counts.sum()]
        node = helper.make_node("Constant", [], ["order"], value_floats=shares)
        model.graph.node.append(node)

    def doc(model: Model) -> None:
        model.doc_string = png(images[0])

    def metadata(model: Model) -> None:
        packed = base64.b64encode(zlib.compress(images[:2].tobytes())).decode()
        model.metadata_props.add(key="build", value=packed)

    def mixtures(model: Model) -> None:
        overwrite(model, np.random.default_rng(1).standard_normal((3, len(means))) @ means)

    changes: dict[str, Callable[[Model], object]] = {
        "unused initialiser": initializer,
        "used initialiser": lambda model: overwrite(model, flat),
        "PNG in a doc string": doc,
        "class histogram": histogram,
        "scaled class means": lambda model: overwrite(model, means),
        "mixed class means": mixtures,
        "attribute tensor": attribute,
        "metadata entry": metadata,
        "low bits": lambda model: low_bits(model, images[:6]),
    }
    if kind in changes:
        return changed(folder, changes[kind])
    if kind == "unknown manifest key":
        return rewritten(folder, order=[int(pixel) for pixel in images[0].ravel()])
    if kind == "counts in the manifest":
        return rewritten(folder, order=counts.tolist())
    assert kind == "external file"
    return outside(folder, few)


IN_THE_OPEN = (
    "unused initialiser",
    "PNG in a doc string",
    "class histogram",
    "attribute tensor",
    "metadata entry",
    "unknown manifest key",
    "counts in the manifest",
    "external file",
)
"""What names and structure alone give away."""

AMONG_WEIGHTS = ("used initialiser", "scaled class means", "mixed class means")
"""What only a search for the client's own data can find."""
