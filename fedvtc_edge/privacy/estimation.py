"""Global statistics from the sum of noised releases: post-processing, which costs nothing."""

from __future__ import annotations

import numpy as np

from fedvtc_edge.statistics import GlobalStatistics

from .design import COUNT, RADIUS, SECOND, Array, Design
from .grid import GRID
from .release import Integers

WITHIN = 0.3
"""Variance of an anchor feature within a class, of the 1 that it has in all, where second
moments are not released: a public constant, what smooth pictures of any kind come near."""


def estimate(design: Design, total: Integers, contributors: int, centre: Array) -> GlobalStatistics:
    """What the noised sums of ``contributors`` clients say of the anchor's space.

    Class means are shrunk toward their common mean by as much as the known noise
    explains of their distance (James and Stein 1961), and so are counts. With second
    moments, their sum about the public centre stands in for the covariance: its
    discriminant is the same as the within-class one's, and it needs no noised means;
    eigenvalues below the noise's own are raised to it. Classes whose count is below its
    noise are left out, unless all are: then nothing is known, and nothing is left out.

    Args:
        design: Public.
        total: Sum of the releases, [design.size].
        contributors: How many draws of noise it carries: one of each client, or one in all.
        centre: As in the releases.
    """
    classes, width = design.classes, design.width
    step = design.unit / GRID  # in examples
    noise = float(design.share) * step * contributors**0.5
    numbers, sums, seconds = np.split(total * step, np.cumsum(design.sizes)[:-1])
    even = _shrunk(numbers[None], numbers.mean(), np.array([noise**2]))[0]
    count = np.maximum(even / COUNT, 1.0)
    deviation = sums.reshape(classes, width) * RADIUS
    everyone = max(float(count.sum()), 1.0)
    error = np.square(noise * RADIUS / count)
    common = deviation.sum(0) / everyone
    mean = _shrunk(deviation / count[:, None], common, error)
    covariance = None
    if design.second:
        covariance = _second_moments(seconds, width) * (RADIUS**2 / everyone)
        floor = noise * RADIUS**2 / SECOND * width**0.5 / everyone
        covariance = _floored(covariance, floor) * width
        between = np.square(mean - common).mean(0) * width
        variance = np.maximum(np.diag(covariance) - width * np.square(common) - between, 0.0)
        std = np.sqrt(np.maximum(variance, 0.1 * WITHIN))[None].repeat(classes, 0)
    else:
        # One for all classes: by differences of noise, one class would swallow the others.
        spread = WITHIN + width * float(np.median(error))
        std = np.full((classes, width), np.sqrt(spread))
    present = numbers > noise
    heard = np.where(present | ~present.any(), count, 0.0)
    return GlobalStatistics(heard, (mean + centre) * width**0.5, std, covariance)


def _shrunk(mean: Array, common: Array, error: Array) -> Array:
    distance = mean - common
    explained = (mean.shape[1] - 2) * error / np.maximum(np.square(distance).sum(1), 1e-12)
    shrunk: Array = common + distance * np.maximum(1.0 - explained, 0.0)[:, None]
    return shrunk


def _second_moments(triangle: Array, width: int) -> Array:
    rows, columns = np.triu_indices(width)
    matrix = np.zeros((width, width))
    matrix[rows, columns] = triangle / np.where(rows == columns, SECOND, SECOND * np.sqrt(2.0))
    full: Array = matrix + np.triu(matrix, 1).T
    return full


def _floored(matrix: Array, floor: float) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    floored: Array = (vectors * np.maximum(values, max(floor, 1e-9))) @ vectors.T
    return floored
