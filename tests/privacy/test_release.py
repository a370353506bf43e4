"""One example changes the sums by at most the bound, whatever it is, in exact arithmetic."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.errors import PrivacyError
from fedvtc_edge.privacy.release import bounded_sums, contributions, release
from fedvtc_edge.privacy.release_spec import COUNT, RADIUS, SECOND, ReleaseSpec
from fedvtc_edge.privacy.sampler import GRID
from fedvtc_edge.wire import encode_release

NASTY = [
    0.0,
    -0.0,
    1.0,
    -3.5,
    1e-300,
    5e-324,
    -5e-324,
    1e30,
    1e150,
    -1e154,
    1e300,
    1.7e308,
    math.inf,
    -math.inf,
    math.nan,
]


def release_spec_of(
    *,
    classes: int = 3,
    width: int = 4,
    second: bool = True,
    clip: float = 1.0,
    epsilon: float = 4.0,
) -> ReleaseSpec:
    return ReleaseSpec(classes, width, second, clip, epsilon, 1e-5)


def examples(spec: ReleaseSpec, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of every kind: as the anchor makes them, far away, tiny and impossible."""
    draw = np.random.default_rng(seed)
    z = draw.standard_normal((size, spec.width))
    z *= 10.0 ** draw.choice([-320, -12, -1, 0, 0, 0, 1, 5, 140, 300], (size, 1))
    odd = draw.random(z.shape) < 0.05
    z[odd] = draw.choice(NASTY, int(odd.sum()))
    return z, draw.integers(0, spec.classes, size), draw.normal(0, 0.2, spec.width)


def square(*parts: np.ndarray) -> int:
    """Squared norm in Python's integers, which do not round."""
    return sum(int(x) ** 2 for part in parts for x in np.ravel(part))


def limit(spec: ReleaseSpec) -> Fraction:
    return (Fraction(spec.clip) * GRID) ** 2


shapes = {
    "classes": st.integers(1, 4),
    "width": st.integers(1, 9),
    "second": st.booleans(),
    "clip": st.sampled_from([1e-3, 0.1, 0.3, 0.7, 1.0, math.pi, 17.0, 1e3]),
    "seed": st.integers(0, 2**32 - 1),
}


# ---------------------------------------------------------------- the bound


@hypothesis_settings(deadline=None, max_examples=200)
@given(size=st.integers(0, 12), **shapes)
def test_no_example_passes_the_bound(
    size: int, classes: int, width: int, second: bool, clip: float, seed: int
) -> None:
    spec = release_spec_of(classes=classes, width=width, second=second, clip=clip)
    z, _, centre = examples(spec, size, seed)
    parts = contributions(spec, z, centre)
    assert [part.dtype for part in parts] == [np.int64] * 3
    for one in zip(*parts, strict=True):
        assert square(*one) <= limit(spec)


@hypothesis_settings(deadline=None, max_examples=200)
@given(size=st.integers(1, 12), place=st.integers(0, 99), **shapes)
def test_one_example_changes_the_sums_by_at_most_the_bound(
    size: int, place: int, classes: int, width: int, second: bool, clip: float, seed: int
) -> None:
    """Added or removed anywhere: and the others' share does not change by a single step."""
    spec = release_spec_of(classes=classes, width=width, second=second, clip=clip)
    z, y, centre = examples(spec, size, seed)
    place %= size
    rest = np.arange(size) != place
    with_it = bounded_sums(spec, z, y, centre)
    without = bounded_sums(spec, z[rest], y[rest], centre)
    alone = bounded_sums(spec, z[~rest], y[~rest], centre)
    np.testing.assert_array_equal(with_it - without, alone)
    assert square(alone) <= limit(spec)
    assert Fraction(math.isqrt(square(alone))) <= spec.sensitivity


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("size", [1, 2, 511, 512, 513, 1025])
def test_what_an_example_adds_does_not_depend_on_the_others(
    size: int, second: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on how many they are, nor on where it stands, nor on how they lie in memory.

    On a grid so fine that the last bit of a float would show.
    """
    monkeypatch.setattr("fedvtc_edge.privacy.release.GRID", 2**50)
    spec = release_spec_of(width=24, second=second)
    z, y, centre = examples(spec, size, size)
    order = np.random.default_rng(1).permutation(size)
    exact = bounded_sums(spec, z, y, centre)
    np.testing.assert_array_equal(bounded_sums(spec, z[order], y[order], centre), exact)
    np.testing.assert_array_equal(bounded_sums(spec, np.asfortranarray(z), y, centre), exact)
    one_by_one = sum(
        (bounded_sums(spec, z[i : i + 1], y[i : i + 1], centre) for i in range(size)),
        np.zeros(spec.size, np.int64),
    )
    np.testing.assert_array_equal(one_by_one, exact)


@pytest.mark.parametrize("second", [True, False])
def test_the_widest_release_keeps_the_bound(second: bool) -> None:
    """8,256 products: float64's rounding is at its worst, and examples lie on the bound."""
    for clip in (0.29, 1.0, 1e3):
        spec = release_spec_of(classes=2, width=128, second=second, clip=clip)
        z = np.random.default_rng(3).standard_normal((40, 128)) * np.logspace(-3, 6, 40)[:, None]
        parts = contributions(spec, z, np.zeros(128))
        norms = [square(*one) for one in zip(*parts, strict=True)]
        assert max(norms) <= limit(spec)
        assert max(norms) > 0.999 * limit(spec), "and makes use of it"


def test_norms_stay_below_the_bound_by_more_than_rounding() -> None:
    """Before they are rounded toward zero, too: on a fine grid little is lost by that."""
    spec = release_spec_of(width=2, second=False, clip=1e3)
    z = np.random.default_rng(3).standard_normal((3000, 2)) * 1e7
    norms = [square(*one) for one in zip(*contributions(spec, z, np.zeros(2)), strict=True)]
    shrunk = limit(spec) * (1 - Fraction(1, 2**30)) ** 2
    assert shrunk * (1 - Fraction(1, 2**28)) < max(norms) <= shrunk


@pytest.mark.parametrize("nasty", [math.nan, math.inf, -math.inf, 1e300, -1.7e308])
@pytest.mark.parametrize("second", [True, False])
def test_what_is_not_finite_adds_nothing(nasty: float, second: bool) -> None:
    spec = release_spec_of(second=second)
    z, y, centre = examples(spec, 5, 2)
    z = np.clip(np.nan_to_num(z), -9, 9)
    spoilt = np.insert(z, 2, [0.5, nasty, 0.5, 0.5], axis=0)
    np.testing.assert_array_equal(
        bounded_sums(spec, spoilt, np.insert(y, 2, 1), centre),
        bounded_sums(spec, z, y, centre),
    )


# ---------------------------------------------------------------- the slow twin


def twin(spec: ReleaseSpec, z: np.ndarray, y: np.ndarray, centre: np.ndarray) -> list[int]:
    """In loops over Python floats."""
    counts = [0] * spec.classes
    sums = [[0] * spec.width for _ in range(spec.classes)]
    seconds = [0] * (spec.sizes[2])
    for features, label in zip(z.tolist(), y.tolist(), strict=True):
        phi = [
            (x / math.sqrt(spec.width) - c) / RADIUS
            for x, c in zip(features, centre.tolist(), strict=True)
        ]
        products = [
            SECOND * phi[i] * phi[j] * (1.0 if i == j else math.sqrt(2.0))
            for i in range(spec.width)
            for j in range(i, spec.width)
            if spec.second
        ]
        norm = math.sqrt(math.fsum(v * v for v in [COUNT, *phi, *products]))
        factor = min(1.0, spec.clip * (1 - 2.0**-30) / norm) * GRID
        counts[label] += int(COUNT * factor)
        for i, value in enumerate(phi):
            sums[label][i] += int(value * factor)
        for i, value in enumerate(products):
            seconds[i] += int(value * factor)
    return counts + [x for row in sums for x in row] + seconds


@hypothesis_settings(deadline=None, max_examples=60)
@given(size=st.integers(0, 9), scale=st.sampled_from([1e-9, 0.1, 1.0, 3.0, 100.0]), **shapes)
def test_sums_are_those_of_plain_loops(
    size: int, scale: float, classes: int, width: int, second: bool, clip: float, seed: int
) -> None:
    spec = release_spec_of(classes=classes, width=width, second=second, clip=clip)
    draw = np.random.default_rng(seed)
    z, y = draw.standard_normal((size, width)) * scale, draw.integers(0, classes, size)
    centre = draw.normal(0, 0.2, width)
    # A product that falls on a step may round either way, once per example.
    close = np.abs(bounded_sums(spec, z, y, centre) - twin(spec, z, y, centre))
    assert close.max(initial=0) <= 1
    assert (close > 0).mean() < 0.2


@pytest.mark.parametrize("clip", [1e-3, 0.3, 1.0, 1e3])
def test_every_entry_is_rounded_toward_zero(clip: float) -> None:
    spec = release_spec_of(width=6, clip=clip)
    z = np.random.default_rng(0).standard_normal((200, 6))
    phi = z / math.sqrt(6) / RADIUS
    rows, columns = np.triu_indices(6)
    products = phi[:, rows] * phi[:, columns] * np.where(rows == columns, 1, math.sqrt(2)) * SECOND
    whole = np.concatenate([np.full((200, 1), COUNT), phi, products], 1)
    factor = np.minimum(1, clip / np.linalg.norm(whole, axis=1)) * GRID
    exact = whole * factor[:, None]
    count, first, second = contributions(spec, z, np.zeros(6))
    got = np.concatenate([count[:, None], first, second], 1)
    assert (np.abs(got) <= np.abs(exact) * (1 + 1e-12)).all()
    assert (np.abs(exact - got) < 1 + clip * GRID * 2.0**-29).all()
    assert ((got == 0) | (np.sign(got) == np.sign(exact))).all()


def test_zero_examples_are_zeros() -> None:
    spec = release_spec_of()
    z = np.zeros((0, spec.width))
    assert not bounded_sums(spec, z, np.zeros(0, int), np.zeros(spec.width)).any()


def test_int64_has_room_for_every_client_and_example() -> None:
    """A client of twenty million examples, under the largest noise that settings allow."""
    from fedvtc_edge.privacy.sampler import LARGEST_SIGMA
    from fedvtc_edge.wire import LARGEST_RELEASE

    far = 2 / RADIUS  # a unit vector from a mean of unit vectors
    largest = math.hypot(far, SECOND * far**2, COUNT) * GRID
    assert 2e7 * largest + 12 * LARGEST_SIGMA < LARGEST_RELEASE
    assert 10_000 * LARGEST_RELEASE < 2**63
    assert 1e9 * 1e3 * GRID < 2**63


# ---------------------------------------------------------------- what leaves


def data(
    spec: ReleaseSpec, labels: Any, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y = np.asarray(labels, np.int64)
    z = np.random.default_rng(seed).standard_normal((len(y), spec.width))
    return z, y, np.zeros(spec.width)


@pytest.mark.parametrize("second", [True, False])
def test_the_size_tells_nothing(second: bool) -> None:
    spec = release_spec_of(classes=5, width=3, second=second)
    held = ([], [0], [4], [2] * 300, list(range(5)) * 20, [0, 0, 0, 1])
    made = [encode_release(release(spec, *data(spec, labels))) for labels in held]
    assert len({len(m) for m in made}) == 1
    assert len({m[: -8 * spec.size] for m in made}) == 1, "headers do not differ, either"
    assert len(made[0]) - 8 * spec.size < 300


def test_the_release_is_dense() -> None:
    """Nothing of a client with nothing is zero: absent classes have noise like all others."""
    spec = release_spec_of(classes=4, width=5)
    made = release(spec, *data(spec, []))
    assert made.shape == (spec.size,)
    assert made.dtype == np.int64
    assert np.count_nonzero(made) >= spec.size - 2  # a zero: one in a million, for each number


def test_two_calls_are_two_draws() -> None:
    spec = release_spec_of()
    given = data(spec, [0, 1, 1])
    made = []
    for _ in range(2):
        np.random.seed(3)
        random.seed(3)
        made.append(release(spec, *given))
    assert (made[0] == made[1]).sum() <= 2


@pytest.mark.parametrize(("clip", "epsilon"), [(1.0, 4.0), (0.3, 1.0), (10.0, 100.0)])
def test_noise_has_the_calibrated_spread(clip: float, epsilon: float) -> None:
    """20,000 coordinates: the standard error of a standard deviation is half a per cent."""
    spec = release_spec_of(classes=400, width=49, second=False, clip=clip, epsilon=epsilon)
    given = data(spec, [0, 1, 7] * 30)
    noise = (release(spec, *given) - bounded_sums(spec, *given)).astype(float)
    sigma = float(spec.sigma)
    assert sigma == pytest.approx(spec.noise_multiplier * clip * GRID)
    assert noise.std() == pytest.approx(sigma, rel=0.03)
    assert abs(noise.mean()) < 6 * sigma / math.sqrt(noise.size)
    assert np.abs(noise).max() < 8 * sigma
    # The same everywhere: on counts, on classes that are absent and on those that are not.
    for part in (noise[:400], noise[400:449], noise[-5000:]):
        ratio = part.std() / sigma
        assert abs(ratio - 1) < 6 / math.sqrt(2 * part.size)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("z", "y", "centre"),
    [
        (np.ones((2, 4)), [0, -1], np.zeros(4)),
        (np.ones((2, 4)), [0, 3], np.zeros(4)),
        (np.ones((2, 4)), [0], np.zeros(4)),
        (np.ones((1, 4)), [0, 1, 2], np.zeros(4)),
        (np.ones((2, 5)), [0, 1], np.zeros(4)),
        (np.ones((2, 5)), [0, 1], np.zeros(5)),
        (np.ones(4), [0], np.zeros(4)),
        (np.ones((2, 4)), [[0], [1]], np.zeros(4)),
        (np.ones((2, 2, 4)), [[0, 1], [1, 0]], np.zeros(4)),
        (np.ones((2, 4)), [0, 1], np.zeros(1)),
        (np.ones((2, 4)), [0, 1], 0.0),
    ],
)
def test_what_does_not_fit_is_refused_before_any_draw(
    z: Any, y: Any, centre: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("drawn")

    monkeypatch.setattr("fedvtc_edge.privacy.release.discrete_gaussian", never)
    with pytest.raises(PrivacyError, match="do not fit 3 classes of 4 features") as refused:
        release(release_spec_of(), z, y, centre)
    assert "expected" in refused.value.hint
