"""Private releases: bounded integer sums, noise on each of them, and what they estimate.

Under client-level privacy whole uploads are clipped, and their sum is noised once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvtc_edge.errors import PrivacyError
from fedvtc_edge.statistics.class_statistics import GlobalStatistics

from .release_spec import COUNT, Array, ClientReleaseSpec, ReleaseSpec
from .sampler import GRID, discrete_gaussian

Integers = NDArray[np.int64]

_CHUNK = 512
SHRINK = 1.0 - 2.0**-30
"""More than float64 can be off in a norm of 2^23 numbers; less than a feature shows."""


def release(spec: ReleaseSpec, features: ArrayLike, labels: ArrayLike, centre: Array) -> Integers:
    """Noised sums of a client's examples.

    Guarantee: see :class:`ReleaseSpec`. Drawn from the operating system's entropy: two
    calls are two releases, and cost twice. Keep the bytes and send them again instead.

    Args:
        spec: Public.
        features: Anchor features [N, m], each of norm √m.
        labels: Their classes [N].
        centre: Public centre of the features' directions, [m].

    Returns:
        int64 [spec.size]: counts, class sums, second moments.

    Raises:
        PrivacyError: Shapes or labels that do not fit the spec.
    """
    exact = bounded_sums(spec, features, labels, centre)
    return exact + discrete_gaussian(spec.share, spec.size)


def bounded_sums(
    spec: ReleaseSpec,
    features: ArrayLike,
    labels: ArrayLike,
    centre: Array,
    *,
    bound: float | None = None,
) -> Integers:
    """The sums before noise; one example changes them by at most the sensitivity.

    Args:
        spec: Public.
        labels: Their classes [N].
        centre: Public centre.
        bound: Of one example's norm, where that is not ``spec.clip``.

    Raises:
        PrivacyError: Shapes or labels that do not fit the spec.
    """
    z, y = np.asarray(features, np.float64), np.asarray(labels, np.int64)
    fits = z.shape == (*y.shape, spec.width) and np.shape(centre) == (spec.width,)
    if not fits or y.ndim != 1 or (y.size and not 0 <= y.min() <= y.max() < spec.classes):
        raise PrivacyError(
            f"features {z.shape}, labels {y.shape} and a centre {np.shape(centre)} do not fit "
            f"{spec.classes} classes of {spec.width} features",
            hint="expected features [N, m], labels [N] in 0…classes-1 and a centre [m]",
        )
    counts, sums, seconds = (np.zeros(size, np.int64) for size in spec.sizes)
    per_class = sums.reshape(spec.classes, spec.width)
    for start in range(0, len(z), _CHUNK):
        part = y[start : start + _CHUNK]
        count, first, second = contributions(spec, z[start : start + _CHUNK], centre, bound=bound)
        np.add.at(counts, part, count)
        np.add.at(per_class, part, first)
        if spec.second:
            seconds += second.sum(0)
    return np.concatenate([counts, sums, seconds])


def contributions(
    spec: ReleaseSpec, features: Array, centre: Array, *, bound: float | None = None
) -> tuple[Integers, Integers, Integers]:
    """Contribution of each example: count [N], features [N, m], second moments [N, m(m+1)/2].

    Joint clipping: the vector (φ, α·φφᵀ, β) is scaled to a norm of at most ``bound``
    (``spec.clip`` where none is given),
    off-diagonals weighted √2 so that the triangle has the matrix's norm; then each
    entry is rounded toward zero, which no norm survives larger. An example that is not
    finite adds nothing.
    """
    with np.errstate(all="ignore"):  # what is huge or not a number is dealt with below
        phi = (np.ascontiguousarray(features) / np.sqrt(spec.width) - centre) / spec.radius
        length = np.sqrt(np.square(phi).sum(1))
    sound = np.isfinite(length)
    phi = np.where(sound[:, None], phi, 0.0)
    # Far beyond the clip bound only the direction is left; squares must not overflow.
    far = np.where(sound, np.maximum(length / 1e3, 1.0), 1.0)
    phi = phi / far[:, None]
    parts = [np.where(sound, COUNT, 0.0)[:, None], phi]
    if spec.second:
        rows, columns = np.triu_indices(spec.width)
        weight = spec.second_weight * np.where(rows == columns, 1.0, np.sqrt(2.0))
        # take, not an index: rows stay rows in memory, and are summed alike however many
        parts.append(np.take(phi, rows, 1) * np.take(phi, columns, 1) * weight)
    norm = np.sqrt(sum(np.square(part).sum(1) for part in parts))
    most = spec.clip if bound is None else bound
    factor = np.minimum(1.0, most * SHRINK / np.maximum(norm, 1e-300)) * GRID
    whole = [np.trunc(part * factor[:, None]).astype(np.int64) for part in parts]
    if not spec.second:
        whole.append(np.zeros((len(phi), 0), np.int64))
    return whole[0][:, 0], whole[1], whole[2]


WITHIN = 0.3
"""Variance of an anchor feature within a class, of the 1 that it has in all, where second
moments are not released: a public constant, what smooth pictures of any kind come near."""


def estimate(
    spec: ReleaseSpec, total: Integers, contributors: int, centre: Array
) -> GlobalStatistics:
    """Global statistics from the noised sums of ``contributors`` clients.

    Post-processing, which costs no privacy.

    Class means are shrunk toward their common mean by as much as the known noise
    explains of their distance (James and Stein 1961), and so are counts. With second
    moments, their sum about the public centre stands in for the covariance: its
    discriminant is the same as the within-class one's, and it needs no noised means;
    eigenvalues below the noise's own are raised to it. Classes whose count is below its
    noise are left out, unless all are: then nothing is known, and nothing is left out.

    Args:
        spec: Public.
        total: Sum of the releases, [spec.size].
        contributors: How many draws of noise it carries: one of each client, or one in all.
    """
    classes, width = spec.classes, spec.width
    step = spec.unit / GRID  # in examples
    noise = float(spec.share) * step * contributors**0.5
    numbers, sums, seconds = np.split(total * step, np.cumsum(spec.sizes)[:-1])
    even = _shrunk(numbers[None], numbers.mean(), np.array([noise**2]))[0]
    count = np.maximum(even / COUNT, 1.0)
    deviation = sums.reshape(classes, width) * spec.radius
    everyone = max(float(count.sum()), 1.0)
    error = np.square(noise * spec.radius / count)
    common = deviation.sum(0) / everyone
    mean = _shrunk(deviation / count[:, None], common, error)
    covariance = None
    if spec.second:
        scale = spec.radius**2 / spec.second_weight / everyone
        covariance = second_moments(seconds, width) * scale
        floor = noise * spec.radius**2 / spec.second_weight * width**0.5 / everyone
        covariance = _floored(covariance, floor) * width
        between = np.square(mean - common).mean(0) * width
        variance = np.maximum(np.diag(covariance) - width * np.square(common) - between, 0.0)
        std = np.sqrt(np.maximum(variance, 0.1 * WITHIN))[None].repeat(classes, 0)
    else:
        # One for all classes: by differences of noise, one class would swallow the others.
        spread = WITHIN + width * float(np.median(error))
        std = np.full((classes, width), np.sqrt(spread))
    present = numbers > noise
    known = np.where(present | ~present.any(), count, 0.0)
    return GlobalStatistics(known, (mean + centre) * width**0.5, std, covariance)


def _shrunk(mean: Array, common: Array, error: Array) -> Array:
    distance = mean - common
    explained = (mean.shape[1] - 2) * error / np.maximum(np.square(distance).sum(1), 1e-12)
    shrunk: Array = common + distance * np.maximum(1.0 - explained, 0.0)[:, None]
    return shrunk


def second_moments(triangle: Array, width: int) -> Array:
    """The matrix, times its weight, from its triangle."""
    rows, columns = np.triu_indices(width)
    matrix = np.zeros((width, width))
    matrix[rows, columns] = triangle / np.where(rows == columns, 1.0, np.sqrt(2.0))
    full: Array = matrix + np.triu(matrix, 1).T
    return full


def _floored(matrix: Array, floor: float) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    floored: Array = (vectors * np.maximum(values, max(floor, 1e-9))) @ vectors.T
    return floored


_EXAMPLE = 1.0
"""Bound on one example's vector: without it a client's own outlier would be all of its upload."""


def clipped_upload(
    spec: ClientReleaseSpec, features: ArrayLike, labels: ArrayLike, centre: Array
) -> Integers:
    """One client's sums, scaled as a whole to a norm of at most the sensitivity.

    Exact, without noise: for the eyes of a trusted server, or for masking.

    Args:
        spec: Public.
        features: [N, m], each of norm √m.
        labels: Their classes [N].
        centre: Public centre of the features' directions, [m].

    Returns:
        int64 [spec.size]: counts, class sums, second moments.

    Raises:
        PrivacyError: Shapes or labels that do not fit the spec.
    """
    sums = bounded_sums(spec, features, labels, centre, bound=_EXAMPLE) / spec.unit
    norm = float(np.sqrt(np.square(sums).sum()))
    factor = min(1.0, spec.clip * GRID * SHRINK / max(norm, 1e-300))
    return np.trunc(sums * factor).astype(np.int64)  # toward zero: no norm grows


def check_norm(spec: ReleaseSpec, upload: Integers) -> None:
    """Refuse an upload beyond the clip bound, by exact integers.

    A client that does not clip harms no other's guarantee, but would have more weight
    than anybody else.

    Raises:
        PrivacyError: Its norm is beyond the bound.
    """
    if sum(value * value for value in upload.tolist()) > spec.sensitivity**2:
        raise PrivacyError(
            f"an upload of norm {np.linalg.norm(upload / GRID):.4g}, the clip bound is "
            f"{spec.clip:g}",
            hint="the client must clip its whole upload before it sends it",
        )


BEYOND = 10.0
"""Standard deviations of noise that are taken for noise: beyond, with probability below 10⁻²²."""


def check_release(spec: ReleaseSpec, total: Integers, *, most: int | None, draws: int = 1) -> None:
    """Refuse a noised release, or a sum of some, that noise and bounds do not explain.

    Post-processing: what was released is looked at, and nothing else. An honest release is
    refused where its client has more examples than ``most``, or by a chance below 10⁻²⁰.

    Args:
        spec: Of one release.
        total: [spec.size].
        most: Examples that one client may have; None where its whole upload is clipped.
        draws: Releases in the sum, each with its share of the noise.

    Raises:
        PrivacyError: Counts far below 0 or too many, or sums too long for so many examples.
    """
    bound = float(spec.sensitivity) * draws * (1 if most is None else most)
    sigma = float(spec.share) * draws**0.5
    counts = total[: spec.classes].astype(np.float64)
    norm = float(np.linalg.norm(total.astype(np.float64)))
    largest = COUNT * GRID * (most or 0) * draws + BEYOND * sigma * spec.classes**0.5
    few = counts.min() < -BEYOND * sigma
    many = most is not None and counts.sum() > largest
    # The norm of a Gaussian vector passes √d + t with a probability below exp(-t²/2).
    if few or many or norm > bound + sigma * (spec.size**0.5 + BEYOND):
        allowed = "the clip bound" if most is None else f"{most} examples of a client"
        raise PrivacyError(
            f"a release of norm {norm / GRID:.4g} with a count of {counts.sum() / GRID:.4g}, "
            f"beyond what {allowed} and the noise allow",
            hint="if the clients have more examples: raise privacy.population, or set "
            "server.most_samples",
        )


def noised(spec: ClientReleaseSpec, total: Integers) -> Integers:
    """The sum of clipped uploads with its one draw of noise, or one upload with its share.

    Guarantee: see :class:`ClientReleaseSpec`. From the operating system's entropy: two calls
    are two releases. Keep what was drawn and publish that again instead.
    """
    return total + discrete_gaussian(spec.share, spec.size)
