"""Heads from sums against the same heads from the features themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.statistics.fisher_mix import _gradient, fisher_mix, fisher_subspace
from fedvtc_edge.statistics.gaussian import RIDGE, Coefficients
from fedvtc_edge.statistics.linear_heads import fitted, least_squares, sample, with_covariance

CLASSES, WIDTH = 4, 6


def labelled(sizes: tuple[int, ...], seed: int = 0, apart: float = 2.0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    centre = apart * rng.standard_normal((len(sizes), WIDTH))
    spread = rng.standard_normal((WIDTH, WIDTH)) / 2
    return centre[y] + rng.standard_normal((len(y), WIDTH)) @ spread, y


def known_of(x: Any, y: Any, *, pooled: bool = True) -> GlobalStatistics:
    return GlobalStatistics.from_sum(ClassStatistics.of(x, y, classes=CLASSES, pooled=pooled))


def scores(head: Coefficients, x: Any) -> Any:
    quadratic, linear, offset = head
    return np.square(x) @ quadratic + x @ linear + offset


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


@given(st.integers(0, 2**32), st.floats(1e-3, 10))
def test_least_squares_are_those_of_the_features(seed: int, ridge: float) -> None:
    x, y = labelled((7, 3, 12, 5), seed)
    hot = np.eye(CLASSES)[y]
    gram = x.T @ x
    expected = np.linalg.solve(gram + ridge * np.trace(gram) / WIDTH * np.eye(WIDTH), x.T @ hot)
    _, linear, offset = least_squares(known_of(x, y), ridge)
    scale = np.linalg.norm(linear) / np.linalg.norm(expected)
    np.testing.assert_allclose(linear, scale * expected, atol=1e-6 * scale)
    assert not offset.any()


def test_least_squares_without_covariances_take_the_mean_variances() -> None:
    x, y = labelled((7, 3, 12, 5))
    known = known_of(x, y, pooled=False)
    full = with_covariance(known)
    assert full.covariance is not None
    np.testing.assert_allclose(np.diag(full.covariance), np.square(known.std).mean(0))
    for mine, other in zip(least_squares(known, 0.1), least_squares(full, 0.1), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_head_is_scaled_to_the_most_likely_scale() -> None:
    x, y = labelled((50, 50, 50, 50), apart=1.0)
    known = known_of(x, y)
    rng = np.random.default_rng(3)
    linear, offset = known.mean.T + rng.standard_normal((WIDTH, CLASSES)) / 4, np.zeros(CLASSES)
    _, found, _ = fitted(linear, offset, known)
    features, labels = sample(known, 2000, stream(2508_01671))

    def likelihood(scale: float) -> float:
        logits = scale * features @ linear
        logs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1))[:, None]
        logs -= logits.max(1, keepdims=True)
        return float(0.98 * logs[np.arange(len(labels)), labels].mean() + 0.02 * logs.mean())

    scale = float(found[0, 0] / linear[0, 0])
    assert likelihood(scale) >= max(likelihood(0.99 * scale), likelihood(1.01 * scale))


def test_scaling_keeps_the_answers_and_bounds_them_where_classes_are_far_apart() -> None:
    x, y = labelled((50, 50, 50, 50), apart=50.0)
    known = known_of(x, y)
    linear = known.mean.T
    offset = -0.5 * np.square(known.mean).sum(1)
    head = fitted(linear, offset, known)
    np.testing.assert_array_equal(scores(head, x).argmax(1), (x @ linear + offset).argmax(1))
    assert np.ptp(scores(head, x), axis=1).max() < 1e4


def test_samples_have_the_published_moments() -> None:
    x, y = labelled((9, 4, 12, 6))
    known = known_of(x, y)
    drawn, labels = sample(known, 40_000, stream())
    found = known_of(drawn, labels)
    assert known.covariance is not None
    assert found.covariance is not None
    np.testing.assert_allclose(found.mean, known.mean, atol=0.1)
    np.testing.assert_allclose(found.covariance, known.covariance, atol=0.15)
    assert set(np.bincount(labels)) == {10_000}


def test_absent_classes_are_neither_sampled_nor_scored() -> None:
    x, y = labelled((9, 0, 12, 6))
    known = known_of(x, y)
    assert set(sample(known, 30, stream())[1]) == {0, 2, 3}
    _, linear, offset = fisher_mix(known, 0.2, stream())
    assert not linear[:, 1].any()
    assert offset[1] == 0
    assert np.isfinite(least_squares(known, 0.1)[1]).all()


@pytest.mark.parametrize("sizes", [(5, 0, 0, 0), (0, 0, 0, 0)])
def test_heads_of_one_class_or_none_are_finite(sizes: tuple[int, ...]) -> None:
    x, y = labelled(sizes)
    known = known_of(x, y)
    for head in (least_squares(known, 0.1), fisher_mix(known, 0.2, stream())):
        assert all(np.isfinite(part).all() for part in head)


# ---------------------------------------------------------------- FisherMix


def test_the_fisher_subspace_whitens_and_orders_nothing_away() -> None:
    x, y = labelled((30, 30, 30, 30))
    known = known_of(x, y)
    basis = fisher_subspace(known)
    assert basis.shape == (WIDTH, CLASSES - 1)
    assert known.covariance is not None
    ridge = RIDGE * np.trace(known.covariance) / WIDTH * np.eye(WIDTH)
    np.testing.assert_allclose(
        basis.T @ (known.covariance + ridge) @ basis, np.eye(CLASSES - 1), atol=1e-9
    )
    # What is left out tells no class: differences of means, whitened, lie in the subspace.
    gaps = known.mean - known.mean.mean(0)
    inverse = np.linalg.inv(known.covariance + ridge)
    np.testing.assert_allclose(gaps @ basis @ basis.T @ gaps.T, gaps @ inverse @ gaps.T, atol=1e-8)


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_the_gradient_is_that_of_finite_differences(seed: int, margin: float) -> None:
    rng = np.random.default_rng(seed)
    weights, inputs = rng.standard_normal((3, 4)), rng.standard_normal((7, 4))
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    labels = rng.integers(0, 3, 7)

    def loss(w: Any) -> float:
        total = 0.0
        for z, label in zip(inputs, labels, strict=True):
            logits = [
                16 * (z @ row / np.linalg.norm(row) - margin * (k == label))
                for k, row in enumerate(w)
            ]
            total += np.log(np.sum(np.exp(logits))) - logits[label]
        return float(total / len(labels))

    found = _gradient(weights, inputs, labels, margin)
    for place in np.ndindex(weights.shape):
        step = np.zeros_like(weights)
        step[place] = 1e-5
        slope = (loss(weights + step) - loss(weights - step)) / 2e-5
        assert abs(found[place] - slope) <= 1e-5 * max(1, abs(slope))


def test_fisher_mix_repeats_by_its_stream_and_finds_the_classes() -> None:
    x, y = labelled((60, 20, 40, 30))
    known = known_of(x, y)
    first, second = (fisher_mix(known, 0.2, stream(7)) for _ in range(2))
    for mine, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert any(
        (a != b).any() for a, b in zip(first, fisher_mix(known, 0.2, stream(8)), strict=True)
    )
    assert (scores(first, x).argmax(1) == y).mean() > 0.95
