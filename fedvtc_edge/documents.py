"""TOML and JSON that may have been written by anyone: one way to read them, one error.

Both parsers let through what fails later, far from the file: integers that no other code can
print, halves of surrogate pairs that cannot be encoded, NaN, and nesting as deep as the stack.
"""

from __future__ import annotations

import json
import math
from typing import Any

DEEPEST = 32
"""Levels of tables and lists; the deepest document of this project has seven."""

LARGEST_INTEGER = 2**64
"""Exclusive bound of an integer's magnitude: seeds and sizes are below it."""


class DocumentError(ValueError):
    """A document that cannot be read; the message says why, on one line."""


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON document, in which no object has a key twice.

    Args:
        data: UTF-8 of a length that the caller has bounded.

    Raises:
        DocumentError: Not JSON, or a value that no document of this project has.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"not JSON: {_line(error)}") from None
    _check(value, finite=True)
    return value


def parse_toml(data: bytes | str) -> dict[str, Any]:
    """The table of a TOML document.

    Args:
        data: UTF-8 of a length that the caller has bounded.

    Raises:
        DocumentError: Not TOML, or a value that no document of this project has.
    """
    import tomllib  # a bundle on a device is JSON alone

    try:
        document = tomllib.loads(data.decode("utf-8") if isinstance(data, bytes) else data)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"not TOML: {_line(error)}") from None
    _check(document, finite=False)  # inf and nan are words of TOML, which a key may take or not
    return document


def _check(value: Any, *, finite: bool) -> None:
    """Walk a document without recursion, which its depth could exhaust."""
    pending = [(value, 0)]
    while pending:
        one, depth = pending.pop()
        problem = ""
        if depth > DEEPEST:
            problem = f"nested deeper than {DEEPEST} levels"
        elif isinstance(one, dict):
            pending += [(key, depth) for key in one]
            pending += [(inner, depth + 1) for inner in one.values()]
        elif isinstance(one, list):
            pending += [(inner, depth + 1) for inner in one]
        elif isinstance(one, str) and any("\ud800" <= letter <= "\udfff" for letter in one):
            problem = "half of a surrogate pair, which is no character"
        elif isinstance(one, int) and not -LARGEST_INTEGER < one < LARGEST_INTEGER:
            problem = f"an integer of {one.bit_length()} bits, expected 64 at most"
        elif isinstance(one, float) and finite and not math.isfinite(one):
            problem = "a number that is too large"
        if problem:
            raise DocumentError(f"no sound document: {problem}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers may take different ones of two equal keys: one of them would be deceived.
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands there twice")
    return document


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _line(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    return first if first.isprintable() else ascii(first)
