"""One client's private release: bounded integer sums, and noise on every one of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvtc_edge.errors import PrivacyError

from .design import COUNT, RADIUS, SECOND, Array, Design
from .grid import GRID
from .sampler import discrete_gaussian

Integers = NDArray[np.int64]

_CHUNK = 512
SHRINK = 1.0 - 2.0**-30
"""More than float64 can be off in a norm of 2^23 numbers; less than a feature shows."""


def release(design: Design, features: ArrayLike, labels: ArrayLike, centre: Array) -> Integers:
    """Noised sums of a client's examples.

    Guarantee: see :class:`Design`. Drawn from the operating system's entropy: two
    calls are two releases, and cost twice. Keep the bytes and send them again instead.

    Args:
        design: Public.
        features: Anchor features [N, m], each of norm √m.
        labels: Their classes [N].
        centre: Public centre of the features' directions, [m].

    Returns:
        int64 [design.size]: counts, class sums, second moments.

    Raises:
        PrivacyError: Shapes or labels that do not fit the design.
    """
    exact = bounded_sums(design, features, labels, centre)
    return exact + discrete_gaussian(design.share, design.size)


def bounded_sums(
    design: Design,
    features: ArrayLike,
    labels: ArrayLike,
    centre: Array,
    *,
    bound: float | None = None,
) -> Integers:
    """The sums before noise; one example changes them by at most the sensitivity.

    Args:
        design: Public.
        features: As in :func:`release`.
        labels: Their classes [N].
        centre: Public centre.
        bound: Of one example's norm, where that is not ``design.clip``.

    Raises:
        PrivacyError: Shapes or labels that do not fit the design.
    """
    z, y = np.asarray(features, np.float64), np.asarray(labels, np.int64)
    fits = z.shape == (*y.shape, design.width) and np.shape(centre) == (design.width,)
    if not fits or y.ndim != 1 or (y.size and not 0 <= y.min() <= y.max() < design.classes):
        raise PrivacyError(
            f"features {z.shape}, labels {y.shape} and a centre {np.shape(centre)} do not fit "
            f"{design.classes} classes of {design.width} features",
            hint="expected features [N, m], labels [N] in 0…classes-1 and a centre [m]",
        )
    counts, sums, seconds = (np.zeros(size, np.int64) for size in design.sizes)
    per_class = sums.reshape(design.classes, design.width)
    for start in range(0, len(z), _CHUNK):
        part = y[start : start + _CHUNK]
        count, first, second = contributions(design, z[start : start + _CHUNK], centre, bound=bound)
        np.add.at(counts, part, count)
        np.add.at(per_class, part, first)
        if design.second:
            seconds += second.sum(0)
    return np.concatenate([counts, sums, seconds])


def contributions(
    design: Design, features: Array, centre: Array, *, bound: float | None = None
) -> tuple[Integers, Integers, Integers]:
    """What each example adds: count [N], features [N, m], second moments [N, m(m+1)/2].

    Joint clipping: the vector (φ, α·φφᵀ, β) is scaled to a norm of at most ``bound``
    (``design.clip`` where none is given),
    off-diagonals weighted √2 so that the triangle has the matrix's norm; then each
    entry is rounded toward zero, which no norm survives larger. An example that is not
    finite adds nothing.
    """
    with np.errstate(all="ignore"):  # what is huge or not a number is dealt with below
        phi = (np.ascontiguousarray(features) / np.sqrt(design.width) - centre) / RADIUS
        length = np.sqrt(np.square(phi).sum(1))
    sound = np.isfinite(length)
    phi = np.where(sound[:, None], phi, 0.0)
    # Far beyond the clip bound only the direction is left; squares must not overflow.
    far = np.where(sound, np.maximum(length / 1e3, 1.0), 1.0)
    phi = phi / far[:, None]
    parts = [np.where(sound, COUNT, 0.0)[:, None], phi]
    if design.second:
        rows, columns = np.triu_indices(design.width)
        weight = SECOND * np.where(rows == columns, 1.0, np.sqrt(2.0))
        # take, not an index: rows stay rows in memory, and are summed alike however many
        parts.append(np.take(phi, rows, 1) * np.take(phi, columns, 1) * weight)
    norm = np.sqrt(sum(np.square(part).sum(1) for part in parts))
    most = design.clip if bound is None else bound
    factor = np.minimum(1.0, most * SHRINK / np.maximum(norm, 1e-300)) * GRID
    whole = [np.trunc(part * factor[:, None]).astype(np.int64) for part in parts]
    if not design.second:
        whole.append(np.zeros((len(phi), 0), np.int64))
    return whole[0][:, 0], whole[1], whole[2]
