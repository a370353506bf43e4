"""Similarity: against scikit-image over many shapes, against slow twins, and by its laws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fedvtc_edge.attacks.scoring.metrics import cosine, psnr, ssim
from fedvtc_edge.errors import FedVTCError, ScoreError

Array = NDArray[np.float64]
Measure = Callable[[Array, Array], float]

SEEDS = st.integers(0, 2**32)


def pair(stream: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """A picture and a damaged copy, of any contrast from none to full."""
    first = stream.random(shape) * stream.random()
    second = np.clip(first + stream.normal(0, stream.random() ** 3, shape), 0, 1)
    return first, second


def shapes(least: int) -> list[tuple[int, ...]]:
    stream = np.random.default_rng(least)
    sides = [(int(h), int(w)) for h, w in stream.integers(least, 33, (20, 2))]
    sides += [(least, least), (8, 8), (28, 28), (32, 32)]
    return [shape for h, w in sides for shape in ((h, w), (1, h, w), (3, h, w))]


@pytest.mark.parametrize("shape", shapes(8), ids=str)
def test_agrees_with_scikit_image(shape: tuple[int, ...]) -> None:
    stream = np.random.default_rng(math.prod(shape))
    axis = 0 if len(shape) == 3 else None
    for _ in range(5):
        a, b = pair(stream, shape)
        expected = structural_similarity(a, b, data_range=1, channel_axis=axis)
        assert ssim(a, b) == pytest.approx(expected, abs=1e-6)
        assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1), abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "window"), [((3, 9), 3), ((4, 4), 3), ((3, 5, 30), 5), ((6, 8), 5), ((1, 7, 6), 5)]
)
def test_a_small_picture_gets_the_largest_odd_window(shape: tuple[int, ...], window: int) -> None:
    a, b = pair(np.random.default_rng(0), shape)
    axis = 0 if len(shape) == 3 else None
    expected = structural_similarity(a, b, data_range=1, channel_axis=axis, win_size=window)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-6)


def slow_ssim(a: Array, b: Array) -> float:
    """Every window by itself, in the words of the paper."""
    values = []
    for top in range(len(a) - 6):
        for left in range(len(a[0]) - 6):
            x, y = (p[top : top + 7, left : left + 7].ravel() for p in (a, b))
            (xx, xy), (_, yy) = np.cov(x, y)
            light = (2 * x.mean() * y.mean() + 1e-4) / (x.mean() ** 2 + y.mean() ** 2 + 1e-4)
            values.append(light * (2 * xy + 9e-4) / (xx + yy + 9e-4))
    return sum(values) / len(values)


@pytest.mark.parametrize("shape", [(7, 7), (8, 11), (16, 9)])
def test_ssim_is_the_mean_over_windows(shape: tuple[int, ...]) -> None:
    a, b = pair(np.random.default_rng(1), shape)
    assert ssim(a, b) == pytest.approx(slow_ssim(a, b), abs=1e-9)


def test_psnr_of_known_errors() -> None:
    black = np.zeros((2, 2))
    assert psnr(black, black + 1) == 0.0
    assert psnr(black, black + 0.1) == pytest.approx(20.0)
    assert psnr(black, [[0.2, 0.0], [0.0, 0.0]]) == pytest.approx(20.0)
    assert psnr(black, black) == math.inf


@given(SEEDS)
def test_a_picture_is_like_itself_and_as_like_as_its_like(seed: int) -> None:
    a, b = pair(np.random.default_rng(seed), (3, 9, 8))
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-12)
    assert psnr(a, a) == math.inf
    assert cosine(a, a) == pytest.approx(1.0, abs=1e-12)
    for measure in (ssim, psnr, cosine):
        assert measure(a, b) == pytest.approx(measure(b, a), abs=1e-9)
        assert measure(np.swapaxes(a, 1, 2), np.swapaxes(b, 1, 2)) == pytest.approx(measure(a, b))
    assert -1 <= ssim(a, b) <= 1 + 1e-12
    if np.abs(a - b).max() > 1e-3:  # of less, float64 may not tell in a mean over windows
        assert ssim(a, b) < 1


def test_float32_at_the_edge_of_the_range_is_a_picture() -> None:
    a, b = pair(np.random.default_rng(2), (8, 8))
    beyond = np.where(b < 0.5, -1e-7, 1 + 1e-7).astype(np.float32)
    assert psnr(a, beyond) == pytest.approx(psnr(a, np.round(beyond)), abs=1e-4)
    assert ssim(a, beyond) == pytest.approx(ssim(a, np.round(beyond)), abs=1e-4)


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=9),
    st.sampled_from([1e-200, 1.0, 1e200]),
)
def test_cosine_is_the_angles_and_has_no_scale(
    pairs: list[tuple[float, float]], scale: float
) -> None:
    a, b = (np.round(side, 3) for side in np.array(pairs).T)
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    expected = dot / lengths if lengths else 0.0
    assert cosine(a * scale, b) == pytest.approx(expected, abs=1e-9)
    assert cosine(-a, b * scale) == pytest.approx(-expected, abs=1e-9)
    assert -1 <= cosine(a, b) <= 1


def test_cosine_of_known_angles() -> None:
    assert cosine([1, 0], [0, 2]) == 0.0
    assert cosine([[1.0], [1.0]], [[1.0], [0.0]]) == pytest.approx(math.sqrt(0.5))
    assert cosine([0, 0], [1, 2]) == 0.0


def test_rounding_takes_no_cosine_beyond_one() -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 5))
    assert max(cosine(v, 3 * v) for v in vectors) == 1.0
    assert min(cosine(v, -3 * v) for v in vectors) == -1.0


GOOD = np.full((8, 8), 0.5)


@pytest.mark.parametrize("measure", [psnr, ssim, cosine])
@pytest.mark.parametrize(
    ("other", "names"),
    [
        (np.full((8, 9), 0.5), r"shapes \[8, 8\] and \[8, 9\]"),
        (np.full((1, 8, 8), 0.5), r"\[1, 8, 8\]"),
        (np.full((8, 8), math.nan), "64 of 64"),
        (np.where(np.eye(8) > 0, math.inf, 0.5), "8 of 64"),
        ([["grey"] * 8] * 8, "not numbers"),
        ([[0.0], [0.0, 1.0]], "not numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused(measure: Measure, other: Array, names: str) -> None:
    for pair_ in ((GOOD, other), (other, GOOD)):
        with pytest.raises(ScoreError, match="and" if "shapes" in names else names) as caught:
            measure(*pair_)
        assert isinstance(caught.value, FedVTCError)
        assert caught.value.hint


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: psnr([], []), "not empty"),
        (lambda: ssim(np.zeros((0, 8, 8)), np.zeros((0, 8, 8))), "not empty"),
        (lambda: cosine([], []), "not empty"),
        (lambda: psnr(GOOD, GOOD * 255), "brightness from 0.5 to 127.5"),
        (lambda: psnr(GOOD - 0.6, GOOD), "brightness from -0.1 to 0.5"),
        (lambda: ssim(GOOD, GOOD + 0.500002), "brightness from 0.5 to 1"),
        (lambda: ssim(GOOD[:2], GOOD[:2]), r"\[2, 8\]"),
        (lambda: ssim(GOOD[0], GOOD[0]), r"\[8\]"),
        (lambda: ssim(GOOD[None, None], GOOD[None, None]), r"\[1, 1, 8, 8\]"),
    ],
)
def test_refusals_name_what_is_wrong_and_what_to_do(call: Callable[[], float], names: str) -> None:
    with pytest.raises(ScoreError, match=names) as caught:
        call()
    assert caught.value.hint
