"""How alike two pictures or vectors are. numpy only.

None of these says that a record was found: the mean of its class alone scores high.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from fedvtc_edge.errors import ScoreError
from fedvtc_edge.statistics.class_statistics import Array

_WINDOW = 7
_BRIGHTNESS, _CONTRAST = 0.01**2, 0.03**2  # C1 and C2 of the paper for a range of 1
_SLACK = 1e-6
"""How far float32 arithmetic may leave [0, 1]."""


def psnr(a: ArrayLike, b: ArrayLike) -> float:
    """Peak signal-to-noise ratio for a range of 1, in dB; infinite for equal pictures.

    Args:
        a: Values in [0, 1], of any shape.
        b: Of the same shape.

    Raises:
        ScoreError: Shapes that differ, or values that no picture has.
    """
    first, second = _pictures(a, b)
    error = float(np.square(first - second).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: ArrayLike, b: ArrayLike) -> float:
    """Structural similarity (Wang et al. 2004), in [-1, 1].

    Uniform windows of 7×7 (smaller pictures: the largest odd side that fits), unbiased
    variances, mean over all whole windows and channels. That is ``structural_similarity`` of
    scikit-image by default, not the Gaussian window of the paper.

    Args:
        a: [H, W] or [channels, H, W] in [0, 1], 3×3 at least.
        b: Of the same shape.

    Raises:
        ScoreError: Shapes that differ or have no window, or values that no picture has.
    """
    first, second = _pictures(a, b)
    if first.ndim not in (2, 3) or min(first.shape[-2:]) < 3:
        raise ScoreError(
            f"pictures of shape {list(first.shape)}: expected [H, W] or [channels, H, W], 3×3 "
            "or more",
            hint="a window needs pixels to vary over",
        )
    side = min(_WINDOW, *first.shape[-2:])
    side -= 1 - side % 2
    x, y = (sliding_window_view(picture, (side, side), (-2, -1)) for picture in (first, second))
    mean_x, mean_y = x.mean((-2, -1)), y.mean((-2, -1))
    bias = side * side / (side * side - 1)
    var_x = (np.square(x).mean((-2, -1)) - mean_x**2) * bias
    var_y = (np.square(y).mean((-2, -1)) - mean_y**2) * bias
    covariance = ((x * y).mean((-2, -1)) - mean_x * mean_y) * bias
    alike = (2 * mean_x * mean_y + _BRIGHTNESS) * (2 * covariance + _CONTRAST)
    apart = (mean_x**2 + mean_y**2 + _BRIGHTNESS) * (var_x + var_y + _CONTRAST)
    return float((alike / apart).mean())


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    """Cosine of the angle between two vectors, in [-1, 1]; 0 where one of them is zero.

    Args:
        a: Finite numbers of any shape, read as one vector.
        b: Of the same shape.

    Raises:
        ScoreError: Shapes that differ, or numbers that are not finite.
    """
    first, second = (_unit(vector) for vector in _alike(a, b))
    return min(max(float(np.vdot(first, second)), -1.0), 1.0)


def _unit(vector: Array) -> Array:
    largest = float(np.abs(vector).max())
    if largest == 0:
        return vector
    scaled = vector / largest  # first, because squares of 1e-200 or 1e200 have no float
    direction: Array = scaled / np.linalg.norm(scaled)
    return direction


def _alike(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    try:
        first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    except (TypeError, ValueError) as error:
        raise ScoreError(f"not numbers: {error}", hint="give two arrays of numbers") from None
    if first.shape != second.shape or not first.size:
        raise ScoreError(
            f"shapes {list(first.shape)} and {list(second.shape)}: expected two equal ones, not "
            "empty",
            hint="compare like with like",
        )
    finite = np.isfinite(first) & np.isfinite(second)
    if not finite.all():
        raise ScoreError(
            f"{int((~finite).sum())} of {first.size} pairs of numbers are not finite",
            hint="find out why: to leave them out would bias the result",
        )
    return first, second


def _pictures(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    pair = _alike(a, b)
    low, high = min(p.min() for p in pair), max(p.max() for p in pair)
    if low < -_SLACK or high > 1 + _SLACK:
        raise ScoreError(
            f"brightness from {low:g} to {high:g}: expected 0 to 1", hint="divide bytes by 255"
        )
    return pair
