"""Search for images and statistics that were scaled, shifted or mixed before they were hidden.

What is looked for is a direction, or a few that span a plane; every run of numbers in an array is
compared with it, less its mean and divided by its length. A run that has no part in it points
anywhere: how near it comes by chance is known (:func:`nearness`), and nothing counts as found
that chance alone would bring that near in one bundle of a million.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fedvtc_edge.statistics.class_statistics import Array

CHANCE = 1e-6
"""Probability that anything is found in numbers drawn at random, over all of a bundle."""

FINEST = 1e-7
"""Square of the sine that float16 or seven bits still reach; nearer than that is not asked for."""

BITS = 10
"""Bits that a number is worth that stands once among those that are looked for."""

_WIDTH = 64
"""Random directions that long runs are compared in first."""

_NUMBERS, _PAIRS, _LONG = 2**22, 2**24, 2**17
"""Numbers of windows, comparisons, and numbers of an array that are held at once."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Wanted:
    """Something to find, up to scale and shift.

    Args:
        name: In words, such as ``image 17, class 3``.
        kind: ``images``, ``statistics`` or ``histogram``.
        rows: Numbers [r, D]; with r above 1 every mixture of the rows is looked for.
        floor: Least cosine that counts, whatever chance allows: weights that were trained on
            images resemble them.
    """

    name: str
    kind: str
    rows: Array
    floor: float = 0.8

    @property
    def length(self) -> int:
        """D."""
        return int(self.rows.shape[1])

    def basis(self) -> Array | None:
        """Orthonormal directions [r, D], none of them constant; None where nothing is left."""
        rows = self.rows - self.rows.mean(axis=1, keepdims=True)
        _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
        kept: Array = directions[sizes > 1e-6 * max(float(sizes.max(initial=0.0)), 1e-12)]
        return kept if len(kept) else None

    def bits(self) -> float:
        """Bits that a match is worth beyond scale and shift; of a mixture without limit."""
        if len(self.rows) > 1:
            return math.inf
        _, which, times = np.unique(self.rows[0], return_inverse=True, return_counts=True)
        worth = np.where(times > 1, np.minimum(np.log2(self.length / times), BITS), BITS)
        return float(worth[which].sum()) - 2 * BITS


@dataclass(frozen=True)
class Found:
    """Something that was found.

    Args:
        cosine: Between the run of numbers and what was looked for; its sign is dropped.
    """

    wanted: Wanted
    cosine: float


def nearness(length: int, rank: int, pairs: float, chance: float = CHANCE) -> float:
    """Square of the sine of an angle within which none of ``pairs`` random directions falls.

    A direction drawn at random among d = D − 1 is within the angle of an r-plane with a
    probability of at most 2 ε^a / (a · B(a, r/2)), where a = (d − r)/2 and ε is the square of the
    sine: it has a Beta distribution, whose other factor is at most 2 up to ε = 3/4.

    Args:
        length: D; one dimension is the mean's.
        rank: r.
        chance: Probability that any of them falls within.

    Returns:
        ε in [0, 3/4]; 0 where nothing could be told from chance.
    """
    a, b = (length - 1 - rank) / 2, rank / 2
    if a <= 0:
        return 0.0
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    exponent = (math.log(chance / pairs / 2) + math.log(a) + log_beta) / a
    epsilon = math.exp(min(exponent, math.log(0.75)))
    return epsilon if epsilon >= FINEST else 0.0


class Search:
    """Search for many things in many arrays.

    Args:
        numbers: Numbers of all arrays together, which says how many comparisons there are.
    """

    def __init__(self, wanted: Sequence[Wanted], numbers: int) -> None:
        self.skipped: list[Wanted] = []
        self._groups: list[_Group] = []
        pairs = max(float(len(wanted)) * 2.0 * max(numbers, 1), 1.0)
        sorted_: dict[tuple[int, bool], list[tuple[Wanted, Array, float]]] = {}
        for one in wanted:
            basis = one.basis()
            near = 0.0 if basis is None else nearness(one.length, len(basis), pairs)
            if basis is None or not near or one.bits() < math.log2(pairs / CHANCE):
                self.skipped.append(one)
                continue
            near = min(near, 1.0 - one.floor**2)
            sorted_.setdefault((one.length, len(basis) == 1), []).append((one, basis, near))
        for (length, single), members in sorted_.items():
            if single:
                self._groups.append(_Group(length, members))
            else:
                self._groups += [_Group(length, [member]) for member in members]

    def within(self, numbers: NDArray[Any]) -> list[Found]:
        """Matches within an array, read in its own order or along any other of its axes."""
        best: dict[int, Found] = {}
        for group in self._groups:
            for flat in _orders(numbers, group.length):
                for found in group.within(flat):
                    known = best.get(id(found.wanted))
                    if known is None or known.cosine < found.cosine:
                        best[id(found.wanted)] = found
        return list(best.values())


class _Group:
    """Things of one length: single directions that are compared together, or one plane."""

    def __init__(self, length: int, members: Sequence[tuple[Wanted, Array, float]]) -> None:
        self.length = length
        self.wanted = [wanted for wanted, _, _ in members]
        self.plane = len(members[0][1]) > 1
        self.directions = np.concatenate([basis for _, basis, _ in members]).astype(np.float32)
        self.least = np.sqrt([1.0 - near for _, _, near in members])
        self.long = length > 2 * _WIDTH
        if self.long and not self.plane:
            draw = np.random.default_rng(0).standard_normal((length, _WIDTH))
            self.short = np.linalg.qr(draw - draw.mean(axis=0))[0].T
            # Within four standard deviations of what the short form of a match comes to.
            slack = 4 * (1 - self.least**2) / math.sqrt(_WIDTH)
            self.first = np.maximum(self.least - slack, 0.05)
            self.shortened = _unit(self.directions @ self.short.T.astype(np.float32))

    @np.errstate(all="ignore")
    def within(self, flat: Array) -> list[Found]:
        """Matches within numbers [T]."""
        found: list[Found] = []
        if self.long:
            step = max(_LONG - self.length, self.length)
            for start in range(0, len(flat) - self.length + 1, step):
                part = flat[start : start + step + self.length - 1]
                found += self._quickly(part) if _even(part) else self._slowly(part)
            return found
        return self._slowly(flat)

    def _slowly(self, flat: Array) -> list[Found]:
        """Compare all runs, one by one; each has a scale of its own."""
        found: list[Found] = []
        step = max(_NUMBERS // self.length, 1)
        for start in range(0, len(flat) - self.length + 1, step):
            part = flat[start : start + step + self.length - 1]
            windows = _directions(sliding_window_view(part, self.length))
            if len(windows):
                found += self._plane(windows) if self.plane else self._single(windows)
        return found

    def _plane(self, windows: Floats) -> Iterator[Found]:
        cosine = float(np.sqrt(np.square(windows @ self.directions.T).sum(axis=1).max()))
        if cosine >= self.least[0]:
            yield Found(self.wanted[0], min(cosine, 1.0))

    def _single(self, windows: Floats) -> Iterator[Found]:
        step = max(_PAIRS // len(windows), 1)
        for start in range(0, len(self.wanted), step):
            some = slice(start, start + step)
            near = np.abs(windows @ self.directions[some].T).max(axis=0)
            for place in np.flatnonzero(near >= self.least[some]):
                yield Found(self.wanted[start + place], min(float(near[place]), 1.0))

    def _quickly(self, part: Array) -> Iterator[Found]:
        """Compare all runs by a few numbers of each, and only what is near by all of them."""
        sums, squares = (np.cumsum(np.r_[0.0, part**power]) for power in (1, 2))
        inside = sums[self.length :] - sums[: -self.length]
        sizes = squares[self.length :] - squares[: -self.length] - inside**2 / self.length
        kept = np.flatnonzero(sizes > 1e-9 * np.square(part).mean())
        filters: Array = self.directions.astype(np.float64) if self.plane else self.short
        short = _correlated(part, filters)[kept] / np.sqrt(sizes[kept, None])
        runs = sliding_window_view(part, self.length)
        if self.plane:
            near = kept[np.square(short).sum(axis=1) >= self.least[0] ** 2 - 1e-3]
            if len(near):
                yield from self._plane(_directions(runs[near[: _PAIRS // self.length]]))
            return
        unit = _unit(short.astype(np.float32))
        step = max(_PAIRS // max(len(unit), 1), 1)
        for start in range(0, len(self.wanted), step):
            some = slice(start, start + step)
            rows, columns = np.nonzero(
                np.abs(unit @ self.shortened[some].T) >= self.first[some][None]
            )
            for place in np.unique(columns):
                mine = kept[rows[columns == place]][: _PAIRS // self.length]
                direction = self.directions[start + place]
                cosine = np.abs(_directions(runs[mine]) @ direction).max(initial=0.0)
                if cosine >= self.least[start + place]:
                    yield Found(self.wanted[start + place], min(float(cosine), 1.0))


def _directions(windows: Array) -> Floats:
    """Runs [n, D] less their means, of length one; those that are constant are left out."""
    largest = np.abs(windows).max(axis=1)
    windows = windows - windows.mean(axis=1, keepdims=True)
    spread = np.abs(windows).max(axis=1)
    # Less than rounding leaves of a constant is no direction.
    kept = (spread > 1e-6 * largest) & np.isfinite(spread)
    return _unit((windows[kept] / spread[kept, None]).astype(np.float32))


def _even(part: Array) -> bool:
    """Whether sums of squares over a part leave every run in it some digits.

    One huge number would take them from all runs behind it, and hide what is in them.
    """
    sizes = np.abs(part)
    usual = float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 0.0
    return bool(sizes.max() <= 1e3 * usual)


def _correlated(part: Array, filters: Array) -> Array:
    """Inner products of all runs of numbers [T] with filters [k, D]: [T − D + 1, k]."""
    length = 1 << (len(part) - 1).bit_length()
    spectrum = np.fft.rfft(part, length)
    rows = [np.fft.irfft(spectrum * np.fft.rfft(one, length).conj(), length) for one in filters]
    found: Array = np.stack(rows, axis=1)[: len(part) - filters.shape[1] + 1]
    return found


def _unit(rows: Floats) -> Floats:
    sizes = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    unit: Floats = rows / np.maximum(sizes, np.finfo(np.float32).tiny)
    return unit


def _orders(numbers: NDArray[Any], length: int) -> Iterator[Array]:
    """An array's numbers one after another, row by row, and along other axes that are long."""
    if numbers.size < length or numbers.dtype.kind not in "biuf":
        return
    axes = [axis for axis, size in enumerate(numbers.shape[:-1]) if size >= length]
    for axis in (-1, *axes):
        moved = np.moveaxis(numbers, axis, -1) if numbers.ndim > 1 else numbers
        with np.errstate(invalid="ignore"):  # there may be anything in the numbers
            flat = moved.ravel().astype(np.float64)
        # A number that is none, or beyond all others, would hide what stands around it.
        yield np.where(np.isfinite(flat), flat, 0.0)
