"""Sums that some data could have, and sums that none could."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.statistics import ClassStatistics

from .framing import HINT, WireError

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
    if not np.isfinite(count).all() or (count > LARGEST_COUNT).any():
        raise WireError(f"count: a value is not finite or beyond {LARGEST_COUNT:g}", hint=HINT)
    if (count < 0).any() or (np.signbit(count) & (count == 0)).any():
        raise WireError(f"negative count {count.min()}", hint=HINT)
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
    scaled = total / np.sqrt(np.maximum(count, 1.0))[:, None]
    least = np.square(scaled)
    nothing, diagonal = total[empty], square
    if statistics.pooled:
        diagonal, least = np.diag(square)[None], least.sum(0)[None]
        if empty.all() and square.any():
            raise WireError("a class with no samples has a sum", hint=HINT)
    elif square[empty].any():
        raise WireError("a class with no samples has a sum", hint=HINT)
    if nothing.any():
        raise WireError("a class with no samples has a sum", hint=HINT)
    if (diagonal * (1 + SLACK) + _TINY < least).any():
        raise WireError("a second moment is smaller than its mean allows", hint=HINT)
    if statistics.pooled:
        _check_scatter(square, square - scaled.T @ scaled)


def _check_scatter(square: NDArray[np.float64], within: NDArray[np.float64]) -> None:
    # In units of each feature's own size: rounding is then alike in all entries, and p of
    # them move an eigenvalue by p times as much at most.
    size = np.sqrt(np.maximum(np.diag(square), _TINY))
    width = len(size)
    correlation = within / size[:, None] / size
    try:
        np.linalg.cholesky(correlation + width * _ROUNDING * np.eye(width))
    except np.linalg.LinAlgError:
        raise WireError("second moments that no data have", hint=HINT) from None
