"""Membership of a record in an upload: one log-likelihood ratio per candidate.

Each function gives log p(what was seen | φ is in) − log p(what was seen | φ is not), all other
records drawn from the population's Gaussian, which is known (Homer et al. 2008; Sankararaman
et al. 2009; Dwork et al. 2015). The parts of one upload add: the second moments' ratios are
conditional on the mean.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from fedvtc_edge.statistics.class_statistics import Array

from ..adversary.observations import FLOAT16, FLOAT32
from ..adversary.view import Case, CaseAttack, Guess, Population, View, spectrum

AGREE = 2.0**-10
"""Relative to the largest feature, how far two machines' features of one image may differ: a
GPU multiplies convolutions with 10 binary digits (TF32)."""

_TINY, _PAIR_RIDGE = 1e-60, 0.1
_MARGIN = 0.05
"""Leverages this near to 1 are not told apart: rounding moves them."""


def mean_ratio(
    features: Array,
    mean: Array,
    count: float,
    population: Population,
    noise: float = 0.0,
    *,
    rounding: float = FLOAT32,
    known: float = math.inf,
) -> Array:
    """The ratio of the mean c: c ~ N(φ/n + (n−1)/n·μ₀, (n−1)/n²·Σ₀ + τ²I) or N(μ₀, Σ₀/n + τ²I).

    With independent members, n of them and p features, the AUC is Φ(√(p/2n)) about.

    Args:
        features: Candidates φ, [K, p].
        mean: c, [p].
        count: n ≥ 1.
        noise: τ, standard deviation of noise on each number of ``mean``.
        rounding: Relative error of ``mean``'s numbers.
        known: Records that μ₀ is the mean of. With M of them μ₀ is off by N(0, Σ₀/M), and a
            candidate tells of μ₀ even if it is no member; ∞ gives the densities above.

    Returns:
        [K], finite also for n = 1, where the member's density is a needle.
    """
    values, axes = spectrum(population.covariance)
    size = np.square(population.mean) + np.square(mean) + np.diag(population.covariance)
    scale = float(size.max()) + _TINY
    blur = noise**2 + rounding**2 * scale
    unsure = 1 / known
    spread, turned = 1 / count + unsure, 1 + unsure
    # c given φ, in units of Σ₀: cov(c, φ) is ``spread`` for a member, ``unsure`` for another.
    inside = values * (spread - spread**2 / turned) + blur + (AGREE / count) ** 2 * scale
    outside = values * (spread - unsure**2 / turned) + blur
    seen = (mean - population.mean) @ axes
    shifts = (features - population.mean) @ axes / turned
    near = (np.square(seen - spread * shifts) / inside + np.log(inside)).sum(1)
    far = (np.square(seen - unsure * shifts) / outside + np.log(outside)).sum(1)
    ratio: Array = (far - near) / 2
    return ratio


def spread_ratio(
    features: Array,
    mean: Array,
    std: Array,
    count: float,
    population: Population,
    *,
    rounding: float = FLOAT32,
) -> Array:
    """The ratio of standard deviations, given the mean.

    Without φ, n − 1 records have Σ(z − c′)² = n·s² − n/(n−1)·(φ − c)², which is σ²χ² of n − 2
    degrees where n·s² is of n − 1. Two records lie at c ± s, which is tested as it stands.

    Coordinates count as independent; if they are not, their sum is overconfident and is
    divided by p·tr(R²)/tr(R)², R the correlation: the variance of a sum of squares over that
    of independent ones.

    Args:
        features: Candidates φ, [K, p].
        mean: [p].
        std: Biased, [p].
        count: n ≥ 1; of a single record, what is left is :func:`excluded`.
        population: Its diagonal variances and their correlation are used.
        rounding: Relative error of the sums that ``mean`` and ``std`` were made of.

    Returns:
        [K]; −∞ for the :func:`excluded`.
    """
    n, error = round(count), _error(mean, std, rounding)
    size = np.square(mean) + np.square(std)
    variance = np.maximum(np.diag(population.covariance), AGREE**2 * size.max() + _TINY)
    off = np.square(features - mean)
    if n == 1:
        ratio = np.zeros(len(features))
    elif n == 2:
        blur = np.sqrt(np.square(std) + error) - std + _drift(mean, std, rounding)
        inside = -np.square((np.sqrt(off) - std) / blur) / 2 - np.log(blur)
        # Of two, s = |z₁ − z₂|/2 is half-normal with variance σ²/2; both have 1/√2π.
        outside = math.log(2.0) - np.square(std) / variance - np.log(variance / 2) / 2
        ratio = (inside - outside).sum(1)
    else:
        least = n * error / variance
        left = np.maximum((n * np.square(std) - n / (n - 1) * off) / variance, least)
        whole = np.maximum(n * np.square(std) / variance, least)
        ratio = (_chi_square(left, n - 2) - _chi_square(whole, n - 1)).sum(1)
    correlation = population.covariance / np.sqrt(np.outer(variance, variance))
    np.fill_diagonal(correlation, 1.0)
    ratio *= len(mean) / np.square(correlation).sum()
    return np.where(excluded(features, mean, std, count, rounding), -np.inf, ratio)


def excluded(
    features: Array, mean: Array, std: Array, count: float, rounding: float = FLOAT32
) -> NDArray[np.bool_]:
    """Candidates that cannot be members: (φ − c)² > (n−1)·s² in some coordinate (Samuelson 1968).

    Never a member, as long as ``rounding`` bounds the relative error of the sums, or of the
    means and deviations themselves, and features agree to :data:`AGREE`.

    Args:
        features: Candidates φ, [K, p].
        mean: [p].
        std: Biased, [p].
        rounding: Relative error of the sums Σz and Σz².

    Returns:
        [K].
    """
    farthest = np.sqrt((count - 1) * (np.square(std) + _error(mean, std, rounding)))
    beyond = np.abs(features - mean) > farthest + _drift(mean, std, rounding)
    return np.asarray(beyond.any(1))


def scatter_ratio(
    features: Array,
    mean: Array,
    count: float,
    scatter: Array,
    freedom: float,
    population: Population,
    *,
    rounding: float = FLOAT32,
    root: bool = False,
) -> Array:
    """The ratio of the pooled scatter W, given the mean: Wishart densities of f − 1 and f degrees.

    Without φ it is W′ = W − n/(n−1)·(φ−c)(φ−c)ᵀ with |W′| = |W|·(1 − h), and no matrix at all
    if the leverage h = n/(n−1)·(φ−c)ᵀW⁻¹(φ−c) is above 1: others' mostly is where f < 2p.
    For f ≤ p a member's h is 1 and others' lies far above, since only members lie in W's range:
    nothing but this is tested then.

    Args:
        features: Candidates φ, [K, p].
        mean: Mean of φ's class, [p].
        count: Its records, n ≥ 2.
        scatter: W over all classes, [p, p].
        rounding: Relative error of the sums.
        root: Whether it is the error of a root of W instead: float16 (docs/wire-format.md).

    Returns:
        [K], finite: an impossible candidate ranks by how far it is from possible.
    """
    width, raised = len(mean), lifted(mean, count, scatter, freedom, rounding=rounding, root=root)
    height = leverage(features - mean, count, raised)
    power = (freedom - width - 2) / 2
    ratio: Array = -max(power, 1.0) * np.maximum(height - 1 + _MARGIN, 0.0) / _MARGIN
    if freedom > width:
        covariance = population.covariance
        ratio += power * np.log(np.maximum(1 - height, _MARGIN))
        ratio += leverage(features - mean, count, covariance) / 2
        ratio += (np.linalg.slogdet(2 * covariance)[1] - np.linalg.slogdet(raised)[1]) / 2
        ratio += math.lgamma(freedom / 2) - math.lgamma((freedom - width) / 2)
    return ratio


def leverage(off: Array, count: float, matrix: Array) -> Array:
    """n/(n−1) · dᵀ·matrix⁻¹·d for each row d = φ − c of [K, p]."""
    height: Array = count / (count - 1) * (off * np.linalg.solve(matrix, off.T).T).sum(1)
    return height


def lifted(
    mean: Array,
    count: float,
    scatter: Array,
    freedom: float,
    *,
    rounding: float = FLOAT32,
    root: bool = False,
) -> Array:
    """W + εI: raised by as much as errors may have lowered it; arguments of scatter_ratio.

    If ε is no less than the norm of W's error, a member's leverage stays below 1. Of sums,
    that is at most 3 · rounding · tr Σzzᵀ; where it is a root L that errs, √h grows by |ΔL|/√ε
    at most, and likewise by an error of φ − c: by a quarter each, so that h is at most 1.6, of
    a root 2.3. It holds as long as other classes' means are not much longer than this one's.
    """
    samples = freedom + count
    trace = float(np.trace(scatter)) + samples * float(np.square(mean).sum())
    lift = 16 * rounding**2 * trace if root else 4 * rounding * trace
    drift = (AGREE**2 + 4 * rounding**2) * trace / samples
    lift += 16 * count / (count - 1) * drift + _TINY
    values, axes = spectrum(scatter)
    raised: Array = (axes * (np.maximum(values, 0.0) + lift)) @ axes.T
    return raised


class Membership(CaseAttack):
    """Ratio of the mean, and of exact standard deviations or scatter where they are seen."""

    name = "membership"
    needs_pairs = False

    def answer(self, case: Case) -> Guess | None:
        """Answer one case."""
        view = case.view
        if view.extract is None or view.population is None:
            return None
        features, about = case.features(), (view.count, view.population)
        # The population's mean is shrunk toward all classes', which counts as one more record.
        known, rounding = len(view.public) + 1, view.rounding
        scores = mean_ratio(features, view.mean, *about, view.noise, rounding=rounding, known=known)
        if view.std is not None and view.noise == 0:
            scores += spread_ratio(features, view.mean, view.std, *about, rounding=rounding)
        moments = _from_scatter(view, features)
        return Guess(scores if moments is None else scores + moments)


class SecondMoments(CaseAttack):
    """Ratio of the pooled scatter alone: what uploading a covariance gives away."""

    name = "second-moments"
    needs_pairs = False

    def answer(self, case: Case) -> Guess | None:
        """Answer one case."""
        if case.view.extract is None or case.view.scatter is None:
            return None
        scores = _from_scatter(case.view, case.features())
        return None if scores is None else Guess(scores)


class Shadow(CaseAttack):
    """Ridge map from an extractor that everybody can build to the client's hidden one.

    The pairs are images whose hidden features the adversary came to know: its own, if a client
    let it have them measured, or uploads of one known record. Without pairs, the public
    extractor itself stands in, and the attack is blind.
    """

    name = "shadow"
    needs_pairs = False

    def answer(self, case: Case) -> Guess | None:
        """Answer one case."""
        pairs = case.view.pairs
        if pairs is None:
            return None
        with torch.no_grad():
            features = pairs.substitute(case.candidates).double().numpy()
        guessed = features
        if len(pairs.hidden):
            guessed = ridge(pairs.known, pairs.hidden, features)
        elif features.shape[1] != len(case.view.mean):
            return None
        return Guess(-np.square(guessed - case.view.mean).sum(1))


def ridge(known: Array, hidden: Array, features: Array) -> Array:
    """Hidden features of records by linear regression on pairs, in the dual form.

    Args:
        known: Substitute's features of the pairs, [P, q].
        hidden: Their hidden features, [P, p].
        features: Substitute's features of records, [K, q].

    Returns:
        [K, p].
    """
    middle, centre = known.mean(0), hidden.mean(0)
    gram = (known - middle) @ (known - middle).T
    gram += _PAIR_RIDGE * max(np.trace(gram) / len(gram), 1e-12) * np.eye(len(gram))
    weights = np.linalg.solve(gram, hidden - centre)
    mapped: Array = ((features - middle) @ (known - middle).T) @ weights + centre
    return mapped


def _from_scatter(view: View, features: Array) -> Array | None:
    # A class of one record leaves no trace in the scatter.
    if view.scatter is None or view.population is None or view.noise > 0 or view.count < 1.5:
        return None
    seen = (view.mean, view.count, view.scatter, view.freedom, view.population)
    root = view.rounding == FLOAT16
    return scatter_ratio(features, *seen, rounding=view.rounding, root=root)


def _error(mean: Array, std: Array, rounding: float) -> Array:
    """Largest error of s² = Σz²/n − c²: both terms are rounded, and may nearly cancel."""
    return 4 * rounding * (np.square(std) + np.square(mean)) + _TINY


def _drift(mean: Array, std: Array, rounding: float) -> Array:
    """Largest error of φ − c: c is rounded, and φ was measured on another machine."""
    largest = math.sqrt(float((np.square(mean) + np.square(std)).max()))
    drift: Array = 2 * rounding * np.abs(mean) + AGREE * largest + _TINY**0.5
    return drift


def _chi_square(x: Array, degrees: int) -> Array:
    """Log-density at x > 0."""
    half = degrees / 2
    density: Array = (half - 1) * np.log(x) - x / 2 - half * math.log(2) - math.lgamma(half)
    return density
