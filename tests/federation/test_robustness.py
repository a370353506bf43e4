"""What needs no trust: norms, contributors, and sums without the extremes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.config import load_config
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.federation.robustness import (
    CheckError,
    check_norms,
    contributors,
    suppress,
    trimmed_sum,
)
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics, sum_of
from fedvtc_edge.wire import decode, encode

CLASSES, WIDTH = 3, 4


def features(rng: np.random.Generator, size: int, width: int = WIDTH) -> np.ndarray:
    z = rng.standard_normal((size, width))
    return z * width**0.5 / np.linalg.norm(z, axis=1, keepdims=True)


def clients(seed: int, number: int, *, pooled: bool) -> list[ClassStatistics]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        z = features(rng, int(rng.integers(0, 9)))
        y = rng.integers(0, CLASSES, len(z))
        made.append(ClassStatistics.of(z, y, classes=CLASSES, pooled=pooled))
    return made


# ---------------------------------------------------------------- norms


@pytest.mark.parametrize("pooled", [False, True])
def test_features_of_norm_root_p_are_taken_and_longer_ones_refused(pooled: bool) -> None:
    rng = np.random.default_rng(0)
    z, y = features(rng, 20), rng.integers(0, 2, 20)
    for factor, fine in ((1.0, True), (0.0, True), (1.01, True), (1.05, False), (1e9, False)):
        for part in (slice(0, 0), slice(0, 1), slice(None)):
            one = ClassStatistics.of(factor * z[part], y[part], classes=3, pooled=pooled)
            if fine or not len(z[part]):
                check_norms(one)
            else:
                with pytest.raises(CheckError, match=r"at most|beyond 4 per sample"):
                    check_norms(one)


@pytest.mark.parametrize("pooled", [False, True])
def test_second_moments_are_bounded_beside_a_harmless_mean(pooled: bool) -> None:
    """Ten samples far out on both sides: the mean is 0, σ would swallow every class."""
    z = np.zeros((10, WIDTH))
    z[:, 0] = np.where(np.arange(10) % 2, 30.0, -30.0)
    one = ClassStatistics.of(z, np.zeros(10, int), classes=3, pooled=pooled)
    with pytest.raises(CheckError, match="second moments beyond 4 per sample"):
        check_norms(one)


# ---------------------------------------------------------------- contributors


def test_contributors_are_clients_not_samples() -> None:
    parts = [
        ClassStatistics.of(np.zeros((len(y), 2)), y, classes=4)
        for y in ([0, 0, 0], [0, 1], [], [1, 0, 0])
    ]
    assert contributors(parts).tolist() == [3, 2, 0, 0]


@pytest.mark.parametrize("pooled", [False, True])
def test_a_suppressed_class_is_published_as_one_that_nobody_has(pooled: bool) -> None:
    rng = np.random.default_rng(3)
    z, y = features(rng, 30), np.arange(30) % 3
    world = GlobalStatistics.from_sum(ClassStatistics.of(z, y, classes=3, pooled=pooled), floor=0.2)
    kept = suppress(world, np.array([2, 1, 5]), 2, floor=0.2)
    assert kept.present.tolist() == [True, False, True]
    assert not kept.mean[1].any()
    for row in (0, 2):
        for name in ("count", "mean", "std"):
            np.testing.assert_array_equal(getattr(kept, name)[row], getattr(world, name)[row])
    if pooled:
        # Nobody can take the class's scatter out of the one matrix; it stays in the mixture.
        np.testing.assert_array_equal(kept.covariance, world.covariance)
        np.testing.assert_array_equal(kept.std, world.std)
    else:
        without = ClassStatistics.of(z[y != 1], y[y != 1], classes=3)
        slow = GlobalStatistics.from_sum(without, floor=0.2)
        for name in ("count", "mean", "std"):
            np.testing.assert_allclose(getattr(kept, name), getattr(slow, name))


def test_nothing_is_suppressed_by_default() -> None:
    world = GlobalStatistics.from_sum(clients(1, 3, pooled=False)[0], floor=0.1)
    number = (world.count > 0).astype(np.int64)
    same = suppress(world, number, 1, floor=0.1)
    for name in ("count", "mean", "std"):
        np.testing.assert_array_equal(getattr(same, name), getattr(world, name))


# ---------------------------------------------------------------- trimming


def slow_column(values: list[float], weights: list[float], share: float) -> tuple[float, float]:
    """Weighted mean and variance of what is left between the b smallest and largest."""
    order = sorted(range(len(values)), key=lambda k: (values[k], k))
    cut = math.floor(share * len(values) + 1e-9)
    left = order[cut : len(order) - cut]
    heavy = sum(weights[k] for k in left)
    mean = sum(weights[k] * values[k] for k in left) / heavy
    return mean, sum(weights[k] * (values[k] - mean) ** 2 for k in left) / heavy


def slow_counts(counts: list[float], share: float) -> list[float]:
    own = sorted(count for count in counts if count > 0)
    cut = math.floor(share * len(own) + 1e-9)
    low, high = (own[cut], own[len(own) - 1 - cut]) if own else (0.0, 0.0)
    return [min(max(count, low), high) if count > 0 else 0.0 for count in counts]


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.1, 0.2, 0.34, 0.49]),
)
def test_the_slow_twin_of_diagonal_trimming(seed: int, number: int, share: float) -> None:
    parts = clients(seed, number, pooled=False)
    fast = trimmed_sum(parts, share)
    for label in range(CLASSES):
        clipped = slow_counts([float(part.count[label]) for part in parts], share)
        own = [k for k in range(number) if clipped[k] > 0]
        weights = [clipped[k] for k in own]
        everyone = sum(weights)
        assert fast.count[label] == everyone
        for column in range(WIDTH):
            if not own:
                assert fast.total[label, column] == fast.square[label, column] == 0
                continue
            means = [float(parts[k].mean[label, column]) for k in own]
            inner = [float(parts[k].std[label, column]) ** 2 for k in own]
            mean, between = slow_column(means, weights, share)
            within, _ = slow_column(inner, weights, share)
            assert fast.total[label, column] == pytest.approx(everyone * mean, abs=1e-9)
            square = everyone * (mean**2 + between + within)
            assert fast.square[label, column] == pytest.approx(square, abs=1e-9)


@hypothesis_settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(3, 9), pooled=st.booleans())
def test_what_trimming_makes_is_always_possible(seed: int, number: int, pooled: bool) -> None:
    """The wire's own check of honest sums is passed, and so are norms."""
    made = trimmed_sum(clients(seed, number, pooled=pooled), 0.34)
    got = decode(encode(made), classes=CLASSES, width=WIDTH, pooled=pooled)
    np.testing.assert_allclose(got.total, made.total, rtol=1e-6)


@pytest.mark.parametrize("pooled", [False, True])
def test_without_a_share_it_is_the_plain_sum_to_the_bit(pooled: bool) -> None:
    parts = clients(4, 5, pooled=pooled)
    for share in (0.0, 0.19):
        ours, plain = trimmed_sum(parts, share), sum_of(parts)
        for name in ("count", "total", "square"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(plain, name))


@pytest.mark.parametrize("pooled", [False, True])
def test_classes_with_too_few_clients_are_summed_plainly(pooled: bool) -> None:
    """With five clients one is cut at either end; a class that three of them have is not."""
    rng = np.random.default_rng(8)
    parts = []
    for k in range(5):
        y = np.array([0, 0, 1] if k < 3 else [0, 0, 0])
        parts.append(ClassStatistics.of(features(rng, 3), y, classes=CLASSES, pooled=pooled))
    ours, plain = trimmed_sum(parts, 0.2), sum_of(parts)
    np.testing.assert_allclose(ours.total[1], plain.total[1])
    assert ours.count[1] == plain.count[1] == 3
    assert not np.allclose(ours.total[0], plain.total[0])


@pytest.mark.parametrize("pooled", [False, True])
def test_one_liar_among_nine_moves_nothing_far(pooled: bool) -> None:
    """A billion samples of one vector, all classes: the plain mean is the liar's, ours is not."""
    rng = np.random.default_rng(6)
    centres = features(rng, CLASSES)
    honest = []
    for _ in range(8):
        y = np.arange(12) % CLASSES
        z = centres[y] + 0.3 * rng.standard_normal((12, WIDTH))
        z *= WIDTH**0.5 / np.linalg.norm(z, axis=1, keepdims=True)
        honest.append(ClassStatistics.of(z, y, classes=CLASSES, pooled=pooled))
    lie = np.tile(-centres, (2, 1))
    one = ClassStatistics.of(lie, np.arange(6) % CLASSES, classes=CLASSES, pooled=pooled)
    liar = ClassStatistics(one.count * 1e9, one.total * 1e9, one.square * 1e9, pooled)
    check_norms(liar)
    truth = GlobalStatistics.from_sum(sum_of(honest))
    robust = GlobalStatistics.from_sum(trimmed_sum([*honest, liar], 0.2))
    fooled = GlobalStatistics.from_sum(sum_of([*honest, liar]))
    assert np.abs(robust.mean - truth.mean).max() < 0.3
    assert np.abs(fooled.mean - truth.mean).max() > 1.0
    assert robust.count.sum() <= 9 * 12
    np.testing.assert_allclose(robust.std, truth.std, atol=0.3)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["server.trim=0.1", "privacy.mode=anchored"], "server.trim = 0.1 with privacy.mode"),
        (["server.trim=0.1", "privacy.mode=example"], "server.trim = 0.1 with privacy.mode"),
        (["transport.precision=float16", "privacy.mode=anchored"], "whole numbers"),
        (["server.minimum_contributors=7"], "clients.count = 6"),
    ],
)
def test_what_a_server_cannot_do_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        check(load_config(overrides=overrides))
    assert refused.value.hint


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["server.trim=0.49", "server.minimum_contributors=6", "server.quorum=0.5"],
        ["transport.precision=float16"],
        ["privacy.mode=anchored", "server.minimum_contributors=2"],
    ],
)
def test_what_a_server_can_do(overrides: list[Any]) -> None:
    check(load_config(overrides=overrides))
