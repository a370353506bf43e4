"""Shares of the noise: never too little, and their sum as good as one discrete Gaussian."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvtc_edge.errors import PrivacyError
from fedvtc_edge.privacy.release_spec import ReleaseSpec
from fedvtc_edge.privacy.sampler import log_divergence, min_honest, share_of


def gaussian(scale: float, reach: int) -> np.ndarray:
    """P(x) of a discrete Gaussian for |x| ≤ reach."""
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x**2) / (2 * scale**2))
    return weights / weights.sum()


def convolved(scale: float, count: int, reach: int) -> np.ndarray:
    """P(x) of a sum of ``count`` discrete Gaussians, by convolution, within ``reach``."""
    alone = total = gaussian(scale, reach)
    for _ in range(count - 1):
        total = np.convolve(total, alone)
    middle = len(total) // 2
    return total[middle - reach : middle + reach + 1]


@settings(deadline=None)
@given(st.integers(2**13, 2**50), st.integers(1, 7), st.integers(1, 3000))
def test_the_sum_never_carries_less(numerator: int, denominator: int, honest: int) -> None:
    sigma = Fraction(numerator, denominator)
    if sigma**2 < honest * Fraction(2**12) ** 2:
        return
    share = share_of(sigma, honest)
    assert honest * share**2 >= sigma**2
    assert honest * (share - Fraction(1, 2**20)) ** 2 < sigma**2, "and hardly more"


def test_floats_are_taken_for_what_they_are() -> None:
    assert share_of(0.1 * 2**30, 1) >= Fraction(0.1 * 2**30)
    assert share_of(2.0**20, 4) == 2**19
    assert share_of(Fraction(2**20), 1) == 2**20


@pytest.mark.parametrize("scale", [0.5, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("honest", [2, 3, 5, 8])
def test_the_divergence_is_below_its_bound(scale: float, honest: int) -> None:
    """Exact convolution, as far out as float64 carries both sides."""
    wide = scale * math.sqrt(honest)
    reach = int(5 * wide) + 1
    far = 12 * reach
    centre = slice(far - reach, far + reach + 1)
    sums, one = convolved(scale, honest, far)[centre], gaussian(wide, far)[centre]
    seen = float(np.abs(np.log(sums) - np.log(one)).max())
    assert seen <= math.exp(log_divergence(scale, honest)) + 1e-11


def test_the_divergence_is_there_at_small_scales() -> None:
    """So that the test above does not compare nothing with nothing."""
    sums, one = convolved(0.5, 2, 40), gaussian(0.5 * math.sqrt(2), 40)
    assert np.abs(np.log(sums[36:45] / one[36:45])).max() > 1e-2


@pytest.mark.parametrize("honest", [2, 7, 67, 1000])
def test_at_the_projects_scale_it_is_nothing(honest: int) -> None:
    spec = ReleaseSpec(
        classes=10, width=64, second=True, clip=1.0, epsilon=8.0, delta=1e-5, releases=1
    )
    share = share_of(spec.sigma, honest)
    assert share >= 2**12
    assert log_divergence(share, honest) / math.log(10) < -70_000_000
    assert log_divergence(2**12, honest) / math.log(10) < -70_000_000


def test_the_logarithm_is_the_formulas() -> None:
    tau = 10 * sum(math.exp(-2 * math.pi**2 * 0.81 * k / (k + 1)) for k in range(1, 9))
    assert log_divergence(0.9, 9) == pytest.approx(math.log(tau), rel=1e-12)
    assert log_divergence(0.9, 1) == -math.inf


def test_who_is_counted() -> None:
    assert min_honest(10, dropouts=3, colluders=2) == 5
    assert min_honest(3, dropouts=1, colluders=1) == 1
    for clients, dropouts, colluders in ((3, 1, 2), (3, -1, 0), (3, 0, -1), (0, 0, 0)):
        with pytest.raises(PrivacyError):
            min_honest(clients, dropouts=dropouts, colluders=colluders)


@pytest.mark.parametrize(
    ("sigma", "honest"),
    [(0, 1), (-1.0, 1), (math.nan, 1), (2.0**51, 1), (2.0**20, 0), (2.0**20, True), (2.0**13, 5)],
)
def test_refused(sigma: float, honest: int) -> None:
    with pytest.raises(PrivacyError) as refused:
        share_of(sigma, honest)
    assert refused.value.hint


@pytest.mark.parametrize(("share", "honest"), [(0.4, 2), (math.nan, 2), (1.0, 0), (1.0, True)])
def test_no_bound_where_none_is_proved(share: float, honest: int) -> None:
    with pytest.raises(PrivacyError):
        log_divergence(share, honest)
