"""Class statistics ⇄ bytes, in float32 or in scaled float16."""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedvtc_edge.statistics.class_statistics import ClassStatistics

from .context import Context
from .framing import HINT, Form, MomentKind, Numbers, Payload, WireError, fitting

Precision = Literal["float32", "float16"]
Arrays = dict[str, NDArray[Any]]

LARGEST = 1e30
"""Bound of a number's magnitude, so that no sum over clients overflows float32 when published."""

_NEGATIVE_ZERO = np.uint32(2**31)


def encode(
    statistics: ClassStatistics,
    *,
    context: Context | None = None,
    precision: Precision = "float32",
) -> bytes:
    """A header of 128 bytes and safetensors; the same length whatever the data are.

    ``float32``: ``count``, ``square`` and ``total``, (C + C·p + C·p or p(p+1)/2) · 4 B. A
    pooled second moment is symmetric, so only its upper triangle travels.
    ``float16``: exact counts, and means and deviations (pooled: a triangular root of the
    scatter within classes) to 11 binary digits. About half as long; sums made of a mean
    and a square root are possible sums whatever rounding does.

    Args:
        statistics: What is uploaded. Nothing is checked: whoever reads it does.
        context: Bound into the header; None leaves its field zero.
        precision: How numbers are stored.
    """
    pooled = bool(statistics.pooled)
    arrays = _halved(statistics) if precision == "float16" else _single(statistics)
    form = _form(statistics.classes, statistics.width, pooled, precision)
    return form.write(arrays, context)


def decode(
    data: bytes,
    *,
    classes: int,
    width: int,
    pooled: bool | None = None,
    context: Context | None = None,
) -> ClassStatistics:
    """Read what :func:`encode` wrote, in either precision, for C classes of p features.

    No bit is ignored: every other string of bytes is refused or means other statistics.

    Args:
        data: Untrusted bytes.
        classes: Number C of classes that was agreed on.
        width: Number p of features that was agreed on.
        pooled: Moments that were agreed on; None accepts either.
        context: Whose upload it must be; None accepts any well-formed context, or none:
            for reading what is trusted already.

    Raises:
        WireError: Size, header, names, types or shapes differ from what was agreed; a value
            is not finite or absurdly large; a count is negative or no whole number; a class
            without samples has a sum; no data have such second moments.
    """
    form = fitting(
        (
            _form(classes, width, kind, precision)
            for kind in ((True, False) if pooled is None else (pooled,))
            for precision in ("float32", "float16")
        ),
        data,
        HINT,
    )
    begin, kind = form.check(data, context, HINT), form.moments == MomentKind.POOLED
    if form.numbers == Numbers.FLOAT16:
        statistics = _from_half(form.read(data, context, HINT), width, kind)
    else:
        statistics = _from_single(form, np.frombuffer(data, "<f4", offset=begin), width, kind)
    check_possible(statistics)
    return statistics


def encode_means(statistics: ClassStatistics, *, context: Context | None = None) -> bytes:
    """Counts and class sums alone, without second moments: (C + C·p) · 4 B behind the header.

    Args:
        statistics: Its second moments are left out. Nothing is checked: whoever reads it does.
        context: Bound into the header; None leaves its field zero.
    """
    arrays = _single(statistics)
    del arrays["square"]
    return _means(statistics.classes, statistics.width).write(arrays, context)


def decode_means(
    data: bytes, *, classes: int, width: int, context: Context | None = None
) -> ClassStatistics:
    """Read what :func:`encode_means` wrote, for C classes of p features; second moments are zero.

    Args:
        data: Untrusted bytes.
        context: As in :func:`decode`.

    Raises:
        WireError: Another size, header, name, type or shape; a value that is not finite or absurdly
            large; a count that is negative or no whole number; a class without samples that has
            a sum.
    """
    form = _means(classes, width)
    begin = form.check(data, context, HINT)
    arrays = _checked(form, np.frombuffer(data, "<f4", offset=begin))
    check_counts(arrays["count"])
    count, total = arrays["count"], arrays["total"]
    if total[count == 0].any():
        raise WireError("a class with no samples has a sum", hint=HINT)
    return ClassStatistics(count, total, np.zeros_like(total), False)


@functools.lru_cache(maxsize=64)
def _means(classes: int, width: int) -> Form:
    single = np.dtype(np.float32)
    tensors = {"count": (single, (classes,)), "total": (single, (classes, width))}
    return Form(Payload.STATISTICS, Numbers.FLOAT32, MomentKind.NONE, classes, width, tensors)


@functools.lru_cache(maxsize=64)  # the same for each of many uploads
def _form(classes: int, width: int, pooled: bool, precision: str) -> Form:
    triangle, rows = width * (width + 1) // 2, (classes, width)
    single, short = np.dtype(np.float32), np.dtype(np.float16)
    tensors: dict[str, tuple[DTypeLike, tuple[int, ...]]]
    if precision == "float32":
        square = (single, (triangle,) if pooled else rows)
        tensors = {"count": (single, (classes,)), "total": (single, rows), "square": square}
    else:
        tensors = {
            "count": (single, (classes,)),
            "mean": (short, (classes, 1 + width)),
            "root": (short, (width + triangle,) if pooled else (classes, 1 + width)),
        }
    return Form(
        Payload.STATISTICS,
        Numbers.FLOAT16 if precision == "float16" else Numbers.FLOAT32,
        MomentKind.POOLED if pooled else MomentKind.DIAGONAL,
        classes,
        width,
        tensors,
    )


def _single(statistics: ClassStatistics) -> Arrays:
    square = statistics.square
    if statistics.pooled:
        square = upper(square)
    arrays = {"count": statistics.count, "total": statistics.total, "square": square}
    with np.errstate(all="ignore"):  # too large becomes infinite, which is refused when read
        # + 0: a zero has no sign, or there were two ways to write it.
        return {name: value.astype(np.float32) + np.float32(0) for name, value in arrays.items()}


def _from_single(
    form: Form, flat: NDArray[np.float32], width: int, pooled: bool
) -> ClassStatistics:
    arrays = _checked(form, flat)
    count, total, square = arrays["count"], arrays["total"], arrays["square"]
    check_counts(count)
    return ClassStatistics(count, total, symmetric(square, width) if pooled else square, pooled)


def _checked(form: Form, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """The arrays of a form in float64, of finite numbers below the bound."""
    # All numbers at once: most uploads are honest, and an array is named where one is not.
    if not _within_bound(flat):
        for name, value in form.split(flat).items():
            if not _within_bound(value):
                raise WireError(f"{name}: a value is not finite or beyond {LARGEST:g}", hint=HINT)
    if (flat.view("<u4") == _NEGATIVE_ZERO).any():
        raise WireError("a negative zero", hint=HINT)
    return form.split(flat.astype(np.float64))


def _within_bound(value: NDArray[Any]) -> bool:
    return bool(
        np.maximum.reduce(value, axis=None) < LARGEST > -np.minimum.reduce(value, axis=None)
    )


def _halved(statistics: ClassStatistics) -> Arrays:
    with np.errstate(all="ignore"):
        count, mean = np.maximum(statistics.count, 1.0), statistics.mean
        if statistics.pooled:
            everyone = max(float(statistics.count.sum()), 1.0)
            between = (mean * statistics.count[:, None]).T @ mean
            packed = pack(_root((statistics.square - between) / everyone))
            lower = (packed[:, 1:] * _signs(packed[:, 1:]) + np.float16(0)).astype(np.float16)
            root = np.concatenate([packed[:, 0], lower[np.tril_indices(statistics.width)]])
        else:
            variance = statistics.square / count[:, None] - np.square(mean)
            root = pack(np.sqrt(np.maximum(variance, 0.0)))
        return {
            "count": statistics.count.astype(np.float32) + np.float32(0),
            "mean": pack(mean),
            "root": root,
        }


def _from_half(arrays: Arrays, width: int, pooled: bool) -> ClassStatistics:
    check_counts(arrays["count"])  # before the cast, which warns of a signalling NaN
    count = arrays["count"].astype(np.float64)
    mean, root = unpack(arrays["mean"]), _unpacked_root(arrays["root"], width, pooled)
    empty = count == 0
    if mean[empty].any() or (root.any() if pooled and empty.all() else False):
        raise WireError("a class with no samples has a mean", hint=HINT)
    if not pooled and root[empty].any():
        raise WireError("a class with no samples has a deviation", hint=HINT)
    total = count[:, None] * mean
    if pooled:
        square = total.T @ mean + count.sum() * (root @ root.T)
        square = (square + square.T) / 2.0
    else:
        square = count[:, None] * (np.square(mean) + np.square(root))
    if max(np.abs(array).max(initial=0.0) for array in (total, square)) >= LARGEST:
        raise WireError(f"a value is beyond {LARGEST:g}", hint=HINT)
    return ClassStatistics(count, total, square, pooled)


def _root(within: NDArray[np.float64]) -> NDArray[np.float64]:
    """A lower triangle L with L·Lᵀ = within; of singular matrices too."""
    if not np.isfinite(within).all():
        return np.full_like(within, np.nan)
    values, vectors = np.linalg.eigh((within + within.T) / 2.0)
    _, upper = np.linalg.qr((vectors * np.sqrt(np.maximum(values, 0.0))).T)
    return np.tril(upper.T)


def _signs(lower: NDArray[Any]) -> NDArray[Any]:
    """Per column of L, the sign of its topmost number that is not zero: L·Lᵀ has none."""
    topmost = lower[(lower != 0).argmax(0), np.arange(len(lower))]
    return np.where(topmost < 0, -1, 1).astype(np.float16)


def _unpacked_root(packed: Half, width: int, pooled: bool) -> NDArray[np.float64]:
    if pooled:
        lower = np.zeros((width, width), np.float16)
        lower[np.tril_indices(width)] = packed[width:]
        packed = np.concatenate([packed[:width, None], lower], 1)
    root = unpack(packed)
    if (_signs(root) < 0).any() if pooled else (root < 0).any():
        raise WireError("a deviation of the wrong sign", hint=HINT)
    return root


def symmetric(triangle: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The matrix [p, p] of an upper triangle, row by row."""
    return np.take(triangle, _mirrored(width))


def upper(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper triangle of a matrix [p, p], row by row: what :func:`symmetric` is made of."""
    return np.take(matrix, _upper(len(matrix)))


# Tables of places, made once for each width: they take longer to make than all else.


@functools.lru_cache(maxsize=8)
def _upper(width: int) -> NDArray[np.intp]:
    rows, columns = np.triu_indices(width)
    places: NDArray[np.intp] = rows * width + columns
    return places


@functools.lru_cache(maxsize=8)
def _mirrored(width: int) -> NDArray[np.intp]:
    places = np.zeros((width, width), np.intp)
    places.ravel()[_upper(width)] = np.arange(width * (width + 1) // 2)
    return np.maximum(places, places.T)


# ---------------------------------------------------------------- float16
# Rows of numbers as float16 with one power of two per row.
#
# Sums over samples leave float16's range (6e-8 to 65504) at once, and a row's largest
# number says nothing of another row's. So each row is scaled until its largest number
# uses float16's upper end, and the exponent travels as the row's first number.

Array = NDArray[np.float64]
Half = NDArray[np.float16]

LEAST, MOST = -115, 85
"""Exponents: rows whose largest number is below 2⁻¹⁰⁰ lose digits, above 2¹⁰⁰ are refused."""

_BITS = 15
"""A row's largest stored number lies in [2¹⁴, 2¹⁵): half of float16's range, so that
rounding up never overflows."""

_ZERO = -_BITS
"""Exponent of a row of zeros."""


def pack(rows: Array) -> Half:
    """[R, p] → [R, 1 + p]: each row's exponent, then its numbers divided by 2^exponent.

    The only form of its numbers: :func:`unpack` refuses every other.
    """
    with np.errstate(all="ignore"):  # what is not finite is refused where it is read
        exponent = _exponent(rows)
        stored = _scaled(rows, exponent)
        exponent += np.abs(stored).max(1, initial=0) >= 2**_BITS  # by rounding up
        stored = _scaled(rows, exponent)
        exponent[~stored.any(1)] = _ZERO
        return np.concatenate([exponent[:, None].astype(np.float16), stored], 1)


def unpack(packed: Half) -> Array:
    """Inverse of :func:`pack`, to 11 binary digits of each row's numbers.

    Raises:
        WireError: Not finite, or not as ``pack`` would have written it.
    """
    if not np.isfinite(packed).all():
        raise WireError("a value is not finite", hint=HINT)
    exponent = packed[:, 0].astype(np.float64)
    if ((exponent < LEAST) | (exponent > MOST) | (exponent % 1 != 0)).any():
        raise WireError(f"an exponent is not whole or not in {LEAST}…{MOST}", hint=HINT)
    rows = np.ldexp(packed[:, 1:].astype(np.float64), exponent.astype(np.int32)[:, None])
    if pack(rows).tobytes() != packed.tobytes():
        raise WireError("float16 rows that are not scaled as agreed", hint=HINT)
    return rows


def _exponent(rows: Array) -> NDArray[np.int32]:
    largest = np.abs(rows).max(1, initial=0)
    exponent: NDArray[np.int32] = np.clip(np.frexp(largest)[1] - _BITS, LEAST, MOST)
    return exponent


def _scaled(rows: Array, exponent: NDArray[np.int32]) -> Half:
    # + 0: a zero has no sign, or there were two ways to write it.
    half: Half = np.ldexp(rows, -exponent[:, None]).astype(np.float16) + np.float16(0)
    return half


# ---------------------------------------------------------------- feasible sums
# Checks that some data could have such sums.

SLACK = 1e-3
"""Relative rounding allowed when float32 sums are checked against each other."""

LARGEST_COUNT = 2.0**48
"""Samples of one class that one client may have."""

_ROUNDING = 1e-6
"""Largest error of one entry of a correlation matrix made of float32 sums; it is 2e-7."""

_TINY = 1e-30
"""Below it float32 products lose digits, or all of them."""


def check_counts(count: NDArray[Any]) -> None:
    """Refuse what counts no samples: negative, fractional, absurd or not a number.

    Raises:
        WireError: Such a count.
    """
    largest, least = np.maximum.reduce(count), np.minimum.reduce(count)
    if not largest <= LARGEST_COUNT:  # nor is a NaN
        raise WireError(f"count: a value is not finite or beyond {LARGEST_COUNT:g}", hint=HINT)
    if least < 0 or (least == 0 and (np.signbit(count) & (count == 0)).any()):
        raise WireError(f"negative count {least}", hint=HINT)
    if (count != np.floor(count)).any():
        raise WireError("a count is no whole number", hint=HINT)


def check_possible(statistics: ClassStatistics) -> None:
    """Refuse sums that no data have.

    Jensen's inequality for each class and feature, Σz² ≥ (Σz)²/n; pooled, that the
    scatter within classes, S − Σ_y t_y·t_yᵀ/n_y, has no negative eigenvalue beyond
    rounding. The second implies the Cauchy–Schwarz inequality of every two features; it
    is decided by one Cholesky factorisation, O(p³/3), at any width.

    Raises:
        WireError: A class without samples has a sum, or second moments are too small.
    """
    count, total, square = statistics.count, statistics.total, statistics.square
    empty = count == 0
    if empty.any():
        nothing = [total[empty]]
        if not statistics.pooled:
            nothing.append(square[empty])
        elif empty.all():
            nothing.append(square)
        if any(sums.any() for sums in nothing):
            raise WireError("a class with no samples has a sum", hint=HINT)
    scaled = total / np.sqrt(np.maximum(count, 1.0))[:, None]
    least, diagonal = np.square(scaled), square
    if statistics.pooled:
        diagonal, least = np.diag(square), np.add.reduce(least)
    if (diagonal * (1 + SLACK) + _TINY < least).any():
        raise WireError("a second moment is smaller than its mean allows", hint=HINT)
    if statistics.pooled:
        _check_scatter(square, scaled)


def _check_scatter(square: NDArray[np.float64], scaled: NDArray[np.float64]) -> None:
    # In one matrix: the system's memory costs as much as the arithmetic where each step has its
    # own.
    within = scaled.T @ scaled
    np.subtract(square, within, out=within)
    # In units of each feature's own size: rounding is then alike in all entries, and p of
    # them move an eigenvalue by p times as much at most.
    inverse = 1.0 / np.sqrt(np.maximum(np.diag(square), _TINY))
    within *= inverse[:, None]
    within *= inverse
    within.ravel()[:: len(within) + 1] += len(within) * _ROUNDING
    try:
        np.linalg.cholesky(within)
    except np.linalg.LinAlgError:
        raise WireError("second moments that no data have", hint=HINT) from None
