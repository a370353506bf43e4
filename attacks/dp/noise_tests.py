"""Tests of noise against the discrete Gaussian that is claimed, alone and among releases.

Each gives a chance that honest noise looks as odd as this: exact, or an upper bound on it. The
discrete Gaussian of a scale of 2^12 steps and more is taken for a continuous one, from which its
distribution function differs, half a step aside, by less than 1e-8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedvtc_edge.privacy.release_spec import Array

MOST_COMPARED = 512
"""Noise vectors that are compared with each other; of more, as many evenly spread ones."""


@dataclass(frozen=True, eq=False)
class NoiseSample:
    """Noise of one release: what was released less what is exact.

    Args:
        name: Whose release it is, in words.
        noise: Differences in steps of the grid, int64 [n], n ≥ 1.
        scale: Standard deviation that is claimed, in steps, 2^12 or more.
        places: Which numbers of a release these are, bool [size] with n of them true; None: all.
    """

    name: str
    noise: NDArray[np.int64]
    scale: float
    places: NDArray[np.bool_] | None = None

    @property
    def share(self) -> float:
        """Noise that is there, as a share of the claimed scale: the root mean square."""
        return math.sqrt(float(np.square(self.standardised).mean()))

    @property
    def standardised(self) -> Array:
        """Noise in claimed standard deviations, [n]."""
        standard: Array = self.noise / self.scale
        return standard

    def interval(self, error: float) -> tuple[float, float]:
        """Two-sided limits of the share, wrong with a chance of ``error``, for Gaussian noise."""
        squares, n = float(np.square(self.standardised).sum()), len(self.noise)
        low, high = (chi_square_quantile(p, n) for p in (1 - error / 2, error / 2))
        return math.sqrt(squares / low), math.sqrt(squares / high)


def tests_of(sample: NoiseSample) -> dict[str, float]:
    """p-values of one release's noise, by the name of the test.

    ``scale``: Σe²/σ² is χ² of n degrees of freedom; two-sided. ``mean``: Σe/σ√n is standard
    normal; two-sided. ``shape``: largest distance from the normal distribution function (Kolmogorov
    and Smirnov), by Massart's bound 2·exp(−2nD²). ``grid``: every other number is odd, by
    Hoeffding's bound, and the numbers have no common divisor: noise on a coarser grid, or none.
    ``coordinates``: the largest correlation of the noise with itself, moved by any number of
    places, by the tail of Laurent and Massart (2000) for Gaussian quadratic forms.
    """
    standard, n = sample.standardised, len(sample.noise)
    squares = float(np.square(standard).sum())
    below = _chi_square(squares, n)
    found = {
        "scale": min(1.0, 2 * min(below, _chi_square(squares, n, upper=True))),
        "mean": math.erfc(abs(float(standard.sum())) / math.sqrt(2 * n)),
        "shape": min(1.0, 2 * math.exp(-2 * n * _distance(sample) ** 2)),
        "grid": _grid(sample.noise),
    }
    if n > 2:
        found["coordinates"] = _shifted(standard)
    return found


def correlations(samples: Sequence[NoiseSample]) -> list[tuple[str, str, float]]:
    """p-values of all pairs of releases that have numbers in common, by the names of both.

    Σab of independent Gaussian noise, against Laurent and Massart's tail. Among more than
    :data:`MOST_COMPARED` releases as many are compared, so that time stays linear in them.

    Args:
        samples: Of releases of one size.
    """
    if len(samples) > MOST_COMPARED:
        chosen = np.linspace(0, len(samples) - 1, MOST_COMPARED).round().astype(int)
        samples = [samples[int(place)] for place in chosen]
    if len(samples) < 2:
        return []
    masks = [np.ones(len(s.noise), bool) if s.places is None else s.places for s in samples]
    known = np.stack(masks).astype(np.float64)
    noise = np.zeros_like(known)
    for row, mask, sample in zip(noise, masks, samples, strict=True):
        row[mask] = sample.standardised
    common, products = known @ known.T, np.abs(noise @ noise.T)
    # The form's matrix has |A|² = n/2 and eigenvalues of 1/2.
    root = (np.sqrt(2 * common + 4 * products) - np.sqrt(2 * common)) / 2
    chances = np.minimum(1.0, 2 * np.exp(-np.square(root)))
    return [
        (one.name, other.name, float(chances[first, second]))
        for second, other in enumerate(samples)
        for first, one in enumerate(samples[:second])
        if common[first, second]
    ]


def repeated(samples: Sequence[NoiseSample]) -> list[tuple[str, str]]:
    """Pairs of releases whose noise is the same to the last digit; each named with the first."""
    first: dict[bytes, str] = {}
    found = []
    for sample in samples:
        if not sample.noise.any():
            continue  # no noise at all, which is worse, and no repetition
        key = sample.noise.tobytes()
        if key in first:
            found.append((first[key], sample.name))
        first.setdefault(key, sample.name)
    return found


def _distance(sample: NoiseSample) -> float:
    """Largest difference of the distribution functions."""
    ordered = torch.from_numpy(np.sort(sample.noise).astype(np.float64))
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    # P(x ≤ k) of the discrete one is Φ at half a step above k, P(x < k) half a step below.
    above = torch.special.ndtr((ordered + 0.5) / sample.scale)
    below = torch.special.ndtr((ordered - 0.5) / sample.scale)
    return float(torch.maximum((steps[1:] - above).max(), (below - steps[:-1]).max()))


def _grid(noise: NDArray[np.int64]) -> float:
    n = len(noise)
    odd = float((noise & 1).mean())
    chance = 2 * math.exp(-2 * n * (odd - 0.5) ** 2)
    # A common divisor of two or more has a chance of Σ p^-n over primes, below 2^(1-n) for n > 1.
    if n > 1 and int(np.gcd.reduce(noise)) != 1:
        chance = min(chance, 2.0 ** (1 - n))
    return min(1.0, 2 * chance)


def _shifted(standard: Array) -> float:
    """Chance of the largest circular autocorrelation, over all shifts together."""
    n = len(standard)
    spectrum = np.fft.rfft(standard)
    products = np.fft.irfft(np.square(np.abs(spectrum)), n)[1 : n // 2 + 1]
    # xᵀAx with |A|² = n/2 and eigenvalues up to 1; n for the shift by half, which pairs all twice.
    weight = np.full(len(products), 2.0 * n)
    if n % 2 == 0:
        weight[-1] = 4.0 * n
    root = (np.sqrt(weight + 8 * np.abs(products)) - np.sqrt(weight)) / 4
    return min(1.0, 2 * len(root) * math.exp(-(float(root.max()) ** 2)))


def _chi_square(value: float, freedom: int, *, upper: bool = False) -> float:
    """P(χ² ≤ value), or ≥."""
    gamma = torch.special.gammaincc if upper else torch.special.gammainc
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    return float(gamma(half, torch.tensor(value / 2, dtype=torch.float64)))


def chi_square_quantile(probability: float, freedom: int) -> float:
    """Value that χ² stays below with a probability, by bisection.

    Args:
        probability: In (0, 1).
        freedom: Degrees of freedom, 1 or more.
    """
    upper = probability > 0.5
    low, high = 0.0, freedom + 60.0 * math.sqrt(freedom) + 400.0
    for _ in range(200):
        middle = (low + high) / 2
        if upper:
            less = _chi_square(middle, freedom, upper=True) > 1 - probability
        else:
            less = _chi_square(middle, freedom) < probability
        low, high = (middle, high) if less else (low, middle)
    return (low + high) / 2
