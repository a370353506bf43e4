"""A bundle taken apart: which statistics, paths and people it tells of.

Whoever holds a device reads its bundle (docs/bundle-format.md). Weights must be in it, and the
published statistics in a file of their own; counts, a client's own statistics, features, paths
and people must not. A class that one client alone holds is published as that client's own mean,
and named so.
"""

from __future__ import annotations

import getpass
import math
import os
import re
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.statistics.class_statistics import Array, ClassStatistics, GlobalStatistics

from .read import STATISTICS, Piece, pieces_of

PRECISION = 2.0**-10
"""Relative error under which two numbers are one: that of two roundings to float16."""

BITS = 40
"""What a match must be worth: four numbers of float16, or seven of int8."""

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


@dataclass(frozen=True)
class Leak:
    """Something in a bundle that tells of data, of people or of a machine.

    Args:
        file: In the bundle.
        where: Name of the tensor or key.
        kind: ``statistics``, ``output``, ``external``, ``path``, ``address``, ``name`` or
            ``unread``.
        what: In words.
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
        name: Whose and what.
        row: The class; None: of no one class.
        values: [n].
        expected: Whether :data:`STATISTICS` is there to hold them.
    """

    name: str
    row: int | None
    values: Array
    expected: bool = False

    def tolerance(self, slack: float) -> float:
        """How far a number may be off, in its own units."""
        return slack + PRECISION * float(np.abs(self.values).max())

    def is_telling(self, slack: float) -> bool:
        """Whether to find it says anything: numbers times the bits that each has."""
        spread = float(np.ptp(self.values))
        # Ones and zeros are a mask: which classes there are, not how many of each.
        if not np.isfinite(spread) or spread == 0 or set(np.unique(self.values)) <= {0.0, 1.0}:
            return False
        return len(self.values) * math.log2(spread / self.tolerance(slack)) >= BITS


@dataclass(frozen=True, eq=False)
class Known:
    """What an auditor knows of a run, in whatever feature spaces.

    Args:
        published: What the server published.
        own: What each client measured, by a name for it.
    """

    published: Sequence[GlobalStatistics] = ()
    own: Mapping[str, Sequence[ClassStatistics]] = field(default_factory=dict)

    def vectors(self) -> list[Vector]:
        """One per class and kind of statistic."""
        found = []
        for world in self.published:
            found.append(Vector("published counts", None, world.count))
            found += _rows("published means", world.mean, True)
            found += _rows("published deviations", world.std, True)
            if world.covariance is not None:
                found += [Vector("published covariance", None, v, True) for v in world.covariance]
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
    by what they compute (:mod:`.memorised`).

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
