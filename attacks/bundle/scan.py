"""Scan of an exported bundle for statistics, paths and people that it tells of.

Whoever holds a device reads its bundle (docs/bundle-format.md). Weights must be in it, and the
published statistics in a file of their own; counts, a client's own statistics, features, paths
and people must not. A class that one client alone holds is published as that client's own mean,
and named so; a client's class prior, which is its counts in other words, is named too.
"""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .known import Known, Vector, found_in
from .reading import MANIFEST, STATISTICS, Piece

_MOST = 10
_GENERIC = {"admin", "localhost", "root", "runner", "ubuntu", "user"}
_COUNTS = re.compile(r"count|histogram", re.IGNORECASE)
# Not any slash: exporters give nodes names such as /body/Conv.
_ROOTS = "Users|Volumes|data|etc|home|kaggle|media|mnt|opt|private|root|scratch|srv|tmp|usr|var"
_PATH = re.compile(
    rf"(?<![\w.~])(?:/(?:{_ROOTS}|work(?:space)?)/"
    r"|(?:/[\w.-]{1,64}){1,16}\.pyc?\b|~/|[A-Za-z]:[\\/]|\\\\\w|file:/)[^\s\"']*"
)
_ADDRESS = re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+")


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


def scan_pieces(
    pieces: Iterable[tuple[str, Sequence[Piece]]],
    *,
    known: Known | None = None,
    names: Collection[str] | None = None,
) -> list[Leak]:
    """Look for statistics, feature outputs, paths and people in everything a bundle holds.

    Statistics are found as rows, columns or flattened runs of an array, to within float16's
    precision or the steps of int8. *Not* found: what is scaled, mixed or split; what has fewer
    than :data:`.known.BITS`, such as counts of four classes under an innocent name; what weights
    tell by what they compute (:mod:`~fedvtc_edge.attacks.inference.memorisation`).

    Args:
        pieces: Pieces of each file, by its name.
        known: What to look for; None: only what needs no knowledge.
        names: Of people and machines; None: this user's and this machine's.
    """
    vectors = known.vectors() if known else []
    words = "|".join(re.escape(name) for name in (people() if names is None else names))
    named = re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])" if words else r"(?!)", re.I)
    with np.errstate(all="ignore"):  # there may be anything in the numbers
        leaks = [
            leak
            for file, inside in pieces
            for piece in inside
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
        return Leak(shown(file), shown(piece.where), kind, shown(what), by_design)

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


def shown(text: str, most: int = 120) -> str:
    """The beginning of a text, without what a terminal would obey."""
    return text[:most] if text.isprintable() else ascii(text[:most])[1:-1]
