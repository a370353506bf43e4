"""Comparison of a bundle's files with those that export would write: nothing more, nothing else.

What differs is named: a node, an initialiser, a text, bytes that no reader reads. Whatever is
hidden in a bundle must be in one of them, or in weights of the right name and shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fedvtc_edge.errors import VerificationError
from fedvtc_edge.export.codes import Codes
from fedvtc_edge.export.manifest import Manifest
from fedvtc_edge.training.knowledge import CODE_STD, class_codes

from .reading import MANIFEST, SIGNATURE, STATISTICS, Files, array_of
from .reference import Reference

ROUNDING = 1e-3
"""Relative difference of weights that other processors and library versions may make."""

_STORED = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_FIXED = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)


@dataclass(frozen=True)
class Difference:
    """Something in a bundle that export would not write.

    Args:
        kind: ``structure``; ``weights`` where only numbers differ, by no more than rounding;
            ``unknown`` where another run would have to be known.
    """

    file: str
    where: str
    what: str
    kind: str = "structure"


def differences(files: Files, manifest: Manifest, reference: Reference) -> Iterator[Difference]:
    """Everything in which the files differ from the reference.

    Args:
        files: Content of all files of the bundle, as they were read.
    """
    for name in sorted(files):
        if name in (MANIFEST, SIGNATURE) or name.endswith(".onnx.data"):
            continue
        if name == STATISTICS:
            yield from _statistics(files[name], manifest)
        if name in reference.missing:
            continue
        expected = reference.files.get(name)
        if name.endswith(".onnx"):
            if expected is None:
                yield Difference(name, name, "a graph that export would not write")
            else:
                yield from _graphs(name, files, reference)
        elif expected is not None and files[name] != expected:
            if manifest.revision:  # refresh puts in what a later run published
                what = f"statistics of revision {manifest.revision}, not of this run"
                yield Difference(name, name, what, kind="unknown")
            else:
                yield Difference(name, name, "not what the run published")


def _statistics(data: bytes, manifest: Manifest) -> Iterator[Difference]:
    """Statistics must be those bytes that their numbers are written as, and no other."""
    try:
        codes = Codes.from_bytes(
            data,
            classes=len(manifest.classes),
            latent=manifest.latent,
            anchor=manifest.anchor,
        )
    except VerificationError as error:
        yield Difference(STATISTICS, STATISTICS, str(error))
        return
    if codes.to_bytes() != data:
        yield Difference(STATISTICS, STATISTICS, "bytes that no reader reads")
    if manifest.anchor is not None:
        expected = class_codes(len(manifest.classes), manifest.latent).astype(np.float32)
        if not np.array_equal(codes.mean, expected):
            yield Difference(STATISTICS, "mean", "not the constant class codes")
        if not (codes.std == np.float32(CODE_STD)).all():
            yield Difference(STATISTICS, "std", "not the constant deviation of class codes")


def _graphs(name: str, files: Files, reference: Reference) -> Iterator[Difference]:
    beside = f"{name}.data"
    same = all(reference.files.get(one) == files.get(one) for one in (name, beside))
    if reference.exact and same:
        return
    found = onnx.load_model_from_string(files[name])
    expected = onnx.load_model_from_string(reference.files[name])
    if _bytes(found) != files[name]:
        yield Difference(name, name, "bytes that no reader reads, or in another order")
    yield from _uncovered(name, found, files)
    yield from _initializers(name, (found, files), (expected, reference.files), reference.exact)
    for number, (node, other) in enumerate(zip_longest(found.graph.node, expected.graph.node)):
        if node is None or other is None:
            at = number if node is None else _name(node)
            count = f"{len(found.graph.node)} nodes, expected {len(expected.graph.node)}"
            yield Difference(name, str(at), count)
            break
        if _bytes(node) != _bytes(other):
            what = "a node with other inputs, attributes or texts than expected"
            if node.op_type != other.op_type:
                what = f"{node.op_type}, expected {other.op_type}"
            yield Difference(name, _name(node), what)
    for one in (found, expected):
        del one.graph.node[:]
        del one.graph.initializer[:]
    for (path, text), other_text in _zipped(_described(found), _described(expected)):
        if text != other_text:
            yield Difference(name, path, "a text, port or property that export would not write")


def _zipped(
    found: Mapping[str, str], expected: Mapping[str, str]
) -> Iterator[tuple[tuple[str, str | None], str | None]]:
    for path in sorted({*found, *expected}):
        yield (path, found.get(path)), expected.get(path)


def _described(model: Any) -> dict[str, str]:
    """Fields of a model and of its graph, as text, by their names."""
    told = {}
    for where, message in (("model", model), ("graph", model.graph)):
        for entry, value in message.ListFields():
            if entry.name != "graph":
                told[f"{where}.{entry.name}"] = str(value)
    return told


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def _name(node: Any) -> str:
    """Name of a node to others: its first output."""
    return str(next(iter(node.output), "") or node.op_type)


def _initializers(
    name: str,
    found: tuple[Any, Files],
    expected: tuple[Any, Files],
    exact: bool,
) -> Iterator[Difference]:
    own, other = (list(model.graph.initializer) for model, _ in (found, expected))
    read = {port for node in found[0].graph.node for port in node.input}
    for tensor in own:
        if tensor.name not in read:
            yield Difference(name, tensor.name, "an initialiser that no node reads")
    names, wanted = [one.name for one in own], [one.name for one in other]
    if names != wanted:
        strange = [one for one in names if one not in wanted] or names
        what = f"{len(names)} initialisers, expected {len(wanted)}, or in another order"
        yield Difference(name, strange[0], what)
        return
    for tensor, model in zip(own, other, strict=True):
        if _skeleton(tensor) != _skeleton(model):
            what = f"an initialiser {list(tensor.dims)} of type {tensor.data_type}, expected "
            what += f"{list(model.dims)} of type {model.data_type}, without texts"
            yield Difference(name, tensor.name, what)
        elif exact or tensor.data_type in _FIXED:
            yield from _values(
                name, tensor.name, array_of(tensor, found[1]), array_of(model, expected[1])
            )


def _skeleton(tensor: Any) -> bytes:
    """A tensor without its numbers: which fields hold them must be the same, too."""
    bare = onnx.TensorProto()
    bare.CopyFrom(tensor)
    held = [field for field in _STORED if len(getattr(tensor, field))]
    for field in _STORED:
        bare.ClearField(field)
    del bare.external_data[:]
    for entry in sorted(tensor.external_data, key=lambda one: str(one.key)):
        bare.external_data.add(key=entry.key)
    return _bytes(bare) + repr(held).encode()


def _values(
    file: str, where: str, found: NDArray[Any], expected: NDArray[Any]
) -> Iterator[Difference]:
    if found.tobytes() == expected.tobytes():
        return
    if found.dtype.kind not in "fiu" or found.dtype == np.int64:
        yield Difference(file, where, "a constant with another value than expected")
        return
    with np.errstate(all="ignore"):
        apart = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        scale = max(float(np.abs(expected.astype(np.float64)).max(initial=0.0)), 1e-30)
        largest = float(apart.max(initial=0.0)) / scale
    # A step of seven bits is a hundredth, and may go the other way on another processor.
    allowed = 0.02 if found.dtype.kind in "iu" else ROUNDING
    if not largest <= allowed:
        yield Difference(file, where, f"weights that differ by {largest:.1%} from the run's")
    else:
        what = f"weights that differ by {largest:.1g} from the run's, in their last bits"
        yield Difference(file, where, what, kind="weights")


def _uncovered(name: str, model: Any, files: Files) -> Iterator[Difference]:
    """Bytes of the file beside a graph that no tensor is of; padding is of zeros."""
    beside = f"{name}.data"
    if beside not in files:
        return
    data = np.frombuffer(files[beside], np.uint8)
    free = np.ones(len(data), bool)
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            start = int(entries.get("offset", "0"))
            length = int(entries.get("length", len(data)))
            if not free[start : start + length].all():
                yield Difference(beside, tensor.name, "two tensors of the same bytes")
            free[start : start + length] = False
    if data[free].any():
        yield Difference(beside, beside, f"{int(free.sum())} bytes of no tensor")
