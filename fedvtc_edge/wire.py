"""Statistics to bytes and back; whatever comes in is bounded before it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .errors import FedVTCError
from .statistics import ClassStatistics, GlobalStatistics

_HEADER_BYTES = 1024
_SLACK = 1e-3
"""Relative rounding allowed when float32 sums are checked against each other."""

_LARGEST = 1e30
"""Largest magnitude allowed, so that no sum over clients overflows float32 when published."""

_LARGEST_RELEASE = 2**49
"""Largest magnitude in a private release: 10,000 clients add up within int64."""

_HINT = "the sender must encode with the classes, width and moments that the server announced"

_SHAPES_HINT = "all decoders must have the shape that the settings give them"

Weights = Mapping[str, NDArray[Any]]
"""A network's parameters by name."""


class WireError(FedVTCError):
    """Bytes that are not the statistics that were asked for."""


def encode(statistics: ClassStatistics) -> bytes:
    """float32 safetensors of ``count``, ``total`` and ``square``: (C + C·p + C·p or p·p) · 4 B.

    A pooled second moment is symmetric, so only its upper triangle travels.
    """
    square = statistics.square
    if statistics.pooled:
        square = square[np.triu_indices(statistics.width)]
    arrays = {"count": statistics.count, "total": statistics.total, "square": square}
    return save({name: value.astype(np.float32) for name, value in arrays.items()})


def decode(data: bytes, *, classes: int, width: int, pooled: bool | None = None) -> ClassStatistics:
    """Read what :func:`encode` wrote, for C classes of p features.

    Args:
        data: Untrusted bytes.
        classes: Number C of classes that was agreed on.
        width: Number p of features that was agreed on.
        pooled: Moments that were agreed on; None accepts either.

    Raises:
        WireError: Size, keys, types or shapes differ from what was agreed; a value is
            not finite or absurdly large; a count is negative; a class without samples has a
            sum; a second moment is smaller than its mean allows.
    """
    triangle = width * (width + 1) // 2
    shapes = {True: (triangle,), False: (classes, width)}
    if pooled is not None:
        shapes = {pooled: shapes[pooled]}
    largest = max(int(np.prod(shape)) for shape in shapes.values())
    limit = _HEADER_BYTES + 4 * (classes + classes * width + largest)
    if len(data) > limit:  # before any allocation that the sender could choose the size of
        raise WireError(f"{len(data)} bytes, expected at most {limit}", hint=_HINT)
    arrays = _load(data, _HINT)
    if set(arrays) != {"count", "total", "square"}:
        raise WireError(f"keys {sorted(arrays)}, expected count, square, total", hint=_HINT)
    for name, value in arrays.items():
        if value.dtype != np.float32:
            raise WireError(f"{name}: expected float32, got {value.dtype}", hint=_HINT)
        if not (np.abs(value) <= _LARGEST).all():  # a NaN compares false
            raise WireError(f"{name}: a value is not finite or beyond {_LARGEST:g}", hint=_HINT)
    count, total, square = arrays["count"], arrays["total"], arrays["square"]
    kind = next((k for k, shape in shapes.items() if square.shape == shape), None)
    if kind is None or count.shape != (classes,) or total.shape != (classes, width):
        raise WireError(
            f"shapes {count.shape}, {total.shape}, {square.shape} do not fit "
            f"{classes} classes of {width} features",
            hint=_HINT,
        )
    wide = square.astype(np.float64)
    statistics = ClassStatistics(count, total, _symmetric(wide, width) if kind else wide, kind)
    _check_possible(statistics)
    return statistics


def encode_release(release: NDArray[np.int64]) -> bytes:
    """int64 safetensors of one vector: as many bytes whatever a client has."""
    return save({"release": np.ascontiguousarray(release, np.int64)})


def decode_release(data: bytes, *, size: int) -> NDArray[np.int64]:
    """Read what :func:`encode_release` wrote.

    Args:
        data: Untrusted bytes.
        size: How many numbers were agreed on.

    Raises:
        WireError: Another size, key, type or shape, or a value that no sum can have.
    """
    limit = _HEADER_BYTES + 8 * size
    if len(data) > limit:
        raise WireError(f"{len(data)} bytes, expected at most {limit}", hint=_HINT)
    arrays = _load(data, _HINT)
    release = arrays.get("release")
    if release is None or len(arrays) != 1:
        raise WireError(f"keys {sorted(arrays)[:5]}, expected release", hint=_HINT)
    if release.dtype != np.int64 or release.shape != (size,):
        raise WireError(f"{release.dtype} {release.shape}, expected int64 ({size},)", hint=_HINT)
    if (release > _LARGEST_RELEASE).any() or (release < -_LARGEST_RELEASE).any():
        raise WireError(f"a value beyond {_LARGEST_RELEASE}", hint=_HINT)
    return release


def _load(data: bytes, hint: str) -> dict[str, NDArray[Any]]:
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WireError(f"not safetensors: {error}", hint=hint) from None


def _symmetric(triangle: np.ndarray, width: int) -> np.ndarray:
    matrix = np.zeros((width, width))
    matrix[np.triu_indices(width)] = triangle
    return matrix + np.triu(matrix, 1).T


def _check_possible(statistics: ClassStatistics) -> None:
    """Sums that some data could have: Jensen's inequality for each class and feature."""
    count, total = statistics.count, statistics.total
    if (count < 0).any():
        raise WireError(f"negative count {count.min()}", hint=_HINT)
    square, empty = statistics.square, count == 0
    least = np.square(total) / np.maximum(count, 1e-12)[:, None]
    nothing = total[empty]
    if statistics.pooled:
        square, least, empty = np.diag(square)[None], least.sum(0)[None], empty.all()[None]
    if nothing.any() or square[empty].any():
        raise WireError("a class with no samples has a sum", hint=_HINT)
    if (square * (1 + _SLACK) + _SLACK < least).any():
        raise WireError("a second moment is smaller than its mean allows", hint=_HINT)


def publish(world: GlobalStatistics) -> bytes:
    """float32 safetensors of what the server publishes; the same input gives the same bytes.

    Of a pooled covariance, as of an upload, the upper triangle travels.
    """
    arrays = {"count": world.count, "mean": world.mean, "std": world.std}
    if world.covariance is not None:
        arrays["covariance"] = world.covariance[np.triu_indices(len(world.covariance))]
    return save({name: np.ascontiguousarray(v, np.float32) for name, v in arrays.items()})


def published(data: bytes) -> GlobalStatistics:
    """Read what :func:`publish` wrote.

    Raises:
        WireError: The bytes are not published statistics.
    """
    arrays = _load(data, "the file is damaged")
    shape = arrays["mean"].shape if "mean" in arrays else ()
    width = shape[-1] if shape else 0
    triangle = (width * (width + 1) // 2,)
    expected = {"count": shape[:1], "mean": shape, "std": shape, "covariance": triangle}
    if len(shape) != 2 or not {"count", "std"} <= set(arrays) <= set(expected):
        raise WireError(f"keys {sorted(arrays)}", hint="expected count, mean, std, covariance")
    for name, value in arrays.items():
        if (
            value.shape != expected[name]
            or value.dtype != np.float32
            or not np.isfinite(value).all()
            or (name in ("count", "std") and (value < 0).any())
        ):
            raise WireError(
                f"{name}: {value.dtype} {value.shape} or its values are off",
                hint="the file is damaged",
            )
    wide = {name: value.astype(np.float64) for name, value in arrays.items()}
    if "covariance" in wide:
        wide["covariance"] = _symmetric(wide["covariance"], width)
    return GlobalStatistics(**wide)


def encode_weights(weights: Weights) -> bytes:
    """float32 safetensors of named arrays."""
    return save({name: np.ascontiguousarray(v, np.float32) for name, v in weights.items()})


def decode_weights(data: bytes, *, like: Weights) -> Weights:
    """Read what :func:`encode_weights` wrote.

    Args:
        data: Untrusted bytes.
        like: Arrays of the agreed names and shapes.

    Raises:
        WireError: Size, names, types or shapes differ, or a value is not finite.
    """
    limit = _HEADER_BYTES * len(like) + 4 * sum(value.size for value in like.values())
    if len(data) > limit:
        raise WireError(f"{len(data)} bytes, expected at most {limit}", hint=_SHAPES_HINT)
    arrays = _load(data, _SHAPES_HINT)
    if set(arrays) != set(like):
        raise WireError(f"{len(arrays)} arrays of other names", hint=_SHAPES_HINT)
    for name, value in arrays.items():
        if (
            value.shape != like[name].shape
            or value.dtype != np.float32
            or not np.isfinite(value).all()
        ):
            raise WireError(f"{name}: {value.dtype} {value.shape} is off", hint=_SHAPES_HINT)
    return arrays
