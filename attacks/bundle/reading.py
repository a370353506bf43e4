"""Files of a bundle, bounded, and everything in them: texts and arrays with the names they have.

No file is trusted: sizes are bounded before a byte is read, and links are refused. Graphs are
walked by protobuf's own description of them, so that no place in a file is forgotten.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors

from fedvtc_edge.errors import BundleError, VerificationError

MANIFEST, SIGNATURE, STATISTICS = "manifest.json", "manifest.sig", "statistics.safetensors"
OUTPUTS = {"classifier": "logits", "synthesizer": "images", "anchor": "features"}
"""The one output of each graph. Features of a classifier would be an oracle for g."""

LARGEST, LARGEST_TEXT, MOST_FILES = 2**28, 2**22, 64
"""Bytes of a bundle, of what is parsed in it, and its files. Weights over 1 MB lie beside their
graph: a larger graph is a bomb, for one byte of it can become fifty of messages."""

_WEIGHTS = (".onnx.data", ".safetensors")
_LONGEST = 200
_HINT = "fetch the bundle again from whoever exported it, or export it again"
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")

Files = Mapping[str, bytes]


@dataclass(frozen=True, eq=False)
class Piece:
    """One thing that a file holds.

    Args:
        where: Name of the tensor, node or key.
        raw: Bytes of the text, before what is no text in it was replaced.
        numbers: An array, or None.
        slack: Half a step of quantised numbers.
        kind: ``output``, ``external`` or ``unread`` where the piece is a finding by itself.
    """

    where: str
    text: str = ""
    raw: bytes = b""
    numbers: NDArray[Any] | None = None
    slack: float = 0.0
    kind: str = ""


def pieces_of(files: Files) -> Iterator[tuple[str, list[Piece]]]:
    """Name and pieces of each file.

    Raises:
        VerificationError: A file that cannot be read.
    """
    for file, data in files.items():
        try:
            pieces = list(_pieces(file, data, files))
        except Exception as error:  # every parser has errors of its own, protobuf's without types
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise VerificationError(
                f"{file[:120]} cannot be read: {reason[:200]}", hint=_HINT
            ) from error
        yield file, pieces


def read_files(folder: Path) -> dict[str, bytes]:
    """Content of each file of a bundle.

    Raises:
        BundleError: No such folder.
        VerificationError: No bundle, too large, or a link.
    """
    if not os.path.isdir(folder):  # unlike Path.is_dir, it takes names that are too long
        raise BundleError(f"{folder}: no such folder", hint="give a folder that export wrote")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in islice(entries, MOST_FILES + 1))
    if MANIFEST not in names or len(names) > MOST_FILES:
        raise VerificationError(
            f"{folder} is no bundle: {MANIFEST} is missing, or there are over {MOST_FILES} files",
            hint="give one of the folders that export wrote, one per client",
        )
    files: dict[str, bytes] = {}
    left = LARGEST
    for name in names:
        limit = left if name.endswith(_WEIGHTS) else min(left, LARGEST_TEXT)
        files[name] = _bounded(folder / name, limit)
        left -= len(files[name])
    return files


def _bounded(path: Path, limit: int) -> bytes:
    """A regular file's bytes; a link would lead out of the bundle, a pipe would block."""
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise _refused(path, "a link" if stat.S_ISLNK(mode) else "not a regular file")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb") as file:
            status = os.fstat(file.fileno())  # of what was opened, not of what was looked at
            if not stat.S_ISREG(status.st_mode):
                raise _refused(path, "not a regular file")
            data = file.read(limit + 1) if status.st_size <= limit else b""
            if status.st_size > limit or len(data) > limit:
                raise _refused(path, f"more than {limit} bytes")
            return data
    except OSError as error:
        raise _refused(path, str(error.strerror)) from None


def _refused(path: Path, why: str) -> VerificationError:
    return VerificationError(f"{path.name[:120]}: {why}", hint=_HINT)


def _pieces(file: str, data: bytes, files: Files) -> Iterator[Piece]:
    if file.endswith(".json"):
        yield from _document(_json(data.decode("utf-8")), "")
    elif file.endswith(".safetensors"):
        for name, array in sorted(load_safetensors(data).items()):
            yield Piece(name, numbers=array)
        length = int.from_bytes(data[:8], "little")
        if length > LARGEST_TEXT:
            raise ValueError(f"a header of {length} bytes")
        yield from _document(_json(data[8 : 8 + length].decode("utf-8")), "header")
    elif file.endswith(".onnx"):
        yield from _graph(file, data, files)
    elif file.endswith(".onnx.data"):  # weights are read with the graph that names them
        if not any(file.encode() in files[name] for name in files if name.endswith(".onnx")):
            yield Piece(file, "weights of no graph", kind="unread")
    elif file != SIGNATURE:
        yield Piece(file, "no file of a bundle, and not looked into", kind="unread")


def _json(text: str) -> Any:
    # An object becomes a tuple of pairs: a dictionary would lose all but one of equal keys.
    return json.loads(text, object_pairs_hook=tuple, parse_int=float)


def _document(value: Any, where: str) -> Iterator[Piece]:
    if isinstance(value, str):
        yield from _text(value, where)
    elif isinstance(value, (list, tuple)):
        pairs = value if isinstance(value, tuple) else [("", inner) for inner in value]
        numbers = [inner for _, inner in pairs if isinstance(inner, float)]
        if numbers:
            yield Piece(where, numbers=np.array(numbers))
        for key, inner in pairs:
            if key:
                yield Piece(where, key, key.encode("utf-8", "surrogatepass"))
            yield from _document(inner, _below(where, key))


def _below(where: str, key: str) -> str:
    # Cut, or many keys below a long one would be long, all of them.
    return f"{where}.{key}"[-_LONGEST:] if where and key else where or key


def _text(text: str | bytes, where: str) -> Iterator[Piece]:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    text = _plain(text)
    yield Piece(where, text, raw)
    if text[:1] in ("[", "{"):
        try:
            document = _json(text)
        except ValueError:
            pass
        else:
            yield from _document(document, where)
            return
    numbers = [float(found) for found in _NUMBER.findall(text)]
    if len(numbers) > 1:
        yield Piece(where, numbers=np.array(numbers))


def _graph(file: str, data: bytes, files: Files) -> Iterator[Piece]:
    model = onnx.load_model_from_string(data)
    wanted = OUTPUTS.get(file.partition(".")[0])
    for output in model.graph.output:
        if output.name != wanted:
            yield Piece(_plain(output.name), "an output that is not documented", kind="output")
    model.DiscardUnknownFields()
    if unknown := len(data) - model.ByteSize():
        yield Piece(file, f"{unknown} bytes that ONNX has no name for", kind="unread")
    arrays: dict[str, NDArray[Any]] = {}
    left, quantised = LARGEST, {}
    for where, message in _messages(model, "model"):
        yield from _scalars(message, where)
        if isinstance(message, onnx.TensorProto):
            location = _location(message)
            if location is not None and location not in files:
                yield Piece(where, f"weights in {location!r}, not in the bundle", kind="external")
                continue
            array = array_of(message, files)
            left -= array.nbytes
            if left < 0:  # many tensors may name the same bytes of one file
                raise ValueError(f"tensors of over {LARGEST} bytes")
            if array.dtype.kind not in "OSUc":
                arrays[where] = array
                yield Piece(where, numbers=array)
        elif isinstance(message, onnx.NodeProto) and message.op_type == "DequantizeLinear":
            quantised[message.input[0]] = message
    for node in quantised.values():
        yield from _dequantised(node, arrays)


def _messages(message: Any, where: str) -> Iterator[tuple[str, Any]]:
    """A protobuf message and all inside it, each with the nearest name there is."""
    if isinstance(message, onnx.NodeProto):  # its output: what others call a constant by
        where = _plain(next(iter(message.output), where))
    elif isinstance(message, onnx.StringStringEntryProto):
        where = _below(where, _plain(message.key))
    elif isinstance(message, onnx.AttributeProto):
        where = where if message.name == "value" else _below(where, _plain(message.name))
    else:
        where = _plain(getattr(message, "name", "")) or where
    yield where, message
    for entry, value in message.ListFields():
        if entry.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(inner, where)


def _scalars(message: Any, where: str) -> Iterator[Piece]:
    """Texts of one message, and the numbers that an attribute holds."""
    for entry, value in message.ListFields():
        if entry.type in (entry.TYPE_STRING, entry.TYPE_BYTES) and entry.name != "raw_data":
            for text in [value] if isinstance(value, (str, bytes)) else value:
                yield from _text(text, where)
        elif isinstance(message, onnx.AttributeProto) and entry.name in ("ints", "floats"):
            yield Piece(where, numbers=np.array(value, np.float64))


def _plain(text: str | bytes) -> str:
    """Text; protobuf gives bytes where it is no UTF-8, even for names."""
    return text if isinstance(text, str) else text.decode("utf-8", "replace")


def _location(tensor: onnx.TensorProto) -> str | None:
    """File that holds a tensor's numbers, or None where they are in the graph."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def array_of(tensor: onnx.TensorProto, files: Files) -> NDArray[Any]:
    """Numbers of a tensor, from the graph or from the file that it names.

    Raises:
        ValueError: They are not there.
    """
    location = _location(tensor)
    if location is None:
        return onnx.numpy_helper.to_array(tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    start = int(entries.get("offset", "0"))
    length = int(entries.get("length", len(files[location])))
    if min(start, length) < 0:
        raise ValueError(f"weights at {start} of length {length}")
    inside = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims)
    inside.raw_data = files[location][start : start + length]
    return onnx.numpy_helper.to_array(inside)


def _dequantised(node: onnx.NodeProto, arrays: Mapping[str, NDArray[Any]]) -> Iterator[Piece]:
    """Numbers that int8 weights stand for; none where they are computed or scaled by blocks."""
    name, scaled, *zeros = node.input
    if name not in arrays or scaled not in arrays:
        return
    steps, scale = arrays[name].astype(np.float32), arrays[scaled].astype(np.float32)
    zero = arrays[zeros[0]] if zeros and zeros[0] in arrays else np.zeros(scale.shape)
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
    shape = [1] * steps.ndim
    if scale.size > 1:
        if scale.ndim != 1 or steps.shape[axis] != scale.size:
            return
        shape[axis] = scale.size
    numbers = (steps - zero.astype(np.float32).reshape(shape)) * scale.reshape(shape)
    yield Piece(name, numbers=numbers, slack=float(scale.max()) / 2)
