"""Header of an upload: all of it is known before a byte of it is read.

An upload is 128 bytes of header and a safetensors file of agreed names, types and
shapes. Nothing in that follows from data, so the reader writes down what it expects and
compares: no length, offset or JSON that a stranger wrote is ever parsed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedvtc_edge.errors import FedVTCError

from .context import CONTEXT_BYTES, Context, ContextError

MAGIC = b"FEDVTC"
SCHEMA = 1
HEADER = struct.Struct(f">6sHBBBxIIQ{CONTEXT_BYTES}s")
"""Magic, schema, payload, numbers, moments, a zero byte, classes, width, length of what
follows the header, context: 128 bytes."""

HINT = "the sender must encode with the classes, width and moments that the server announced"

_CONTEXT_AT = HEADER.size - CONTEXT_BYTES
_NO_CONTEXT = bytes(CONTEXT_BYTES)
_FIELDS = ("magic", "schema", "payload", "numbers", "moments", "classes", "width", "length")
_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I64": np.dtype("<i8")}
_NAMES = {kind: name for name, kind in _TYPES.items()}


class WireError(FedVTCError):
    """Bytes that are not the upload that was asked for."""


class Payload(IntEnum):
    """Content of an upload."""

    STATISTICS = 1
    RELEASE = 2
    WEIGHTS = 3


class Numbers(IntEnum):
    """Number format of an upload."""

    FLOAT32 = 1
    FLOAT16 = 2
    INT64 = 3


class MomentKind(IntEnum):
    """Second moments of an upload."""

    NONE = 0
    DIAGONAL = 1
    POOLED = 2


@dataclass(frozen=True)
class Form:
    """All of an upload but its numbers and its context.

    Args:
        moments: Which second moments there are.
        classes: Number C of classes; 0 where there are none.
        width: Number p of features, or how many numbers there are in all.
        tensors: Type and shape by name, in any order.
    """

    payload: Payload
    numbers: Numbers
    moments: MomentKind
    classes: int
    width: int
    tensors: Mapping[str, tuple[DTypeLike, tuple[int, ...]]]

    @cached_property
    def index(self) -> bytes:
        """The safetensors header: its length, and JSON padded with spaces to 8 bytes."""
        entries, end = {}, 0
        for name, kind, shape in self._ordered:
            begin, end = end, end + kind.itemsize * math.prod(shape)
            offsets = [begin, end]
            entries[name] = {"dtype": _NAMES[kind], "shape": shape, "data_offsets": offsets}
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    @cached_property
    def size(self) -> int:
        """Bytes of the whole upload, whatever its numbers are."""
        numbers = sum(kind.itemsize * math.prod(shape) for _, kind, shape in self._ordered)
        return HEADER.size + len(self.index) + numbers

    def header(self, context: Context | None) -> bytes:
        """The 128 bytes in front; without a context its field is zero, as in no context."""
        return self.prefix + (_NO_CONTEXT if context is None else context.to_bytes())

    @cached_property
    def prefix(self) -> bytes:
        """The header up to its context."""
        return HEADER.pack(
            MAGIC,
            SCHEMA,
            self.payload,
            self.numbers,
            self.moments,
            self.classes,
            self.width,
            self.size - HEADER.size,
            _NO_CONTEXT,
        )[:_CONTEXT_AT]

    def write(self, arrays: Mapping[str, NDArray[Any]], context: Context | None) -> bytes:
        """The upload of arrays that have the types and shapes of this form."""
        parts = [self.header(context), self.index]
        for name, kind, shape in self._ordered:
            assert arrays[name].shape == shape
            parts.append(arrays[name].astype(kind).tobytes())
        return b"".join(parts)

    def read(self, data: bytes, context: Context | None, hint: str) -> dict[str, NDArray[Any]]:
        """The arrays of an upload of this form; arguments and errors are :meth:`check`'s."""
        begin, arrays = self.check(data, context, hint), {}
        for name, kind, shape in self._ordered:
            count = math.prod(shape)
            flat = np.frombuffer(data, kind, count, begin)
            begin += flat.nbytes
            # A copy in the machine's own byte order, which may be written to.
            arrays[name] = flat.reshape(shape).astype(kind.newbyteorder("="))
        return arrays

    def split(self, flat: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The arrays in one vector of all numbers, in the order of the upload; views."""
        arrays, begin = {}, 0
        for name, _, shape in self._ordered:
            end = begin + math.prod(shape)
            arrays[name], begin = flat[begin:end].reshape(shape), end
        return arrays

    def check(self, data: bytes, context: Context | None, hint: str) -> int:
        """Check all of an upload but its numbers.

        Args:
            data: Untrusted bytes.
            context: Must be theirs; None accepts any context, and none.

        Returns:
            Where the numbers begin.

        Raises:
            WireError: Another length, header or safetensors header.
        """
        if len(data) != self.size:
            raise WireError(f"{len(data)} bytes, expected {self.size}", hint=hint)
        if not data.startswith(self.prefix):
            raise WireError(_difference(data, self.header(None)), hint=hint)
        claimed = data[_CONTEXT_AT : HEADER.size]
        if context is None or claimed != context.to_bytes():
            found = _context(claimed)
            if context is not None:
                raise WireError(
                    f"the upload belongs to {found}, expected {context}",
                    hint="an upload counts in its own run and round, from its own sender",
                )
        begin = HEADER.size + len(self.index)
        if not data.startswith(self.index, HEADER.size):
            raise WireError("other names, types, shapes or order of the arrays", hint=hint)
        return begin

    @cached_property
    def _ordered(self) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
        """Sort key of safetensors: larger types first, then by name."""
        listed = [(name, np.dtype(kind), shape) for name, (kind, shape) in self.tensors.items()]
        return sorted(listed, key=lambda entry: (-entry[1].itemsize, entry[0].encode()))


def fitting(forms: Iterable[Form], data: bytes, hint: str) -> Form:
    """The one of the forms agreed on that an upload says to have.

    Raises:
        WireError: It is longer than all of them, too short for a header, or says another.
    """
    agreed = list(forms)
    sizes = {form.size for form in agreed}
    if len(data) not in sizes:  # before anything that the sender could choose the size of
        expected = " or ".join(map(str, sorted(sizes)))
        raise WireError(f"{len(data)} bytes, expected {expected}", hint=hint)
    for form in agreed:
        if data.startswith(form.prefix):
            return form
    raise WireError(_difference(data, agreed[0].header(None)), hint=hint)


def context_of(data: bytes) -> Context | None:
    """Context that an upload claims; None where it claims none.

    A claim: only an envelope's signature, or decoding with the context, makes it more.

    Raises:
        WireError: Too short for a header, of another format, or no possible context.
    """
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise WireError("no upload of fedvtc-edge", hint=HINT)
    return _context(data[_CONTEXT_AT : HEADER.size])


def _context(field: bytes) -> Context | None:
    if field == _NO_CONTEXT:
        return None
    try:
        return Context.from_bytes(field)
    except ContextError:
        raise WireError("the header's context is none that an upload has", hint=HINT) from None


def _difference(data: bytes, expected: bytes) -> str:
    got, wanted = HEADER.unpack(data[: HEADER.size]), HEADER.unpack(expected)
    for name, ours, theirs in zip(_FIELDS, wanted, got, strict=False):
        if ours != theirs:
            return f"header: {name} {theirs!r}, expected {ours!r}"
    return "header: its reserved byte is not zero"
