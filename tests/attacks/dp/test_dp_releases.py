"""The package's own releases: two neighbouring worlds, the real path, and half of its noise.

Their noise has no seed. What is asked of chance here fails less than once in 10,000 runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.attacks.dp.game import audit, trials_for
from fedvtc_edge.attacks.dp.releases import (
    ClientRelease,
    ExampleRelease,
    Records,
    canary,
    canary_client,
    joined,
)
from fedvtc_edge.privacy.release_spec import ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.privacy.sampler import GRID

CENTRE = np.random.default_rng(5).normal(0, 0.2, 4)
CONFIDENCE = 1 - 1e-5


def records(size: int, seed: int) -> Records:
    draw = np.random.default_rng(seed)
    z = draw.normal(size=(size, 4))
    return 2 * z / np.linalg.norm(z, axis=1, keepdims=True), draw.integers(0, 3, size)


def examples(
    *,
    second: bool = True,
    shares: int = 1,
    draws: int = 1,
    releases: int = 1,
    epsilon: float = 16.0,
) -> ExampleRelease:
    """A client of five records, with and without the worst sixth."""
    spec = ReleaseSpec(3, 4, second, 1.0, epsilon, 1e-5, releases=releases, unit=1.0, shares=shares)
    few = records(5, 0)
    worst = canary(spec, CENTRE, np.array([1.0, -2.0, 0.5, 3.0]), 2)
    return ExampleRelease(spec, (few, joined(few, worst)), CENTRE, draws)


def clients(
    *, second: bool = True, shares: int = 1, draws: int = 1, releases: int = 1
) -> ClientRelease:
    """A federation of four clients, with and without the worst fifth."""
    spec = ClientReleaseSpec(
        3, 4, second, 1.0, 16.0, 1e-5, releases=releases, unit=7.0, shares=shares
    )
    few = [records(6, seed) for seed in range(4)]
    worst = canary_client(spec, CENTRE, np.ones(4), 1)
    return ClientRelease(spec, (few, [*few, worst]), CENTRE, draws)


MADE: dict[str, Callable[[], ExampleRelease | ClientRelease]] = {
    "example": examples,
    "example, first moments": lambda: examples(second=False),
    "example, masked": lambda: examples(second=False, shares=3, draws=3),
    "example, three releases": lambda: examples(second=False, releases=3),
    "client": clients,
    "client, masked": lambda: clients(second=False, shares=2, draws=2),
    "client, two releases": lambda: clients(second=False, releases=2),
}


@pytest.mark.parametrize("name", MADE)
def test_a_true_claim_passes_at_its_worst(name: str) -> None:
    mechanism = MADE[name]()
    trials = trials_for(mechanism.claim, confidence=CONFIDENCE, power=1 - 1e-5)
    result = audit(
        mechanism,
        mechanism.claim,
        trials=trials,
        confidence=CONFIDENCE,
        control=mechanism.halved(),
    )
    assert result.verdict == "pass", result


@pytest.mark.parametrize("mechanism", [examples(shares=4), clients(shares=4)], ids=type)
def test_a_share_of_the_noise_that_is_seen_alone_is_a_leak(
    mechanism: ExampleRelease | ClientRelease,
) -> None:
    """Divided among four, and not masked: what each adds is half of what is claimed."""
    result = audit(
        mechanism, mechanism.claim, trials=150, confidence=0.99, control=mechanism.halved()
    )
    assert result.verdict == "leak"


@pytest.mark.parametrize("name", MADE)
def test_noise_is_what_the_design_says_and_half_of_it_in_the_control(name: str) -> None:
    mechanism = MADE[name]()
    control = mechanism.halved()
    assert type(control) is type(mechanism)
    assert control.spec.share * 2 == mechanism.spec.share
    assert control.spec.sigma == mechanism.spec.sigma  # it says nothing of it
    assert control.claim == mechanism.claim
    for made, factor in ((mechanism, 1.0), (control, 0.5)):
        for world in (0, 1):
            exact = made.exact(world)
            assert (exact == mechanism.exact(world)).all()
            noise = np.concatenate([made.release(world) - exact for _ in range(60)])
            wanted = factor * float(mechanism.spec.share) * math.sqrt(made.draws)
            error = 5 / math.sqrt(2 * len(noise))
            assert noise.dtype == np.int64
            assert np.std(noise) == pytest.approx(wanted, rel=error)
            assert abs(noise.mean()) < 5 * wanted / math.sqrt(len(noise))


@pytest.mark.parametrize("name", MADE)
def test_uploads_are_whole_and_of_one_size(name: str) -> None:
    mechanism = MADE[name]()
    spec = mechanism.spec
    size = spec.size * spec.releases
    assert len(mechanism.release(0)) == len(mechanism.release(1)) == size
    assert len(mechanism.blocks) == len(mechanism.exact(0)) == size
    sizes = [3, 4, 4, 4] + [10] * spec.second
    assert np.bincount(mechanism.blocks).tolist() == [spec.releases * s for s in sizes]


@pytest.mark.parametrize("name", MADE)
def test_the_worlds_differ_by_all_that_the_sensitivity_allows(name: str) -> None:
    mechanism = MADE[name]()
    gap = mechanism.exact(1) - mechanism.exact(0)
    norm = float(np.linalg.norm(gap)) / math.sqrt(mechanism.spec.releases)
    assert norm <= float(mechanism.spec.sensitivity)
    assert norm == pytest.approx(float(mechanism.spec.sensitivity), rel=1e-4)


@pytest.mark.parametrize("clip", [1e-3, 0.3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("second", [True, False])
def test_canaries_have_the_norm_of_the_clip_bound(clip: float, second: bool) -> None:
    draw = np.random.default_rng(0)
    spec = ReleaseSpec(3, 4, second, clip, 4.0, 1e-5)
    lone = ExampleRelease(
        spec, (records(0, 0), canary(spec, CENTRE, draw.normal(size=4), 0)), CENTRE
    )
    assert np.linalg.norm(lone.exact(1)) == pytest.approx(clip * GRID, rel=4 / (clip * GRID))
    assert np.linalg.norm(lone.exact(1)) <= clip * GRID
    assert not lone.exact(0).any()


@pytest.mark.parametrize("clip", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("unit", [0.2, 1.0, 75.0])
def test_canary_clients_have_the_norm_of_the_clip_bound(clip: float, unit: float) -> None:
    spec = ClientReleaseSpec(3, 4, True, clip, 4.0, 1e-5, unit=unit)
    worst = canary_client(spec, CENTRE, np.ones(4), 0)
    lone = ClientRelease(spec, ([], [worst]), CENTRE)
    assert np.linalg.norm(lone.exact(1)) == pytest.approx(clip * GRID, rel=1e-4)
    assert np.linalg.norm(lone.exact(1)) <= clip * GRID


def test_a_canary_lies_where_it_is_told_to() -> None:
    spec = ReleaseSpec(3, 4, False, 1.0, 4.0, 1e-5)
    direction = np.array([0.0, 0.0, -3.0, 0.0])
    alone = ExampleRelease(spec, (records(0, 0), canary(spec, CENTRE, direction, 1)), CENTRE).exact(
        1
    )
    counts, sums = alone[:3], alone[3:].reshape(3, 4)
    assert (counts > 0).tolist() == [False, True, False]
    assert not sums[[0, 2]].any()
    assert np.abs(sums[1] / GRID) == pytest.approx([0, 0, 0.958, 0], abs=1e-3)
    assert sums[1, 2] < 0


def test_noise_is_drawn_afresh() -> None:
    for name in ("example", "client"):
        mechanism: Any = MADE[name]()
        assert (mechanism.release(0) != mechanism.release(0)).any()
