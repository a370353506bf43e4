"""Scan of an exported bundle for statistics, paths and people that it tells of.

Whoever holds a device reads its bundle (docs/bundle-format.md). Weights must be in it, and the
published statistics in a file of their own; counts, a client's own statistics, features, paths
and people must not. A class that one client alone holds is published as that client's own mean,
and named so; a client's class prior, which is its counts in other words, is named too.

No file is trusted: sizes are bounded before a byte is read, and links are refused. Graphs are
walked by protobuf's own description of them, so that no place in a file is forgotten.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import re
import socket
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors

from fedvtc_edge.errors import BundleError, VerificationError
from fedvtc_edge.statistics.class_statistics import Array, ClassStatistics, GlobalStatistics

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

PRECISION = 2.0**-10
"""Relative error under which two numbers are one: that of two roundings to float16."""

BITS = 40
"""Bits that a match must be worth: four numbers of float16, or seven of int8."""

_BLOCK, _MOST = 2**21, 10
_GENERIC = {"admin", "localhost", "root", "runner", "ubuntu", "user"}
_COUNTS = re.compile(r"count|histogram", re.IGNORECASE)
# Not any slash: exporters give nodes names such as /body/Conv.
_ROOTS = "Users|Volumes|data|etc|home|kaggle|media|mnt|opt|private|root|scratch|srv|tmp|usr|var"
_PATH = re.compile(
    rf"(?<![\w.~])(?:/(?:{_ROOTS}|work(?:space)?)/"
    r"|(?:/[\w.-]{1,64}){1,16}\.pyc?\b|~/|[A-Za-z]:[\\/]|\\\\\w|file:/)[^\s\"']*"
)
_ADDRESS = re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+")

Files = Mapping[str, bytes]


@dataclass(frozen=True, eq=False)
class Piece:
    """One thing that a file holds.

    Args:
        where: Name of the tensor, node or key.
        numbers: An array, or None.
        slack: Half a step of quantised numbers.
        kind: ``output``, ``external`` or ``unread`` where the piece is a finding by itself.
    """

    where: str
    text: str = ""
    numbers: NDArray[Any] | None = None
    slack: float = 0.0
    kind: str = ""


def pieces_of(path: Path) -> Iterator[tuple[str, list[Piece]]]:
    """Name and pieces of each file.

    Raises:
        BundleError: No such folder.
        VerificationError: No bundle, too large, a link, or a file that cannot be read.
    """
    files = _read(path)
    for file, data in files.items():
        try:
            pieces = list(_pieces(file, data, files))
        except Exception as error:  # every parser has errors of its own, protobuf's without types
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise VerificationError(
                f"{file[:120]} cannot be read: {reason[:200]}", hint=_HINT
            ) from error
        yield file, pieces


def _read(folder: Path) -> dict[str, bytes]:
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
                yield Piece(where, key)
            yield from _document(inner, _below(where, key))


def _below(where: str, key: str) -> str:
    # Cut, or many keys below a long one would be long, all of them.
    return f"{where}.{key}"[-_LONGEST:] if where and key else where or key


def _text(text: str, where: str) -> Iterator[Piece]:
    yield Piece(where, text)
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
            array = _array(message, files)
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
                yield from _text(_plain(text), where)
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


def _array(tensor: onnx.TensorProto, files: Files) -> NDArray[Any]:
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


@dataclass(frozen=True)
class Leak:
    """Something in a bundle that tells of data, of people or of a machine.

    Args:
        where: Name of the tensor or key.
        kind: ``statistics``, ``output``, ``external``, ``path``, ``address``, ``name`` or
            ``unread``.
        by_design: Whether docs/bundle-format.md says that it is there.
    """

    file: str
    where: str
    kind: str
    what: str
    by_design: bool = False


@dataclass(frozen=True, eq=False)
class Vector:
    """Numbers that are looked for.

    Args:
        row: Class; None for what is of no one class.
        values: Numbers, [n].
        expected: Whether :data:`STATISTICS` is there to hold them.
    """

    name: str
    row: int | None
    values: Array
    expected: bool = False

    def tolerance(self, slack: float) -> float:
        """Largest error of a number, in its own units."""
        return slack + PRECISION * float(np.abs(self.values).max())

    def is_telling(self, slack: float) -> bool:
        """True if a match says anything: numbers times the bits that each has."""
        spread = float(np.ptp(self.values))
        # Ones and zeros are a mask: which classes there are, not how many of each.
        if not np.isfinite(spread) or spread == 0 or set(np.unique(self.values)) <= {0.0, 1.0}:
            return False
        return len(self.values) * math.log2(spread / self.tolerance(slack)) >= BITS


@dataclass(frozen=True, eq=False)
class Known:
    """Statistics of a run that a bundle is searched for: published ones and each client's own."""

    published: Sequence[GlobalStatistics] = ()
    own: Mapping[str, Sequence[ClassStatistics]] = field(default_factory=dict)

    def vectors(self) -> list[Vector]:
        """One per class and kind of statistic."""
        found = []
        for one in self.published:
            found.append(Vector("published counts", None, one.count))
            found += _rows("published means", one.mean, True)
            found += _rows("published deviations", one.std, True)
            if one.covariance is not None:
                found += [Vector("published covariance", None, v, True) for v in one.covariance]
        for whose, parts in self.own.items():
            for part in parts:
                found.append(Vector(f"counts of {whose}", None, part.count))
                found += _rows(f"means of {whose}", part.mean)
                found += _rows(f"deviations of {whose}", part.std)
        return found


def _rows(name: str, rows: Array, expected: bool = False) -> list[Vector]:
    return [Vector(name, label, row, expected) for label, row in enumerate(rows)]


def scan(
    path: str | os.PathLike[str],
    *,
    known: Known | None = None,
    names: Collection[str] | None = None,
) -> list[Leak]:
    """Look for statistics, feature outputs, paths and people in everything a bundle holds.

    Statistics are found as rows, columns or flattened runs of an array, to within float16's
    precision or the steps of int8. *Not* found: what is scaled, mixed or split; what has fewer
    than :data:`BITS`, such as counts of four classes under an innocent name; what weights tell
    by what they compute (:mod:`.inference.memorisation`).

    Args:
        path: The bundle's folder.
        known: What to look for; None: only what needs no knowledge.
        names: Of people and machines; None: this user's and this machine's.

    Raises:
        BundleError: No such folder.
        VerificationError: No bundle, too large, a link, or a file that cannot be read.
    """
    vectors = known.vectors() if known else []
    words = "|".join(re.escape(name) for name in (people() if names is None else names))
    named = re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])" if words else r"(?!)", re.I)
    with np.errstate(all="ignore"):  # there may be anything in the numbers
        leaks = [
            leak
            for file, pieces in pieces_of(Path(path))
            for piece in pieces
            for leak in _examined(file, piece, vectors, named)
        ]
    return list(dict.fromkeys(leaks))  # a name stands in many places of a graph


def people() -> set[str]:
    """Names of this user and this machine that are nobody else's."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in some containers
        user = ""
    host = socket.gethostname()
    found = {user, Path.home().name, host, host.partition(".")[0]}
    return {name for name in found if len(name) > 2 and name.lower() not in _GENERIC}


def _examined(
    file: str, piece: Piece, vectors: Sequence[Vector], named: re.Pattern[str]
) -> Iterator[Leak]:
    def leak(kind: str, what: str, by_design: bool = False) -> Leak:
        # Nobody knows who wrote these words: no control character reaches a terminal.
        return Leak(_shown(file), _shown(piece.where), kind, _shown(what), by_design)

    if piece.kind:
        yield leak(piece.kind, piece.text)
    for kind, pattern in (("path", _PATH), ("address", _ADDRESS), ("name", named)):
        for match in islice(pattern.finditer(piece.text), _MOST):
            yield leak(kind, match[0])
    if piece.numbers is None:
        return
    rows: dict[tuple[str, bool], list[int]] = {}
    for vector in found_in(piece.numbers, vectors, piece.slack):
        classes = rows.setdefault((vector.name, vector.expected and file == STATISTICS), [])
        classes += [] if vector.row is None else [vector.row]
    for (name, expected), classes in rows.items():
        of = f", classes {', '.join(map(str, sorted(classes)))}" if classes else ""
        yield leak("statistics", name + of, expected)
    if file == STATISTICS and piece.where == "own" and not piece.numbers.all():
        yield leak("statistics", "which classes the client had", True)
    if file == MANIFEST and piece.where == "prior":
        what = "how many examples of which class the client had (export --with-prior)"
        yield leak("statistics", what, True)
    if not rows and _COUNTS.search(piece.where.rpartition(".")[2]) and _are_counts(piece.numbers):
        yield leak("statistics", "whole numbers under this name")


def _are_counts(numbers: NDArray[Any]) -> bool:
    values = np.asarray(numbers, np.float64).ravel()
    return len(values) > 1 and bool((values >= 0).all() and (values % 1 == 0).all())


def _shown(text: str) -> str:
    return text[:120] if text.isprintable() else ascii(text[:120])[1:-1]


def found_in(numbers: NDArray[Any], vectors: Sequence[Vector], slack: float) -> list[Vector]:
    """Vectors that are rows, columns or runs of an array of any shape."""
    left = [v for v in vectors if len(v.values) <= numbers.size and v.is_telling(slack)]
    found: list[Vector] = []
    if not left:
        return found
    longest = max(len(vector.values) for vector in left)
    shortest = min(len(vector.values) for vector in left)
    # Row by row; and along every other axis that is long enough for one of them.
    axes = [axis for axis, size in enumerate(numbers.shape[:-1]) if size >= shortest]
    for axis in (-1, *axes):
        flat = (np.moveaxis(numbers, axis, -1) if numbers.ndim > 1 else numbers).ravel()
        for start in range(0, len(flat), _BLOCK):  # sorted in parts: no more memory than these
            block = flat[start : start + _BLOCK + longest - 1].astype(np.float64)
            order = np.argsort(block)
            here = [vector for vector in left if _lies_in(block, order, vector, slack)]
            found += here
            left = [vector for vector in left if vector not in here]
    return found


def _lies_in(block: Array, order: NDArray[np.int64], vector: Vector, slack: float) -> bool:
    values, off = vector.values, vector.tolerance(slack)
    # The largest first: weights as large as a feature are rare.
    first, *rest = np.argsort(-np.abs(values))
    ends = [values[first] - off, np.nextafter(values[first] + off, np.inf)]
    low, high = np.searchsorted(block, ends, sorter=order)
    starts = order[low:high] - first
    starts = starts[(starts >= 0) & (starts <= len(block) - len(values))]
    for place in rest:
        if not len(starts):
            break
        starts = starts[np.abs(block[starts + place] - values[place]) <= off]
    return bool(len(starts))
