"""The training-free classifier against the textbook: explicit Gaussian log-densities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.statistics.discriminant import Discriminant
from fedvtc_edge.statistics.gaussian import FLOOR, RIDGE
from fedvtc_edge.training.losses import distill

CPU = torch.device("cpu")
CLASSES, WIDTH = 4, 5


def labelled(sizes: tuple[int, ...], seed: int = 0) -> tuple[Any, Any]:
    """Correlated features around a centre per class."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    centre = 2 * rng.standard_normal((len(sizes), WIDTH))
    spread = rng.standard_normal((WIDTH, WIDTH)) / 2
    return centre[y] + rng.standard_normal((len(y), WIDTH)) @ spread, y


def world_of(z: Any, y: Any, *, pooled: bool, classes: int = CLASSES) -> GlobalStatistics:
    return GlobalStatistics.from_sum(ClassStatistics.of(z, y, classes=classes, pooled=pooled))


def scores(world: GlobalStatistics, z: Any, **keys: float) -> Any:
    return Discriminant(world, device=CPU, **keys)(torch.tensor(z, dtype=torch.float32)).numpy()


def normalised(rows: list[list[float]]) -> Any:
    """Posteriors from log-densities, one row at a time."""
    return np.array([[v - np.log(np.sum(np.exp(row))) for v in row] for row in rows])


def test_pooled_statistics_give_the_linear_discriminant() -> None:
    z, y = labelled((9, 4, 12, 6))
    x = z[::3] + 0.3
    within = np.zeros((WIDTH, WIDTH))
    for label in range(CLASSES):
        for sample in z[y == label]:
            gap = sample - z[y == label].mean(0)
            within += np.outer(gap, gap)
    within /= len(z)
    within += RIDGE * np.trace(within) / WIDTH * np.eye(WIDTH)
    inverse, determinant = np.linalg.inv(within), np.linalg.det(2 * np.pi * within)
    rows = []
    for sample in x:
        row = []
        for label in range(CLASSES):
            gap = sample - z[y == label].mean(0)
            row.append(-0.5 * gap @ inverse @ gap - 0.5 * np.log(determinant))
        rows.append(row)
    got = scores(world_of(z, y, pooled=True), x)
    np.testing.assert_allclose(got, normalised(rows), atol=1e-4)


def test_it_agrees_with_scikit_learn() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    z, y = labelled((8, 8, 8, 8))  # equal sizes: scikit-learn pools classes by prior, not by size
    twin = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=RIDGE / (1 + RIDGE), priors=np.full(CLASSES, 1 / CLASSES)
    ).fit(z, y)
    # (1 − s) Σ + s t I with s = r / (1 + r) is our Σ + r t I divided by 1 + r.
    expected = normalised(list(twin.decision_function(z) / (1 + RIDGE)))
    np.testing.assert_allclose(scores(world_of(z, y, pooled=True), z), expected, atol=1e-4)


def test_diagonal_statistics_give_gaussian_naive_bayes() -> None:
    z, y = labelled((9, 4, 12, 1))  # one sample has no deviation: the floor stands in
    x = z[::3] + 0.3
    rows = []
    for sample in x:
        row = []
        for label in range(CLASSES):
            own, density = z[y == label], 0.0
            for i in range(WIDTH):
                std = max(np.std(own[:, i]), FLOOR)
                gap = (sample[i] - np.mean(own[:, i])) / std
                density += -0.5 * gap**2 - np.log(std) - 0.5 * np.log(2 * np.pi)
            row.append(density)
        rows.append(row)
    got = scores(world_of(z, y, pooled=False), x)
    np.testing.assert_allclose(got, normalised(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooled", [False, True])
def test_temperature_softens(pooled: bool) -> None:
    z, y = labelled((9, 4, 12, 6))
    world = world_of(z, y, pooled=pooled)
    sharp = torch.tensor(scores(world, z), dtype=torch.float64)
    soft = scores(world, z, temperature=4.0)
    np.testing.assert_allclose(soft, torch.log_softmax(sharp / 4, 1).numpy(), atol=1e-4)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_class_that_nobody_has_is_never_predicted(pooled: bool, temperature: float) -> None:
    z, y = labelled((9, 0, 12, 6))
    world = world_of(z, y, pooled=pooled)
    # Far from every mean all densities are tiny, and the absent class must still lose.
    x = np.concatenate([z, 1e4 * np.random.default_rng(1).standard_normal((50, WIDTH))])
    got = scores(world, x, temperature=temperature)
    assert np.isfinite(got).all()
    assert (got[:, 1] <= -1e3).all()
    assert (got.argmax(1) != 1).all()
    np.testing.assert_allclose(np.exp(got).sum(1), 1.0, rtol=1e-5)
    # The others score as if the class did not exist.
    fewer = world_of(z, np.array([0, 0, 1, 2])[y], pooled=pooled, classes=3)
    same = scores(fewer, z, temperature=temperature)
    np.testing.assert_allclose(got[: len(z), [0, 2, 3]], same, atol=1e-4)


@pytest.mark.parametrize("pooled", [False, True])
def test_one_sample_a_class_still_classifies(pooled: bool) -> None:
    """No within-class variance at all: the ridge and the floor keep everything finite."""
    z = 2.0 * np.eye(CLASSES, WIDTH)
    world = world_of(z, np.arange(CLASSES), pooled=pooled)
    got = scores(world, z)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got.argmax(1), np.arange(CLASSES))


@pytest.mark.parametrize("pooled", [False, True])
def test_gradients_reach_the_features_and_absent_classes_bring_no_nan(pooled: bool) -> None:
    z, y = labelled((9, 0, 12, 6))
    teacher = Discriminant(world_of(z, y, pooled=pooled), device=CPU)
    x = torch.tensor(z, dtype=torch.float32, requires_grad=True)
    torch.autograd.backward(teacher(x)[:, 0].sum())
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
    logits = torch.zeros(len(z), CLASSES, requires_grad=True)
    loss = distill(logits, teacher(x).detach())
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
