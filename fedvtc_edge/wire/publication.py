"""Published statistics ⇄ bytes: plain safetensors, for devices too."""

from __future__ import annotations

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedvtc_edge.statistics.class_statistics import GlobalStatistics

from .framing import WireError
from .uploads import symmetric


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
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        # The library quotes the file, whose bytes belong on no terminal.
        said = repr(str(error))[:200]
        raise WireError(f"not safetensors: {said}", hint="the file is damaged") from None
    shape = arrays["mean"].shape if "mean" in arrays else ()
    width = shape[-1] if shape else 0
    triangle = (width * (width + 1) // 2,)
    expected = {"count": shape[:1], "mean": shape, "std": shape, "covariance": triangle}
    if len(shape) != 2 or not {"count", "std"} <= set(arrays) <= set(expected):
        keys = f"keys {sorted(arrays)!r:.200}"
        raise WireError(keys, hint="expected count, mean, std, covariance")
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
        wide["covariance"] = symmetric(wide["covariance"], width)
    return GlobalStatistics(**wide)
