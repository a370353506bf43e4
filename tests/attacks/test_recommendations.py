"""Recommendations go by intervals: what is undecided is called neither good enough nor not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedvtc_edge.attacks.advice import recommendations
from fedvtc_edge.attacks.scoring.findings import Point, Policy
from fedvtc_edge.config import Config

Tiny = Callable[..., Config]


def point(minimum: int, low: float, high: float, **changes: Any) -> Point:
    fields = {"epsilon": None, "moments": "pooled", "accuracy": 0.8, **changes}
    return Point(minimum=minimum, identification=(low + high) / 2, low=low, high=high, **fields)


def settings(config: Config, *points: Point) -> str:
    return "; ".join(str(each["setting"]) for each in recommendations(config, [], points, Policy()))


ENOUGH, NOISE = "no class of fewer than 5 records", "a minimum class count is not enough"


@pytest.mark.parametrize(
    ("low", "high", "enough", "noise"),
    [
        (0.0, 0.08, True, False),
        (0.0, 0.116, False, False),  # nothing of thirty: not shown to be within a tenth
        (0.09, 0.3, False, False),
        (0.2, 0.5, False, True),
    ],
)
def test_a_minimum_count_is_enough_by_its_upper_limit(
    tiny: Tiny, low: float, high: float, enough: bool, noise: bool
) -> None:
    leaks = point(1, 0.9, 1.0)
    # What is undecided at both says nothing; a leak at the largest asks for noise.
    said = settings(tiny(), leaks, point(5, low, high), point(20, low, high))
    assert (ENOUGH in said, NOISE in said) == (enough, noise)


@pytest.mark.parametrize(("high", "told"), [(0.09, True), (0.12, False)])
def test_a_private_mode_is_recommended_by_its_upper_limit(
    tiny: Tiny, high: float, told: bool
) -> None:
    private = point(1, 0.0, high, epsilon=4.0)
    assert ('privacy.mode = "anchored"' in settings(tiny(), private)) == told


def test_the_noise_of_another_setting_is_not_recommended_to_a_run_that_has_some(
    tiny: Tiny,
) -> None:
    config = tiny(privacy={"mode": "anchored", "epsilon": 4.0})
    points = [point(1, 0.0, 0.05, epsilon=4.0), point(20, 0.5, 0.9), point(5, 0.0, 0.01)]
    said = settings(config, *points)
    assert "privacy.mode" not in said
    assert NOISE not in said
    assert "records" not in said


@pytest.mark.parametrize(("low", "told"), [(0.35, True), (0.25, False)])
def test_other_moments_are_better_if_the_intervals_are_apart(
    tiny: Tiny, low: float, told: bool
) -> None:
    points = [point(20, low, 0.6), point(20, 0.1, 0.3, moments="class")]
    said = settings(tiny(method={"moments": "covariance"}), *points)
    assert ('method.moments = "diagonal"' in said) == told
