"""Does the runtime compute what torch computes? An export that cannot say yes ends here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.errors import ParityError

TOLERANCE = 1e-4
"""Largest difference, as a share of the sample's largest value. float32 in another order of
summation reaches 5e-6 on the small built-in networks and 4e-5 on torchvision's deeper ones,
where torch itself is as far from float64, and from itself at another batch size."""

TIE = 0.01
"""How near to a half, in levels of 255, a pixel must be for its rounding to depend on the
last bits of a sum; 3e-5 is the most that was seen."""

Floats = NDArray[np.float32]
Report = dict[str, Any]


def compare_floats(reference: Floats, actual: Floats, what: str) -> Report:
    """Relative error of features or logits [N, K], row by row.

    Raises:
        ParityError: Another shape, a value that is not finite, or an error above tolerance.
    """
    finite = np.isfinite(reference).all() and np.isfinite(actual).all()
    if reference.shape != actual.shape or not finite:
        raise _failed(what, f"shape {actual.shape} or a value that is not finite")
    scale = np.maximum(np.abs(reference).max(axis=1), np.finfo(np.float32).tiny)
    error = float((np.abs(reference - actual).max(axis=1) / scale).max())
    if error > TOLERANCE:
        raise _failed(what, f"relative error {error:.2g}, expected at most {TOLERANCE:g}")
    return {"samples": len(reference), "max_relative_error": float(f"{error:.2g}")}


def compare_logits(reference: Floats, actual: Floats, what: str) -> Report:
    """As :func:`compare_floats`, and the predicted classes must be the same.

    A class that the runtime prefers by less than the tolerance is a tie, not a
    disagreement; ties are counted.

    Raises:
        ParityError: An error above tolerance, or another class.
    """
    report = compare_floats(reference, actual, what)
    rows = np.arange(len(reference))
    chosen = actual.argmax(axis=1)
    best = reference.max(axis=1)
    differs = chosen != reference.argmax(axis=1)
    tied = best - reference[rows, chosen] <= 2 * TOLERANCE * np.abs(reference).max(axis=1)
    if (differs & ~tied).any():
        raise _failed(what, f"{int((differs & ~tied).sum())} of {len(rows)} in another class")
    agreement = 1.0 - float(differs.mean())
    return report | {"argmax_agreement": agreement, "ties": int(differs.sum())}


def compare_pixels(levels: Floats, actual: NDArray[np.uint8], what: str) -> Report:
    """Painted pixels must be equal; one may differ only where rounding is a coin's toss.

    Args:
        levels: torch's pixels before rounding, [N, H, W, channels] in 0…255.
        actual: The runtime's pixels.
        what: For the error.

    Raises:
        ParityError: A pixel differs that is not a tie.
    """
    if levels.shape != actual.shape or actual.dtype != np.uint8:
        raise _failed(what, f"{actual.dtype} of shape {actual.shape}")
    if not np.isfinite(levels).all():  # both would paint them black, and agree
        raise _failed(what, "a pixel that is not finite")
    expected = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    differs = expected != actual
    ties = differs & (np.abs(levels - actual) <= 0.5 + TIE)
    if (differs & ~ties).any():
        raise _failed(what, f"{int((differs & ~ties).sum())} of {differs.size} pixels differ")
    return {
        "samples": len(actual),
        "pixels": int(differs.size),
        "equal_pixels": int(differs.size - ties.sum()),
        "rounding_ties": int(ties.sum()),
    }


def _failed(what: str, why: str) -> ParityError:
    return ParityError(
        f"{what}: onnxruntime and torch disagree: {why}",
        hint="this client was not exported; install the versions that pyproject.toml asks for",
    )
