"""How alike two pictures are. All three mislead alone: the mean of a class scores high."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from fedvtc_edge.errors import ScoreError
from fedvtc_edge.statistics import Array

_WINDOW = 7
_BRIGHTNESS, _CONTRAST = 0.01**2, 0.03**2


def psnr(a: ArrayLike, b: ArrayLike) -> float:
    """Peak signal-to-noise ratio, dB; infinite for equal pictures.

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

    Windows of 7×7 (or the largest odd size that fits), unbiased variances, mean over all whole
    windows and channels: as scikit-image does by default.

    Args:
        a: [H, W] or [channels, H, W] in [0, 1], 3×3 at least.
        b: Of the same shape.

    Raises:
        ScoreError: Shapes that differ or have no window, or values that no picture has.
    """
    first, second = _pictures(a, b)
    if first.ndim not in (2, 3) or min(first.shape[-2:]) < 3:
        raise ScoreError(
            f"pictures of shape {list(first.shape)}", hint="expected [channels, H, W], 3×3 or more"
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
    """Cosine of the angle between two vectors; 0 where one is zero.

    Raises:
        ScoreError: Shapes that differ, or numbers that are not finite.
    """
    first, second = _alike(a, b)
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.vdot(first, second)) / length if length else 0.0


def _alike(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or not first.size:
        raise ScoreError(
            f"shapes {list(first.shape)} and {list(second.shape)}", hint="compare like with like"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ScoreError("numbers that are not finite", hint="find out where they come from")
    return first, second


def _pictures(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    pair = _alike(a, b)
    low, high = min(p.min() for p in pair), max(p.max() for p in pair)
    if low < -1e-6 or high > 1 + 1e-6:
        raise ScoreError(f"brightness from {low:g} to {high:g}", hint="expected values from 0 to 1")
    return pair
