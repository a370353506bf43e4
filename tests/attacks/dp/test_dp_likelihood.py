"""The score: against the sum of log densities, and that it learns only what is certain."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.attacks.dp.bounds import LikelihoodRatio, choose

TWO = np.repeat([0, 1], 20)
"""Two blocks of twenty numbers."""


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_the_score_is_the_difference_of_log_densities(size: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    means, scales = draw.normal(size=(2, size)), draw.uniform(0.3, 3, (2, size))
    uploads = draw.normal(size=(3, size))
    slow = [
        sum(
            math.log(NormalDist(*one).pdf(x)) - math.log(NormalDist(*zero).pdf(x))
            for x, zero, one in zip(
                upload,
                zip(means[0], scales[0], strict=True),
                zip(means[1], scales[1], strict=True),
                strict=True,
            )
        )
        for upload in uploads
    ]
    assert LikelihoodRatio(means, scales)(uploads) == pytest.approx(slow, abs=1e-6)


def worlds(seed: int, factor: float, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Only the second block's noise differs."""
    draw = np.random.default_rng(seed)
    zeros, ones = draw.normal(5, 2, (count, 40)), draw.normal(5, 2, (count, 40))
    ones[:, 20:] = 5 + (ones[:, 20:] - 5) * factor
    return zeros, ones


def test_alike_noise_is_taken_for_equal_so_that_the_score_is_linear() -> None:
    different = 0
    for seed in range(200):
        score = choose(*worlds(seed, 1.0), TWO, None)
        different += int((score.scales[0] != score.scales[1]).any())
        assert score.scales == pytest.approx(2.0, rel=0.15)
    assert different <= 1


def test_a_scale_that_surely_differs_is_learned_for_its_block_alone() -> None:
    score = choose(*worlds(0, 1.5), TWO, None)
    assert (score.scales[0, :20] == score.scales[1, :20]).all()
    assert score.scales[1, 20:] / score.scales[0, 20:] == pytest.approx(1.5, rel=0.15)


def test_what_is_known_replaces_the_means_alone() -> None:
    zeros, ones = worlds(0, 1.5)
    exact = (np.zeros(40), np.ones(40))
    blind, told = choose(zeros, ones, TWO, None), choose(zeros, ones, TWO, exact)
    assert (blind.scales == told.scales).all()
    assert (told.means == np.stack(exact)).all()
    assert blind.means == pytest.approx(np.stack([zeros.mean(0), ones.mean(0)]))


@pytest.mark.parametrize("value", [0.0, 1e-30, 7.0, -1e15])
def test_numbers_without_noise_make_a_huge_score_and_no_nan(value: float) -> None:
    zeros, ones = np.full((10, 40), value), np.full((10, 40), value)
    ones[:, 3] += 1 + abs(value)
    score = choose(zeros, ones, TWO, None)
    with np.errstate(all="raise"):
        assert (score(zeros) < -1e10).all()
        assert (score(ones) > 1e10).all()
        assert (score(ones + 0.25) == score(ones + 0.25)).all()


def test_noise_in_one_world_alone_is_told_from_none() -> None:
    draw = np.random.default_rng(0)
    zeros, ones = np.full((10, 40), 5.0), draw.normal(5, 1, (10, 40))
    score = choose(zeros, ones, TWO, None)
    assert score(zeros).max() < score(draw.normal(5, 1, (10, 40))).min()


def test_large_numbers_lose_nothing() -> None:
    """Sums of a million records, and noise in the last of their digits."""
    draw = np.random.default_rng(0)
    base, gap = np.rint(draw.normal(0, 1e12, 40)), np.rint(draw.normal(0, 10, 40))
    noise = np.rint(draw.normal(0, 10, (20, 40)))
    scales = np.full((2, 40), 10.0)
    far = LikelihoodRatio(np.stack([base, base + gap]), scales)(base + noise)
    near = LikelihoodRatio(np.stack([gap * 0, gap]), scales)(noise)
    assert far == pytest.approx(near, abs=1e-6)
