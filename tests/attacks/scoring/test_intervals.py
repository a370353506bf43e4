"""Intervals: against scipy and slow twins, and for what they promise, which is coverage."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import comb
from statistics import NormalDist, fmean, stdev, variance

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedvtc_edge.attacks.scoring.metrics import (
    auc,
    auc_interval,
    bonferroni,
    mean_interval,
    proportion_interval,
    student_limit,
)
from fedvtc_edge.errors import FedVTCError, ScoreError

Array = NDArray[np.float64]
Stream = np.random.Generator
Worlds = Callable[[Stream, int, int], tuple[Array, Array]]

CONFIDENCES = st.floats(0.01, 0.9999)
SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=12)
SCORES = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.inf, -math.inf])),
    min_size=2,
    max_size=12,
)


# ---------------------------------------------------------------- shares


@given(st.integers(1, 60), st.integers(0, 60), CONFIDENCES)
def test_limits_of_a_share_are_where_the_tails_are_half_the_error(
    trials: int, successes: int, confidence: float
) -> None:
    successes = min(successes, trials)
    low, high = proportion_interval(successes, trials, confidence)

    def chance(counts: range, p: float) -> float:
        return sum(comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in counts)

    error = pytest.approx((1 - confidence) / 2, rel=1e-6)
    assert low == 0 if successes == 0 else chance(range(successes, trials + 1), low) == error
    assert high == 1 if successes == trials else chance(range(successes + 1), high) == error


def test_limits_of_a_share_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for successes, trials in ((0, 20), (3, 20), (20, 20), (137, 200), (9_990, 10_000)):
        expected = stats.binomtest(successes, trials).proportion_ci(0.99, method="exact")
        limits = proportion_interval(successes, trials, 0.99)
        assert limits == pytest.approx((expected.low, expected.high), abs=1e-9)


def least_coverage(limits: list[tuple[float, float]]) -> float:
    """Of all success rates; limits are of 0, 1, … successes. Summed, not simulated."""
    n = len(limits) - 1
    return min(
        sum(
            comb(n, k) * p**k * (1 - p) ** (n - k)
            for k, (low, high) in enumerate(limits)
            if low <= p <= high
        )
        for p in np.linspace(0.001, 0.999, 101)
    )


@pytest.mark.parametrize("trials", [1, 7, 20, 100])
def test_a_share_is_covered_as_often_as_promised(trials: int) -> None:
    limits = [proportion_interval(k, trials, 0.95) for k in range(trials + 1)]
    assert least_coverage(limits) >= 0.95


def test_parts_of_a_success_are_rounded_outward() -> None:
    for successes in (3.25, 3.75):
        low, high = proportion_interval(successes, 10, 0.9)
        assert low == proportion_interval(3, 10, 0.9)[0]
        assert high == proportion_interval(4, 10, 0.9)[1]
    assert proportion_interval(sum([0.1] * 10), 10, 0.9) == proportion_interval(1, 10, 0.9)
    assert proportion_interval(9.75, 10, 0.9)[1] == 1.0
    assert proportion_interval(0.25, 10, 0.9)[0] == 0.0


# ---------------------------------------------------------------- means


def test_students_limit_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 3, 4, 5, 10, 29, 30, 199, 2001):
        for error in (0.4, 0.1, 0.025, 0.0005, 1e-6):
            expected = float(stats.t.isf(error, freedom))
            assert student_limit(error, freedom) == pytest.approx(expected, rel=1e-8)


@given(SHARES, CONFIDENCES)
def test_limits_of_a_mean_are_students_with_a_zero_and_a_one(
    values: list[float], confidence: float
) -> None:
    stats = pytest.importorskip("scipy.stats")
    plus = [*values, 0.0, 1.0]
    reach = stats.t.ppf(0.5 + confidence / 2, len(plus) - 1) * stdev(plus) / math.sqrt(len(plus))
    low, high = mean_interval(values, confidence)
    assert low == pytest.approx(max(min(fmean(values), fmean(plus)) - reach, 0), abs=1e-8)
    assert high == pytest.approx(min(max(fmean(values), fmean(plus)) + reach, 1), abs=1e-8)
    assert 0 <= low <= fmean(values) + 1e-12
    assert fmean(values) - 1e-12 <= high <= 1


@given(SHARES, CONFIDENCES)
def test_a_mean_of_failures_has_the_limits_mirrored(values: list[float], confidence: float) -> None:
    low, high = mean_interval(values, confidence)
    mirrored = mean_interval([1 - value for value in values], confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_values_that_are_all_equal_are_no_certainty() -> None:
    widths = []
    for count in (5, 50, 500):
        low, high = mean_interval([1.0] * count, 0.95)
        assert high == 1.0
        widths.append(1 - low)
    assert widths[0] > 0.3
    assert widths == sorted(widths, reverse=True)
    assert widths[2] < 0.01


def per_trial_auc(mean: float) -> Callable[[Stream, int], Array]:
    """One member among 20 decoys: what the audit averages."""

    def draw(stream: Stream, count: int) -> Array:
        decoys = stream.normal(0, 1, (count, 20))
        shares: Array = (stream.normal(mean, 1, (count, 1)) > decoys).mean(1)
        return shares

    return draw


MEANS: dict[str, tuple[Callable[[Stream, int], Array], float]] = {
    "uniform": (lambda stream, count: stream.random(count), 0.5),
    "auc-0.5": (per_trial_auc(0.0), 0.5),
    "auc-0.86": (per_trial_auc(1.5), NormalDist().cdf(1.5 / math.sqrt(2))),
    "auc-0.98": (per_trial_auc(3.0), NormalDist().cdf(3 / math.sqrt(2))),
}


@pytest.mark.parametrize("count", [3, 20, 200])
@pytest.mark.parametrize("name", MEANS)
def test_a_mean_is_covered_as_often_as_promised(name: str, count: int) -> None:
    draw, truth = MEANS[name]
    stream, covered = np.random.default_rng(0), 0
    for _ in range(300):
        low, high = mean_interval(draw(stream, count), 0.95)
        covered += low <= truth <= high
    assert covered / 300 >= 0.93


@pytest.mark.parametrize("count", [2, 5, 20, 100])
def test_a_mean_of_zeros_and_ones_is_covered_as_often_as_promised(count: int) -> None:
    """No values in [0, 1] vary more."""
    limits = [mean_interval(np.arange(count) < k, 0.95) for k in range(count + 1)]
    assert least_coverage(limits) >= 0.93


def test_a_mean_of_many_is_known_as_well_as_student_knows_it() -> None:
    values = np.random.default_rng(0).random(1000)
    low, high = mean_interval(values, 0.95)
    assert high - low < 1.02 * 2 * 1.96 * values.std() / math.sqrt(1000)


# ---------------------------------------------------------------- AUC


def slow_auc_interval(
    members: list[float], nonmembers: list[float], confidence: float
) -> tuple[float, float]:
    """DeLong's variance pair by pair, with the four added scores."""
    inside, outside = ([*scores, -math.inf, math.inf] for scores in (members, nonmembers))
    wins = [[1.0 if m > n else 0.5 if m == n else 0.0 for n in outside] for m in inside]
    rows, columns = [fmean(row) for row in wins], [fmean(row) for row in zip(*wins, strict=True)]
    spread = math.sqrt(variance(rows) / len(rows) + variance(columns) / len(columns))
    stats = pytest.importorskip("scipy.stats")
    reach = stats.t.ppf(0.5 + confidence / 2, min(len(rows), len(columns)) - 1) * spread
    centres = fmean(rows), auc(members, nonmembers)
    return max(min(centres) - reach, 0.0), min(max(centres) + reach, 1.0)


@given(SCORES, SCORES, CONFIDENCES)
def test_limits_of_an_auc_are_delongs_with_a_score_at_each_end(
    members: list[float], nonmembers: list[float], confidence: float
) -> None:
    limits = auc_interval(members, nonmembers, confidence)
    assert limits == pytest.approx(slow_auc_interval(members, nonmembers, confidence), abs=1e-8)
    assert 0 <= limits[0] <= auc(members, nonmembers) <= limits[1] <= 1


@given(SCORES, SCORES, CONFIDENCES)
def test_an_auc_of_the_other_side_has_the_limits_mirrored(
    members: list[float], nonmembers: list[float], confidence: float
) -> None:
    low, high = auc_interval(members, nonmembers, confidence)
    mirrored = auc_interval(nonmembers, members, confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_with_many_scores_delongs_own_limits_are_left() -> None:
    """Not of the code's own formula: of the variance that Hanley and McNeil (1982) expect."""
    stream = np.random.default_rng(0)
    members, nonmembers = stream.exponential(4.0, 2000), stream.exponential(1.0, 1000)
    low, high = auc_interval(members, nonmembers, 0.95)
    a = 0.8
    expected = a * (1 - a) + 1999 * (a / (2 - a) - a * a) + 999 * (2 * a * a / (1 + a) - a * a)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(expected / 2e6), rel=0.05)


def test_a_perfect_separation_is_no_certainty() -> None:
    above = np.arange(20.0) + 20
    assert auc_interval(above, np.arange(20.0), 0.95) == (pytest.approx(0.788, abs=5e-4), 1.0)
    assert auc_interval(np.arange(20.0), above, 0.95) == (0.0, pytest.approx(0.212, abs=5e-4))
    low, high = auc_interval([7.0] * 20, [7.0] * 20, 0.95)
    assert low < 0.45 < 0.55 < high
    low, high = auc_interval([math.inf] * 20, [-math.inf] * 20, 0.95)
    assert low < 0.9 < high


def binormal(spread: float) -> Callable[[float], Worlds]:
    def world(value: float) -> Worlds:
        mean = NormalDist().inv_cdf(value) * math.hypot(1, spread)
        return lambda stream, m, n: (stream.normal(mean, spread, m), stream.normal(0, 1, n))

    return world


def exponential(value: float) -> Worlds:
    scale = value / (1 - value)
    return lambda stream, m, n: (stream.exponential(scale, m), stream.exponential(1.0, n))


def response(value: float) -> Worlds:
    """Two scores only: almost all pairs are decided by ties."""
    return lambda stream, m, n: (
        (stream.random(m) < value).astype(float),
        (stream.random(n) >= value).astype(float),
    )


WORLDS = {
    "normal": binormal(1.0),
    "unequal": binormal(3.0),
    "exponential": exponential,
    "response": response,
}


@pytest.mark.parametrize("sizes", [(5, 5), (20, 200), (200, 200)], ids=str)
@pytest.mark.parametrize("value", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("name", WORLDS)
def test_an_auc_is_covered_as_often_as_promised(
    name: str, value: float, sizes: tuple[int, int]
) -> None:
    draw, stream, covered = WORLDS[name](value), np.random.default_rng(0), 0
    for _ in range(300):
        low, high = auc_interval(*draw(stream, *sizes), 0.95)
        covered += low <= value <= high
    assert covered / 300 >= 0.93


@pytest.mark.parametrize("sizes", [(2, 2), (20, 20), (20, 1000), (100, 1000)], ids=str)
def test_an_auc_of_all_or_nothing_is_covered_as_often_as_promised(sizes: tuple[int, int]) -> None:
    """Each member beats all others or none: no scores of one AUC vary more."""
    members, others = np.arange(sizes[0]), np.full(sizes[1], 0.5)
    limits = [auc_interval(members < k, others, 0.95) for k in range(sizes[0] + 1)]
    assert least_coverage(limits) >= 0.93


# ---------------------------------------------------------------- many at once


def test_bonferroni_shares_the_error() -> None:
    assert bonferroni(0.95, 1) == pytest.approx(0.95)
    assert bonferroni(0.95, 10) == pytest.approx(0.995)


def test_intervals_of_bonferroni_hold_together() -> None:
    stream, broken, confidence = np.random.default_rng(0), 0, bonferroni(0.8, 5)
    limits = [proportion_interval(k, 40, confidence) for k in range(41)]
    for _ in range(1000):
        found = [limits[k] for k in stream.binomial(40, 0.3, 5)]
        broken += any(not low <= 0.3 <= high for low, high in found)
    assert broken / 1000 <= 0.2


# ---------------------------------------------------------------- refusals


GOOD = [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: proportion_interval(1, 0, 0.95), "1 successes in 0 trials"),
        (lambda: proportion_interval(0, 0, 0.95), "0 successes in 0 trials"),
        (lambda: proportion_interval(11, 10, 0.95), "11 successes in 10"),
        (lambda: proportion_interval(-0.5, 10, 0.95), "-0.5 successes"),
        (lambda: proportion_interval(math.nan, 10, 0.95), "nan successes"),
        (lambda: mean_interval([], 0.95), "0 values"),
        (lambda: mean_interval([0.5], 0.95), "1 values"),
        (lambda: mean_interval([[0.5, 0.5]], 0.95), "shape"),
        (lambda: mean_interval(["all", "none"], 0.95), "not numbers"),
        (lambda: mean_interval([0.5, math.nan], 0.95), "NaN"),
        (lambda: mean_interval([0.5, 1.5], 0.95), "from 0.5 to 1.5"),
        (lambda: mean_interval([0.5, -0.5], 0.95), "from -0.5 to 0.5"),
        (lambda: mean_interval([0.5, math.inf], 0.95), "to inf"),
        (lambda: auc_interval([1.0], GOOD, 0.95), "1 members"),
        (lambda: auc_interval(GOOD, [], 0.95), "0 nonmembers"),
        (lambda: auc_interval(GOOD, [0.0, math.nan], 0.95), "NaN"),
        (lambda: auc_interval([GOOD], GOOD, 0.95), "shape"),
        (lambda: bonferroni(0.95, 0), "0 tests"),
        *(
            (lambda call=call, value=value: call(value), f"confidence = {value}")
            for value in (0.0, 1.0, -0.1, math.nan)
            for call in (
                lambda confidence: proportion_interval(1, 2, confidence),
                lambda confidence: mean_interval(GOOD, confidence),
                lambda confidence: auc_interval(GOOD, GOOD, confidence),
                lambda confidence: bonferroni(confidence, 2),
            )
        ),
    ],
)
def test_refusals_name_what_is_wrong_and_what_to_do(call: Callable[[], float], names: str) -> None:
    with pytest.raises(ScoreError, match=names) as caught:
        call()
    assert isinstance(caught.value, FedVTCError)
    assert caught.value.hint
