"""The form of a release follows from public numbers alone."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.privacy import epsilon_spent
from fedvtc_edge.privacy.release_spec import COUNT, RADIUS, SECOND, ReleaseSpec, spec_for_examples
from fedvtc_edge.privacy.sampler import GRID, LEAST_SIGMA, MARGIN

PUBLIC: dict[str, Any] = {
    "classes": 10,
    "clients": 5,
    "population": 1500,
    "epsilon": 4.0,
    "delta": 1e-5,
    "clip": 1.0,
    "widest": 128,
    "second": True,
}


def rank(spec: ReleaseSpec) -> tuple[int, bool]:
    return spec.width, spec.second


def test_the_rule_can_see_no_data() -> None:
    for function in (spec_for_examples, ReleaseSpec.__init__):
        for name, value in inspect.signature(function).parameters.items():
            assert name == "self" or value.annotation in ("int", "float", "bool"), name


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    epsilons=st.lists(st.floats(0.01, 1000), min_size=2, max_size=4),
    classes=st.integers(1, 100),
    clients=st.integers(1, 10_000),
    population=st.integers(1, 10**8),
    widest=st.sampled_from([2, 12, 32, 64, 100, 128, 512]),
)
def test_a_smaller_budget_is_never_wider(
    epsilons: list[float], classes: int, clients: int, population: int, widest: int
) -> None:
    public = PUBLIC | {
        "classes": classes,
        "clients": clients,
        "population": population,
        "widest": widest,
    }
    made = [spec_for_examples(**public | {"epsilon": epsilon}) for epsilon in sorted(epsilons)]
    for poorer, richer in pairwise(made):
        assert poorer.width <= richer.width <= min(widest, 128)
        assert poorer.second <= richer.second


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("population", [10, 300, 1500, 10_000, 60_000, 10**6]),
        ("clients", [10_000, 500, 20, 5, 1]),
        ("clip", [1e3, 10.0, 1.0, 0.1]),
        ("classes", [1000, 100, 10, 2]),
        ("delta", [1e-12, 1e-5, 1e-3]),
    ],
)
def test_less_noise_per_mean_is_never_narrower(key: str, values: list[Any]) -> None:
    made = [rank(spec_for_examples(**PUBLIC | {key: value})) for value in values]
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(made))


def test_the_rule_has_three_widths() -> None:
    populations = (100, 1_000, 10**6)
    made = [spec_for_examples(**PUBLIC | {"population": n}) for n in populations]
    assert [spec.width for spec in made] == [32, 64, 128]
    assert [spec.second for spec in made] == [False, True, True]
    assert not spec_for_examples(**PUBLIC | {"population": 10**6, "second": False}).second


def test_the_rule_for_pretrained_features() -> None:
    public = PUBLIC | {"widest": 512, "pretrained": True}
    made = [spec_for_examples(**public | {"population": n}) for n in (100, 500, 4_000, 10**6)]
    assert [spec.width for spec in made] == [32, 64, 256, 256]
    assert [spec.second for spec in made] == [False, False, False, True]
    assert all(spec.pretrained for spec in made)
    assert spec_for_examples(**public | {"widest": 40, "population": 10**6}).width == 40
    unit = math.sqrt(COUNT**2 + 1 + made[-1].second_weight ** 2)
    assert unit < math.sqrt(COUNT**2 + 1 / RADIUS**2 + SECOND**2 / RADIUS**4)


@pytest.mark.parametrize("second", [True, False])
def test_sizes(second: bool) -> None:
    spec = ReleaseSpec(7, 5, second, 1.0, 4.0, 1e-5)
    assert spec.sizes == (7, 35, 15 if second else 0)
    assert spec.size == 7 + 35 + (15 if second else 0)


@pytest.mark.parametrize("clip", [1e-3, 0.1, 1.0, 1e3])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
def test_noise_is_calibrated_to_the_bound(clip: float, epsilon: float) -> None:
    spec = ReleaseSpec(10, 32, False, clip, epsilon, 1e-5)
    assert spec.sensitivity == Fraction(clip) * GRID
    multiplier = float(spec.sigma / spec.sensitivity)
    assert multiplier == pytest.approx(spec.noise_multiplier, rel=1e-15)
    spent = epsilon_spent([(multiplier, 1.0, 1)], 1e-5)
    assert 0.999 * epsilon < spent < epsilon


@pytest.mark.parametrize("clip", [1e-3, 0.05, 1.0])
@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 0.9, 4.0, 100.0, 999.0])
def test_the_margin_pays_for_discreteness(clip: float, epsilon: float) -> None:
    """Rounded continuous noise is exactly accounted for; the discrete one is within e^±η of it.

    log P_rounded(x) / P_discrete(x) = (x²/σ² − 1) / 24σ² + O(σ⁻⁴) in each of d coordinates.
    Its sum passes η = (2√(dt) + 2t) / 24σ² with chance e^-t (Laurent and Massart 2000): at
    t = 50 a 10⁻²¹, on top of δ. An (ε, δ) for the one is (ε + 2η, e^η δ) for the other.
    """
    spec = ReleaseSpec(10, 32, False, clip, epsilon, 1e-5)
    sigma, d, t = float(spec.sigma), 2.0**18, 50.0
    if sigma < LEAST_SIGMA:
        return  # refused: test_plan.py
    eta = (2 * (d * t) ** 0.5 + 2 * t) / (24 * sigma**2)
    with_margin = epsilon_spent([(spec.noise_multiplier, 1.0, 1)], 1e-5 / (1 + 2 * eta))
    assert with_margin + 2 * eta <= epsilon


def test_rounded_and_discrete_noise_differ_by_that_little() -> None:
    """The expansion of the test above, in numbers."""
    mpmath = pytest.importorskip("mpmath")
    sigma = 40.0
    with mpmath.workdps(40):
        total = mpmath.nsum(lambda k: mpmath.exp(-(k**2) / (2 * sigma**2)), [-900, 900])
        for x in (0, 17, 40, 80, -120):
            discrete = mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * sigma**2)) / total
            low, high = (mpmath.ncdf((x + h) / sigma) for h in (mpmath.mpf(-0.5), mpmath.mpf(0.5)))
            ratio = float(mpmath.log((high - low) / discrete))
            expected = (x**2 / sigma**2 - 1) / (24 * sigma**2)
            assert ratio == pytest.approx(expected, abs=50 / sigma**4)


def test_the_margin_costs_nothing() -> None:
    assert 1 < MARGIN < 1.0001
    assert np.float64(MARGIN) == MARGIN
