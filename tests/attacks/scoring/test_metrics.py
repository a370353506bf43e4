"""Scores: against slow twins, for validity on mechanisms of known ε, and for power."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedvtc_edge.attacks.scoring.metrics import auc, epsilon_lower_bound, tpr_at_fpr, upper_limit
from fedvtc_edge.errors import FedVTCError, ScoreError

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Array, Array]]

# Few distinct values, so that ties are the rule; infinities are honest log-likelihoods.
SCORES = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.inf, -math.inf])),
    min_size=2,
    max_size=12,
)


def slow_auc(members: list[float], nonmembers: list[float]) -> float:
    wins = [1.0 if m > n else 0.5 if m == n else 0.0 for m in members for n in nonmembers]
    return sum(wins) / len(wins)


def slow_tpr(members: list[float], nonmembers: list[float], fpr: float) -> float:
    """Every rule "score ≥ t" there is, and the rule that accuses nobody."""
    best = 0.0
    for t in {*members, *nonmembers}:
        if sum(n >= t for n in nonmembers) / len(nonmembers) <= fpr:
            best = max(best, sum(m >= t for m in members) / len(members))
    return best


@given(SCORES, SCORES)
def test_auc_is_the_share_of_pairs(members: list[float], nonmembers: list[float]) -> None:
    assert auc(members, nonmembers) == pytest.approx(slow_auc(members, nonmembers), abs=1e-12)


@pytest.mark.parametrize("values", [3, 1000])
def test_auc_is_scikit_learns(values: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    stream = np.random.default_rng(values)
    for _ in range(30):
        members, nonmembers = stream.integers(1, 60, 2)
        scores = stream.integers(0, values, members + nonmembers) / 7  # ties: many, or a few
        inside = np.arange(len(scores)) < members
        expected = metrics.roc_auc_score(inside, scores)
        assert auc(scores[inside], scores[~inside]) == pytest.approx(expected, abs=1e-6)


@given(SCORES, SCORES)
def test_auc_of_the_other_side_is_the_complement(a: list[float], b: list[float]) -> None:
    assert auc(a, b) + auc(b, a) == pytest.approx(1.0, abs=1e-12)


@given(SCORES, SCORES, st.integers(1, 12))
def test_tpr_takes_the_most_permissive_threshold(
    members: list[float], nonmembers: list[float], accused: int
) -> None:
    fpr = min(accused, len(nonmembers)) / len(nonmembers)
    assert tpr_at_fpr(members, nonmembers, fpr) == slow_tpr(members, nonmembers, fpr)


@pytest.mark.parametrize("accused", range(1, 101))
def test_a_rate_that_floats_cannot_hold_still_counts_whole_nonmembers(accused: int) -> None:
    scores = np.arange(100.0)
    assert tpr_at_fpr(scores, scores, accused / 100) == accused / 100


@pytest.mark.parametrize(
    ("fpr", "nonmembers"),
    [(0.001, 10_000), (0.005, 2_000), (0.009, 1_112), (0.01, 100), (0.011, 91), (0.5, 2)],
)
def test_a_rate_is_refused_until_enough_nonmembers_resolve_it(fpr: float, nonmembers: int) -> None:
    with pytest.raises(ScoreError, match=f"fpr = {fpr}: {nonmembers - 1} ") as caught:
        tpr_at_fpr([1.0], np.zeros(nonmembers - 1), fpr)
    assert f"score {nonmembers:,} nonmembers or more" in caught.value.hint
    assert tpr_at_fpr([1.0], np.zeros(nonmembers), fpr) == 1.0


@given(SCORES, SCORES)
def test_only_the_order_of_scores_counts(members: list[float], nonmembers: list[float]) -> None:
    stretched = [np.arctan(values) * 7 + 1 for values in (members, nonmembers)]
    assert auc(*stretched) == auc(members, nonmembers)
    assert tpr_at_fpr(*stretched, 0.5) == tpr_at_fpr(members, nonmembers, 0.5)
    assert epsilon_lower_bound(*stretched, 0.0, 0.5) == epsilon_lower_bound(
        members, nonmembers, 0.0, 0.5
    )


@given(SCORES, SCORES, st.floats(0, 0.9), st.floats(0.01, 0.99))
def test_a_bound_is_finite_and_never_negative(
    members: list[float], nonmembers: list[float], delta: float, confidence: float
) -> None:
    bound = epsilon_lower_bound(members, nonmembers, delta, confidence)
    assert 0 <= bound < math.inf


@given(st.integers(1, 40), st.integers(0, 40), st.floats(0.001, 0.5))
def test_the_limit_is_where_the_binomial_tail_is_the_error(
    trials: int, successes: int, error: float
) -> None:
    p = upper_limit(successes, trials, error)
    if successes >= trials:
        assert p == 1.0
        return
    tail = sum(comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes + 1))
    assert tail == pytest.approx(error, rel=1e-6)


def test_limits_agree_with_the_closed_form_and_with_scipy() -> None:
    special = pytest.importorskip("scipy.special")
    assert upper_limit(0, 1000, 0.05) == pytest.approx(1 - 0.05 ** (1 / 1000), rel=1e-9)
    for successes, trials in ((1, 10), (37, 500), (9_000, 10_000), (50, 100_000)):
        expected = float(special.betaincinv(successes + 1, trials - successes, 0.975))
        assert upper_limit(successes, trials, 0.025) == pytest.approx(expected, rel=1e-8)


def response(epsilon: float) -> Draw:
    """Randomised response: exactly ε-DP, and the best test reaches ε."""
    honest = math.exp(epsilon) / (1 + math.exp(epsilon))

    def draw(stream: np.random.Generator, count: int) -> tuple[Array, Array]:
        members = (stream.random(count) < honest).astype(float)
        nonmembers = (stream.random(count) >= honest).astype(float)
        return members, nonmembers

    return draw


def laplace(epsilon: float) -> Draw:
    """Sensitivity 1 and scale 1/ε: exactly ε-DP, with a continuum of thresholds."""

    def draw(stream: np.random.Generator, count: int) -> tuple[Array, Array]:
        return (
            stream.laplace(1.0, 1 / epsilon, count),
            stream.laplace(0.0, 1 / epsilon, count),
        )

    return draw


def gaussian(sigma: float) -> Draw:
    def draw(stream: np.random.Generator, count: int) -> tuple[Array, Array]:
        return stream.normal(1.0, sigma, count), stream.normal(0.0, sigma, count)

    return draw


def gaussian_delta(sigma: float, epsilon: float) -> float:
    """δ(ε) of the Gaussian mechanism, exactly (Balle & Wang 2018, Theorem 8)."""

    def cdf(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    half = 1 / (2 * sigma)
    return cdf(half - epsilon * sigma) - math.exp(epsilon) * cdf(-half - epsilon * sigma)


@pytest.mark.parametrize(
    ("draw", "epsilon", "delta"),
    [
        (response(0.0), 0.0, 0.0),
        (response(0.5), 0.5, 0.0),
        (response(2.0), 2.0, 0.0),
        (laplace(1.0), 1.0, 0.0),
        (gaussian(1.0), 1.0, gaussian_delta(1.0, 1.0)),
        (gaussian(0.5), 2.0, gaussian_delta(0.5, 2.0)),
    ],
    ids=["nothing", "response-0.5", "response-2", "laplace-1", "gauss-1", "gauss-2"],
)
@pytest.mark.parametrize("count", [20, 300])
def test_the_bound_exceeds_the_true_epsilon_no_more_often_than_promised(
    draw: Draw, epsilon: float, delta: float, count: int
) -> None:
    confidence, trials = 0.8, 300  # a loose promise is the one that can be seen to break
    broken = 0
    for seed in range(trials):
        members, nonmembers = draw(np.random.default_rng(seed), count)
        broken += epsilon_lower_bound(members, nonmembers, delta, confidence) > epsilon
    assert broken / trials <= 1 - confidence


def test_sorted_scores_break_no_promise() -> None:
    draw, broken = response(1.0), 0
    for seed in range(200):
        members, nonmembers = draw(np.random.default_rng(seed), 100)
        broken += epsilon_lower_bound(np.sort(members), np.sort(nonmembers), 0.0, 0.8) > 1.0
    assert broken / 200 <= 0.2


def test_a_blatant_leak_is_proved() -> None:
    stream = np.random.default_rng(0)
    members, nonmembers = stream.normal(8, 1, 1000), stream.normal(0, 1, 1000)
    assert auc(members, nonmembers) > 0.999
    assert epsilon_lower_bound(members, nonmembers, 1e-5, 0.95) > 2


def test_a_leak_seen_only_in_who_is_certainly_no_member_is_proved() -> None:
    """TPR ≤ e^ε FPR says little here: half of the non-members look like members."""
    stream = np.random.default_rng(0)
    members = np.ones(1000)
    nonmembers = (stream.random(1000) < 0.5).astype(float)
    assert epsilon_lower_bound(members, nonmembers, 0.0, 0.95) > 2


def test_the_bound_comes_near_the_truth() -> None:
    members, nonmembers = response(2.0)(np.random.default_rng(1), 20_000)
    assert 1.8 < epsilon_lower_bound(members, nonmembers, 0.0, 0.95) < 2.0


def test_an_attack_that_is_always_wrong_proves_nothing() -> None:
    assert epsilon_lower_bound(np.zeros(500), np.ones(500), 0.0, 0.95) == 0.0


GOOD = [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: auc([], GOOD), "0 members"),
        (lambda: auc(GOOD, []), "0 nonmembers"),
        (lambda: auc([math.nan, 1.0], GOOD), "NaN"),
        (lambda: auc(GOOD, [math.nan]), "nonmembers are NaN"),
        (lambda: auc([[1.0]], GOOD), "shape"),
        (lambda: auc(["high"], GOOD), "not numbers"),
        (lambda: tpr_at_fpr([], GOOD, 0.5), "0 members"),
        (lambda: tpr_at_fpr(GOOD, [math.nan], 1.0), "NaN"),
        (lambda: tpr_at_fpr(GOOD, GOOD, 0.3), "fpr = 0.3"),
        (lambda: tpr_at_fpr(GOOD, GOOD, 0.0), "fpr = 0.0"),
        (lambda: tpr_at_fpr(GOOD, GOOD, -0.1), "fpr = -0.1"),
        (lambda: tpr_at_fpr(GOOD, GOOD, 5e-324), "fpr = 5e-324"),
        (lambda: tpr_at_fpr(GOOD, GOOD, 1.1), "fpr = 1.1"),
        (lambda: tpr_at_fpr(GOOD, GOOD, math.nan), "fpr = nan"),
        (lambda: epsilon_lower_bound([1.0], GOOD, 0.0, 0.95), "1 members"),
        (lambda: epsilon_lower_bound(GOOD, [], 0.0, 0.95), "0 nonmembers"),
        (lambda: epsilon_lower_bound(GOOD, [1.0, math.nan], 0.0, 0.95), "NaN"),
        (lambda: epsilon_lower_bound(GOOD, GOOD, -0.1, 0.95), "delta = -0.1"),
        (lambda: epsilon_lower_bound(GOOD, GOOD, 1.0, 0.95), "delta = 1.0"),
        (lambda: epsilon_lower_bound(GOOD, GOOD, math.nan, 0.95), "delta = nan"),
        (lambda: epsilon_lower_bound(GOOD, GOOD, 0.0, 0.0), "confidence = 0.0"),
        (lambda: epsilon_lower_bound(GOOD, GOOD, 0.0, 1.0), "confidence = 1.0"),
        (lambda: epsilon_lower_bound(GOOD, GOOD, 0.0, math.nan), "confidence = nan"),
    ],
)
def test_refusals_name_what_is_wrong_and_what_to_do(call: Callable[[], float], names: str) -> None:
    with pytest.raises(ScoreError, match=names) as caught:
        call()
    assert isinstance(caught.value, FedVTCError)
    assert caught.value.hint


def test_a_low_rate_needs_ten_thousand_nonmembers() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ScoreError, match="9999 nonmembers") as caught:
        tpr_at_fpr(rng.normal(size=50), rng.normal(size=9_999), 0.001)
    assert "10,000" in caught.value.hint
    members, others = rng.normal(3, 1, 50), rng.normal(size=10_000)
    found = tpr_at_fpr(members, others, 0.001)
    assert found == np.mean(members > np.sort(others)[-11])  # ten are above
    assert tpr_at_fpr(members, others[:100], 0.01) >= 0


@pytest.mark.parametrize(("members", "others"), [([0, 0, 0], [0, 0]), ([1], [1]), ([2] * 9, [2])])
def test_equal_scores_tell_nothing(members: list[float], others: list[float]) -> None:
    assert auc(members, others) == 0.5
