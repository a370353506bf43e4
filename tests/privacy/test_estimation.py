"""Without noise the truth comes back; with any noise, nothing impossible does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.privacy.release import WITHIN, bounded_sums, estimate, release
from fedvtc_edge.privacy.release_spec import COUNT, RADIUS, SECOND, ReleaseSpec
from fedvtc_edge.privacy.sampler import GRID
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.wire import publish, published

CLASSES, WIDTH = 4, 6

LOOSE = ReleaseSpec(CLASSES, WIDTH, True, 1000.0, 4.0, 1e-5)
"""A clip that touches nothing."""


class Quiet(ReleaseSpec):
    """Says that it is all but noiseless, as an infinite budget would be."""

    @property
    def noise_multiplier(self) -> float:
        return 1e-12


def quiet(*, second: bool = True) -> Quiet:
    return Quiet(CLASSES, WIDTH, second, 1000.0, 4.0, 1e-5)


def features(
    size: int, seed: int, *, absent: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class means well apart; norms as the anchor's, √m."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, CLASSES, size)
    if absent is not None:
        y = y[y != absent]
    z = 3 * draw.standard_normal((CLASSES, WIDTH))[y] + draw.standard_normal((len(y), WIDTH))
    z *= WIDTH**0.5 / np.linalg.norm(z, axis=1, keepdims=True)
    return z, y, draw.normal(0, 0.2, WIDTH)


# ---------------------------------------------------------------- without noise


@pytest.mark.parametrize("second", [True, False])
def test_without_noise_counts_and_means_come_back(second: bool) -> None:
    z, y, centre = features(600, 1)
    spec = quiet(second=second)
    world = estimate(spec, bounded_sums(spec, z, y, centre), 3, centre)
    true = GlobalStatistics.from_sum(ClassStatistics.of(z, y, classes=CLASSES))
    np.testing.assert_allclose(world.count, true.count, rtol=1e-3)
    np.testing.assert_allclose(world.mean, true.mean, atol=1e-3)


def test_without_noise_second_moments_come_back() -> None:
    z, y, centre = features(600, 2)
    spec = quiet()
    world = estimate(spec, bounded_sums(spec, z, y, centre), 1, centre)
    about = z - centre * WIDTH**0.5
    assert world.covariance is not None
    np.testing.assert_allclose(world.covariance, about.T @ about / len(z), atol=1e-3)
    np.testing.assert_allclose(world.covariance, world.covariance.T, rtol=1e-12)
    # One variance for all classes: what is left of the total one once the means' is taken.
    means = ClassStatistics.of(about, y, classes=CLASSES).mean
    within = np.diag(about.T @ about / len(z)) - np.square(about.mean(0))
    within = within - np.square(means - about.mean(0)).mean(0)
    expected = np.sqrt(np.maximum(within, 0.1 * WITHIN))
    np.testing.assert_allclose(world.std, np.tile(expected, (CLASSES, 1)), atol=2e-3)


def test_parts_add_up_to_the_whole() -> None:
    """Sums of integers are exact: any split over clients is the same estimate, bit for bit."""
    z, y, centre = features(300, 3)
    spec = quiet()
    whole = estimate(spec, bounded_sums(spec, z, y, centre), 4, centre)
    parts = [bounded_sums(spec, z[i::4], y[i::4], centre) for i in range(4)]
    split = estimate(spec, np.sum(parts, axis=0), 4, centre)
    assert publish(split) == publish(whole)


# ---------------------------------------------------------------- with noise


def test_absent_classes_are_left_out() -> None:
    z, y, centre = features(800, 4, absent=2)
    spec = quiet()
    world = estimate(spec, bounded_sums(spec, z, y, centre), 1, centre)
    assert world.present.tolist() == [True, True, False, True]
    assert world.count[2] == 0


def test_a_count_below_its_noise_is_left_out() -> None:
    spec = replace(LOOSE, second=False)
    noise = float(spec.sigma) / GRID
    total = np.zeros(spec.size, np.int64)
    total[:CLASSES] = np.array([1.01, 0.99, 40.0, -3.0]) * noise * GRID
    world = estimate(spec, total, 1, np.zeros(WIDTH))
    assert world.present.tolist() == [True, False, True, False]
    # Four clients bring twice the noise: none but the third is left.
    world = estimate(spec, total, 4, np.zeros(WIDTH))
    assert world.present.tolist() == [False, False, True, False]


def test_where_all_is_noise_nothing_is_left_out() -> None:
    """No class at all would leave nothing to paint: then none is known to be absent."""
    for second in (True, False):
        spec = replace(LOOSE, second=second)
        world = estimate(spec, np.zeros(spec.size, np.int64), 5, np.zeros(WIDTH))
        assert world.present.all()
        np.testing.assert_allclose(world.mean, 0.0, atol=1e-9)


def shrunk(mean: np.ndarray, common: np.ndarray, error: np.ndarray) -> list[list[float]]:
    """James and Stein, coordinate by coordinate; never past the common mean."""
    made = []
    for row, squared in zip(mean, error, strict=True):
        distance = [a - b for a, b in zip(row, common, strict=True)]
        length = sum(d * d for d in distance)
        keep = max(1.0 - (len(row) - 2) * squared / length, 0.0) if length else 0.0
        made.append([b + d * keep for d, b in zip(distance, common, strict=True)])
    return made


@pytest.mark.parametrize("contributors", [1, 5])
@pytest.mark.parametrize("scale", [0.05, 0.5, 3.0, 100.0])
def test_means_are_shrunk_by_what_the_noise_explains(contributors: int, scale: float) -> None:
    spec = replace(LOOSE, second=False, clip=1.0)
    draw = np.random.default_rng(5)
    noise = float(spec.sigma) / GRID * contributors**0.5
    numbers = np.array([90.0, 200.0, 60.0, 50.0]) * COUNT * scale
    sums = draw.standard_normal((CLASSES, WIDTH)) * 10 * scale
    total = (np.concatenate([numbers, sums.ravel()]) * GRID).astype(np.int64)
    world = estimate(spec, total, contributors, np.zeros(WIDTH))
    even = shrunk(numbers[None], np.full(CLASSES, numbers.mean()), np.array([noise**2]))
    count = np.maximum(np.array(even[0]) / COUNT, 1)
    np.testing.assert_allclose(world.count[numbers > noise], count[numbers > noise], rtol=1e-5)
    mean = RADIUS * sums / count[:, None]
    common = RADIUS * sums.sum(0) / count.sum()
    expected = np.array(shrunk(mean, common, (noise * RADIUS / count) ** 2)) * WIDTH**0.5
    np.testing.assert_allclose(world.mean, expected, atol=1e-4)
    spread = WITHIN + WIDTH * np.median((noise * RADIUS / count) ** 2)
    np.testing.assert_allclose(world.std, spread**0.5, rtol=1e-4)


def test_eigenvalues_are_never_below_the_noises_own() -> None:
    spec = replace(LOOSE, clip=1.0)
    z, y, centre = features(500, 6)
    for contributors in (1, 9):
        total = np.sum([release(spec, z, y, centre) for _ in range(contributors)], axis=0)
        world = estimate(spec, total, contributors, centre)
        assert world.covariance is not None
        everyone = 500 * contributors
        noise = float(spec.sigma) / GRID * contributors**0.5
        floor = noise * RADIUS**2 / SECOND * WIDTH**0.5 / everyone * WIDTH
        assert np.linalg.eigvalsh(world.covariance).min() > 0.8 * floor


def test_noise_of_little_weight_changes_little() -> None:
    z, y, centre = features(40_000, 7)
    spec = replace(LOOSE, clip=2.0, epsilon=8.0)
    noisy = estimate(spec, release(spec, z, y, centre), 1, centre)
    clean = Quiet(CLASSES, WIDTH, True, 2.0, 8.0, 1e-5)
    exact = estimate(clean, bounded_sums(clean, z, y, centre), 1, centre)
    np.testing.assert_allclose(noisy.mean, exact.mean, atol=0.01)
    np.testing.assert_allclose(noisy.count, exact.count, rtol=0.01)
    np.testing.assert_allclose(noisy.covariance, exact.covariance, atol=0.02)  # type: ignore[arg-type]


# ---------------------------------------------------------------- whatever comes


@hypothesis_settings(deadline=None, max_examples=120)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 5),
    width=st.integers(2, 8),
    second=st.booleans(),
    epsilon=st.sampled_from([1e-6, 0.1, 4.0, 1000.0]),
    clip=st.sampled_from([1e-3, 1.0, 1e3]),
    contributors=st.sampled_from([1, 7, 10_000]),
    kind=st.sampled_from(["zero", "negative", "huge", "one", "small", "mixed"]),
)
def test_nothing_impossible_is_published(
    seed: int,
    classes: int,
    width: int,
    second: bool,
    epsilon: float,
    clip: float,
    contributors: int,
    kind: str,
) -> None:
    """Whatever 10,000 clients may add up to, honest or not."""
    spec = ReleaseSpec(classes, width, second, clip, epsilon, 1e-5)
    draw = np.random.default_rng(seed)
    most = 10_000 * 2**49
    total = {
        "zero": np.zeros(spec.size, np.int64),
        "negative": -draw.integers(0, most, spec.size),
        "huge": np.full(spec.size, most) * draw.choice([-1, 1], spec.size),
        "one": np.ones(spec.size, np.int64),
        "small": draw.integers(-50, 50, spec.size),
        "mixed": (draw.standard_normal(spec.size) * 2.0 ** draw.integers(0, 60, spec.size)),
    }[kind].astype(np.int64)
    world = estimate(spec, total, contributors, draw.normal(0, 0.2, width))
    again = published(publish(world))  # refuses what is not finite in float32
    assert (again.std > 0).all()
    assert (again.count >= 0).all()
    assert again.present.any()
    assert (again.covariance is not None) == second
    if world.covariance is not None:
        largest = np.linalg.eigvalsh(world.covariance)[-1]
        assert np.linalg.eigvalsh(world.covariance).min() > -1e-9 * largest
    assert np.isfinite(again.mean).all()
