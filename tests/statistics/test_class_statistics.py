"""Statistics add: what clients sum is what one measurement of all the data would give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.statistics.class_statistics import (
    ClassStatistics,
    GlobalStatistics,
    StatisticsError,
    sum_of,
)

relaxed = hypothesis_settings(deadline=None, max_examples=40)


def one_by_one(z: Any, y: Any, classes: int, *, pooled: bool) -> tuple[Any, Any, Any]:
    """The slow twin of ``ClassStatistics.of``: a loop over samples and features."""
    width = z.shape[1]
    count, total = np.zeros(classes), np.zeros((classes, width))
    square = np.zeros((width, width) if pooled else (classes, width))
    for features, label in zip(z, y, strict=True):
        count[label] += 1
        for i in range(width):
            total[label, i] += features[i]
            if pooled:
                for j in range(width):
                    square[i, j] += features[i] * features[j]
            else:
                square[label, i] += features[i] ** 2
    return count, total, square


def assert_same(a: ClassStatistics, b: ClassStatistics) -> None:
    """Bit for bit."""
    assert a.pooled == b.pooled
    for name in ("count", "total", "square"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@st.composite
def data(draw: st.DrawFn) -> dict[str, Any]:
    """Features that are whole numbers, so that sums are exact in whatever order."""
    classes, width, size = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(0, 9))
    clients = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return {
        "z": rng.integers(-9, 10, (size, width)).astype(np.float64),
        "y": rng.integers(0, classes, size),
        "owner": rng.integers(0, clients, size),
        "clients": clients,
        "classes": classes,
        "pooled": draw(st.booleans()),
    }


def deal(case: dict[str, Any]) -> tuple[ClassStatistics, list[ClassStatistics]]:
    """The statistics of all data, and those of each client's part; parts may be empty."""
    keys = {"classes": case["classes"], "pooled": case["pooled"]}
    parts = [case["owner"] == client for client in range(case["clients"])]
    whole = ClassStatistics.of(case["z"], case["y"], **keys)
    return whole, [ClassStatistics.of(case["z"][part], case["y"][part], **keys) for part in parts]


@relaxed
@given(case=data())
def test_measured_as_by_a_loop_over_samples(case: dict[str, Any]) -> None:
    whole, _ = deal(case)
    assert (whole.classes, whole.width) == (case["classes"], case["z"].shape[1])
    twin = one_by_one(case["z"], case["y"], case["classes"], pooled=case["pooled"])
    for name, expected in zip(("count", "total", "square"), twin, strict=True):
        np.testing.assert_array_equal(getattr(whole, name), expected)


@relaxed
@given(case=data())
def test_any_partition_over_clients_gives_the_same_world(case: dict[str, Any]) -> None:
    whole, parts = deal(case)
    assert_same(sum_of(parts), whole)
    assert_same(sum_of(parts[::-1]), whole)
    a, b = (GlobalStatistics.from_sum(total, floor=0.1) for total in (whole, sum_of(parts)))
    for name in ("count", "mean", "std", "present"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.covariance is None) == (b.covariance is None) == (not case["pooled"])
    if a.covariance is not None:
        np.testing.assert_array_equal(a.covariance, b.covariance)


@relaxed
@given(case=data())
def test_the_law_of_total_variance(case: dict[str, Any]) -> None:
    """The sum over clients knows the variance of the union, spread between clients included."""
    _, parts = deal(case)
    world = GlobalStatistics.from_sum(sum_of(parts))
    z, y = case["z"], case["y"]
    within = np.zeros((z.shape[1], z.shape[1]))
    for label in range(case["classes"]):
        own = z[y == label]
        assert world.count[label] == len(own)
        assert world.present[label] == (len(own) > 0)
        if not len(own):
            assert not world.mean[label].any()
            continue
        np.testing.assert_allclose(world.mean[label], own.mean(0), atol=1e-12)
        within += len(own) * np.atleast_2d(np.cov(own.T, bias=True))
        if not case["pooled"]:
            np.testing.assert_allclose(world.std[label] ** 2, np.var(own, 0), atol=1e-10)
    within /= max(len(z), 1)
    if case["pooled"]:
        np.testing.assert_allclose(world.covariance, within, atol=1e-10)
        for row in world.std:
            np.testing.assert_allclose(row**2, np.diag(within), atol=1e-10)


@relaxed
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    pooled=st.booleans(),
)
def test_union_is_plus_also_on_real_numbers(
    seed: int, sizes: tuple[int, int], pooled: bool
) -> None:
    rng = np.random.default_rng(seed)
    z = [rng.standard_normal((size, 5)) for size in sizes]
    y = [rng.integers(0, 3, size) for size in sizes]
    a, b = (ClassStatistics.of(*part, classes=3, pooled=pooled) for part in zip(z, y, strict=True))
    union = ClassStatistics.of(np.concatenate(z), np.concatenate(y), classes=3, pooled=pooled)
    assert_same(a + b, b + a)
    for name in ("count", "total", "square"):
        np.testing.assert_allclose(getattr(a + b, name), getattr(union, name), atol=1e-12)


def test_a_std_averaged_over_clients_would_be_wrong() -> None:
    """Two clients without any spread of their own, ten apart: the union's std is five."""
    a, b = (ClassStatistics.of([[x], [x]], [0, 0], classes=1) for x in (0.0, 10.0))
    assert (a.std.item(), b.std.item()) == (0.0, 0.0)
    assert GlobalStatistics.from_sum(a + b).std.item() == 5.0


@pytest.mark.parametrize("pooled", [False, True])
def test_classes_with_no_and_one_sample_need_no_special_case(pooled: bool) -> None:
    z = [[1.0, 2.0, 3.0]]
    statistics = ClassStatistics.of(z, [1], classes=2, pooled=pooled)
    np.testing.assert_array_equal(statistics.count, [0, 1])
    np.testing.assert_array_equal(statistics.mean, [[0, 0, 0], *z])
    np.testing.assert_array_equal(statistics.std, np.zeros((2, 3)))
    world = GlobalStatistics.from_sum(statistics, floor=0.25)
    np.testing.assert_array_equal(world.std, np.full((2, 3), 0.25))
    np.testing.assert_array_equal(world.present, [False, True])


@pytest.mark.parametrize("pooled", [False, True])
def test_a_client_without_samples_adds_nothing(pooled: bool) -> None:
    nobody = ClassStatistics.of(np.zeros((0, 3)), [], classes=2, pooled=pooled)
    somebody = ClassStatistics.of([[1.0, 2.0, 3.0]], [1], classes=2, pooled=pooled)
    assert_same(nobody + somebody, somebody)
    assert_same(somebody + nobody, somebody)
    world = GlobalStatistics.from_sum(nobody)
    assert not world.present.any()
    assert not world.mean.any()
    assert not world.std.any()


def test_as_many_classes_as_features_is_told_apart_by_what_was_said() -> None:
    z, y = np.arange(6.0).reshape(3, 2), np.array([0, 1, 1])
    diagonal, pooled = (ClassStatistics.of(z, y, classes=2, pooled=p) for p in (False, True))
    assert (diagonal.pooled, pooled.pooled) == (False, True)
    np.testing.assert_array_equal(pooled.square, z.T @ z)
    np.testing.assert_array_equal(diagonal.square, [[0, 1], [4 + 16, 9 + 25]])
    assert (pooled + pooled).pooled is True
    assert GlobalStatistics.from_sum(diagonal).covariance is None
    covariance = GlobalStatistics.from_sum(pooled).covariance
    np.testing.assert_allclose(covariance, 2 / 3 * np.cov(z[1:].T, bias=True))
    with pytest.raises(StatisticsError, match="cannot add"):
        diagonal + pooled
    assert ClassStatistics(np.ones(2), np.ones((2, 2)), np.ones((2, 2))).pooled is False


def test_the_pooled_covariance_is_exactly_symmetric() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((50, 8)), rng.integers(0, 3, 50)
    total = ClassStatistics.of(z, y, classes=3, pooled=True)
    covariance = GlobalStatistics.from_sum(total).covariance
    assert covariance is not None
    np.testing.assert_array_equal(covariance, covariance.T)


def test_latents_are_drawn_around_the_prototype() -> None:
    world = GlobalStatistics(np.ones(2), np.array([[1.0, 2], [3, 4]]), np.array([[1.0, 1], [0, 2]]))
    v = world.sample([1, 0, 1], [[1.0, 1], [-1, 0.5], [9, -1]])
    np.testing.assert_array_equal(v, [[3, 6], [0, 2.5], [3, 2]])


@pytest.mark.parametrize(
    ("count", "total", "square", "pooled"),
    [
        (np.ones(2), np.ones(2), np.ones(2), None),
        (np.ones(3), np.ones((2, 4)), np.ones((2, 4)), None),
        (np.ones(2), np.ones((2, 4)), np.ones((2, 3)), None),
        (np.ones(2), np.ones((2, 4)), np.ones((2, 4)), True),
        (np.ones(2), np.ones((2, 4)), np.ones((4, 4)), False),
        (np.ones((2, 1)), np.ones((2, 4)), np.ones((2, 4)), None),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    count: Any, total: Any, square: Any, pooled: bool | None
) -> None:
    with pytest.raises(StatisticsError, match="do not fit") as error:
        ClassStatistics(count, total, square, pooled)
    assert "[C, p]" in error.value.hint


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (np.ones((2, 3)), [0, 2]),
        (np.ones((2, 3)), [0, -1]),
        (np.ones((2, 3)), [0]),
        (np.ones(3), [0]),
    ],
)
def test_labels_that_do_not_fit_are_refused(features: Any, labels: Any) -> None:
    with pytest.raises(StatisticsError, match="do not fit 2 classes"):
        ClassStatistics.of(features, labels, classes=2)


@pytest.mark.parametrize("other", [(2, 4), (3, 3)])
def test_unequal_statistics_do_not_add(other: tuple[int, int]) -> None:
    def some(classes: int, width: int) -> ClassStatistics:
        return ClassStatistics.of(np.ones((1, width)), [0], classes=classes)

    with pytest.raises(StatisticsError, match="cannot add"):
        some(2, 3) + some(*other)
