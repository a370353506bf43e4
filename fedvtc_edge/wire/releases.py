"""Private releases and networks' weights ⇄ bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .context import Context
from .framing import HINT, Form, MomentKind, Numbers, Payload, WireError, fitting

Weights = Mapping[str, NDArray[Any]]
"""A network's parameters by name."""

LARGEST_RELEASE = 2**49
"""Largest magnitude in a private release: 10,000 clients add up within int64."""

_SHAPES_HINT = "weights must have the names and shapes that the settings give them"


def encode_release(release: NDArray[np.int64], *, context: Context | None = None) -> bytes:
    """A header and int64 safetensors of one vector: as many bytes whatever a client has."""
    whole = np.asarray(release, np.int64)
    return _release_form(whole.size).write({"release": whole}, context)


def decode_release(data: bytes, *, size: int, context: Context | None = None) -> NDArray[np.int64]:
    """Read what :func:`encode_release` wrote.

    Args:
        data: Untrusted bytes.
        size: How many numbers were agreed on.
        context: Whose release it must be; None accepts any.

    Raises:
        WireError: Another size or header, or a value that no sum can have.
    """
    form = fitting([_release_form(size)], data, HINT)
    release: NDArray[np.int64] = form.read(data, context, HINT)["release"]
    if (release > LARGEST_RELEASE).any() or (release < -LARGEST_RELEASE).any():
        raise WireError(f"a value beyond {LARGEST_RELEASE}", hint=HINT)
    return release


def encode_weights(weights: Weights, *, context: Context | None = None) -> bytes:
    """A header and float32 safetensors of named arrays."""
    arrays = {name: np.asarray(value, np.float32) for name, value in weights.items()}
    return _weights_form(arrays).write(arrays, context)


def decode_weights(data: bytes, *, like: Weights, context: Context | None = None) -> Weights:
    """Read what :func:`encode_weights` wrote.

    Args:
        data: Untrusted bytes.
        like: Arrays of the agreed names and shapes.
        context: Whose weights they must be; None accepts any.

    Raises:
        WireError: Size, header, names or shapes differ, or a value is not finite.
    """
    form = fitting([_weights_form(like)], data, _SHAPES_HINT)
    arrays = form.read(data, context, _SHAPES_HINT)
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise WireError(f"{name}: a value is not finite", hint=_SHAPES_HINT)
    return {name: arrays[name] for name in like}


def _release_form(size: int) -> Form:
    tensors = {"release": (np.int64, (size,))}
    return Form(Payload.RELEASE, Numbers.INT64, MomentKind.NONE, 0, size, tensors)


def _weights_form(like: Weights) -> Form:
    tensors = {name: (np.float32, value.shape) for name, value in like.items()}
    count = sum(value.size for value in like.values())
    return Form(Payload.WEIGHTS, Numbers.FLOAT32, MomentKind.NONE, 0, count, tensors)
