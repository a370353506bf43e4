"""From scores to bounds: against slow twins, and no more often too high than promised."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.attacks.dp.bounds import BEYOND, bounds_of, epsilon_of, mu_lower_bound, t_tail
from fedvtc_edge.errors import PrivacyError, ScoreError
from fedvtc_edge.privacy import noise_for

stats = pytest.importorskip("scipy.stats")
optimize = pytest.importorskip("scipy.optimize")


@pytest.mark.parametrize("freedom", [1, 2, 7, 60, 1000])
@pytest.mark.parametrize("shift", [0.0, 0.3, 4.0, 40.0])
@pytest.mark.parametrize("gap", [-0.2, 0.0, 1.0, 4.0])
def test_the_tail_is_that_of_scipy(freedom: int, shift: float, gap: float) -> None:
    t = max(shift + gap, 0.0)
    assert t_tail(t, shift, freedom) == pytest.approx(stats.nct.sf(t, freedom, shift), abs=1e-4)


@given(st.integers(2, 40), st.floats(-1, 6), st.floats(0.1, 10), st.floats(1e-4, 0.4))
def test_the_limit_is_that_of_a_slow_twin(
    size: int, gap: float, ratio: float, error: float
) -> None:
    draw = np.random.default_rng(size)
    zeros, ones = draw.normal(0, 1, size), draw.normal(gap, ratio, size)
    spread = math.sqrt((np.var(zeros, ddof=1) + np.var(ones, ddof=1)) / 2)
    t = (ones.mean() - zeros.mean()) / spread * math.sqrt(size / 2)
    slow = 0.0
    if t > 0 and stats.nct.sf(t, size - 1, 0) < error:
        slow = optimize.brentq(lambda nc: stats.nct.sf(t, size - 1, nc) - error, 0, t + 5)
    limit = mu_lower_bound(zeros, ones, error)
    assert limit == pytest.approx(slow * math.sqrt(2 / size), abs=2e-3)


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("ratio", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("size", [4, 60])
@pytest.mark.parametrize("error", [0.01, 0.2])
def test_the_limit_is_too_high_no_more_often_than_promised(
    mu: float, ratio: float, size: int, error: float
) -> None:
    """Also where the scores' variances differ, and by whatever factor.

    By the twin: the limit is above μ where a t so large has, under μ, a lesser chance.
    """
    draw, trials = np.random.default_rng(7), 4000
    zeros = draw.normal(0, 1, (trials, size))
    ones = draw.normal(mu * math.sqrt((1 + ratio**2) / 2), ratio, (trials, size))
    spread = np.sqrt((zeros.var(1, ddof=1) + ones.var(1, ddof=1)) / 2)
    t = (ones.mean(1) - zeros.mean(1)) / spread * math.sqrt(size / 2)
    broken = np.mean(stats.nct.sf(t, size - 1, mu * math.sqrt(size / 2)) < error)
    assert broken <= error + 3 * math.sqrt(error * (1 - error) / trials)
    if ratio == 1.0 and size == 60 and mu < 1:  # and hardly less often: little is given away
        assert broken >= 0.6 * error


def test_the_limit_comes_near_the_truth() -> None:
    draw = np.random.default_rng(0)
    limit = mu_lower_bound(draw.normal(0, 1, 5000), draw.normal(1, 1, 5000), 0.025)
    assert 0.93 < limit < 1.0


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.floats(0, 30))
def test_no_quadratic_score_of_a_gaussian_seems_farther_apart_than_it_is(
    size: int, seed: int, curvature: float
) -> None:
    """The lemma of :func:`mu_lower_bound`, about the means and variances themselves."""
    draw = np.random.default_rng(seed)
    m, b = draw.normal(size=size), draw.normal(size=size)
    a = curvature * draw.normal(size=(size, size))
    a = (a + a.T) / 2
    gap = b @ m
    variances = [np.sum((b + s * (a @ m)) ** 2) + 2 * np.trace(a @ a) for s in (1, -1)]
    assert abs(gap) <= np.linalg.norm(m) * math.sqrt(sum(variances) / 2) + 1e-9
    if size == 1:  # the formulas, against draws
        z = np.random.default_rng(0).normal(size=200_000)
        scores = [b[0] * (s * m[0] / 2 + z) + a[0, 0] * (s * m[0] / 2 + z) ** 2 for s in (1, -1)]
        assert scores[0].mean() - scores[1].mean() == pytest.approx(gap, abs=1e-9 + 0.02 * 30)
        wanted = [pytest.approx(v, rel=0.05, abs=1e-9) for v in variances]
        assert [float(np.var(score)) for score in scores] == wanted


@pytest.mark.parametrize(("size", "records"), [(64, 4), (64, 10), (16, 4), (1, 4), (1, 1), (4, 1)])
def test_of_a_scale_that_differs_the_gaussian_curve_says_too_little(
    size: int, records: int
) -> None:
    """True ε of N(0, 1/n²) against N(0, 1/(n+1)²) in so many numbers, by the χ² distribution."""
    zero, one, delta = 1 / records, 1 / (records + 1), 1e-5
    rate, shift = (1 / one**2 - 1 / zero**2) / 2, size * math.log(one / zero)

    def missing(epsilon: float) -> float:
        far = (epsilon - shift) / rate
        more = stats.chi2.sf(far / zero**2, size) - math.exp(epsilon) * stats.chi2.sf(
            far / one**2, size
        )
        near = max(-epsilon - shift, 0.0) / rate
        less = stats.chi2.cdf(near / one**2, size) - math.exp(epsilon) * stats.chi2.cdf(
            near / zero**2, size
        )
        return float(max(more, less) - delta)

    true = optimize.brentq(missing, 0.01, 100)
    mu = size * (zero**2 - one**2) / math.sqrt(size * (zero**4 + one**4))
    assert epsilon_of(mu, delta) < true


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0, 16.0])
def test_epsilon_is_the_accountants(epsilon: float) -> None:
    mu = 1 / noise_for(epsilon, 1e-5)
    assert epsilon_of(mu, 1e-5) == pytest.approx(epsilon, rel=1e-6)


@pytest.mark.parametrize(
    ("mu", "epsilon"),
    [(0.0, 0.0), (5e-324, 0.0), (1e-9, 0.0), (60.0, BEYOND), (1e300, BEYOND), (math.inf, BEYOND)],
)
def test_extreme_distances_have_an_epsilon(mu: float, epsilon: float) -> None:
    assert epsilon_of(mu, 1e-5) == epsilon


def test_what_never_varies_is_infinitely_far_apart_or_not_at_all() -> None:
    zeros, ones = np.full(20, 0.1), np.full(20, 0.3)
    assert mu_lower_bound(zeros, ones, 0.01) == math.inf
    assert mu_lower_bound(zeros, zeros, 0.01) == 0.0
    assert mu_lower_bound(ones, zeros, 0.01) == 0.0


def test_the_bounds_share_the_error() -> None:
    draw = np.random.default_rng(1)
    zeros, ones = draw.normal(0, 1, 200), draw.normal(2, 1, 200)
    both = bounds_of(zeros, ones, 1e-5, 0.05, gaussian=True)
    one = bounds_of(zeros, ones, 1e-5, 0.025, gaussian=False)
    assert both.clopper_pearson == one.clopper_pearson
    assert both.mu == mu_lower_bound(zeros, ones, 0.025)
    assert both.best == both.gaussian == epsilon_of(both.mu, 1e-5)
    assert one.best == one.clopper_pearson
    assert one.gaussian is None
    assert one.mu is None


def test_counting_needs_a_far_larger_sample_than_the_curve() -> None:
    draw = np.random.default_rng(1)
    mu = 1 / noise_for(4.0, 1e-5)
    found = bounds_of(draw.normal(0, 1, 300), draw.normal(mu, 1, 300), 1e-5, 0.05, gaussian=True)
    assert found.gaussian is not None
    assert found.clopper_pearson < 1.5 < 2.5 < found.gaussian < 4


def test_what_cannot_be_bounded_is_refused() -> None:
    scores = np.arange(20.0)
    with pytest.raises(PrivacyError, match="delta 0"):
        bounds_of(scores, scores, 0.0, 0.05, gaussian=True)
    with pytest.raises(ScoreError, match="NaN"):
        bounds_of(scores, scores * math.nan, 1e-5, 0.05, gaussian=True)
    assert bounds_of(scores, scores, 0.0, 0.05, gaussian=False).best == 0.0
