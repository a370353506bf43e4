"""One accountant for all that ``privacy.mode = example`` does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.errors import UsageError
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.privacy import epsilon_spent
from fedvtc_edge.privacy.mechanism import ExampleMechanism, mechanism_of
from fedvtc_edge.privacy.schedule import RELEASE_SHARE, Schedule

Tiny = Callable[..., Config]


def config(**tables: Any) -> Config:
    tables["privacy"] = {"mode": "example", "epsilon": 8.0} | tables.get("privacy", {})
    return load_config(tables)


def schedule_of(settings: Config) -> Schedule:
    mechanism = mechanism_of(settings)
    assert isinstance(mechanism, ExampleMechanism)
    return mechanism.schedule


PLAN = schedule_of(config(method={"rounds": 3}))
SEVERAL = [
    PLAN,
    replace(PLAN, opening=0, repeated=1),
    replace(PLAN, epsilon=1.0),
    replace(PLAN, epsilon=20.0, rate=1.0),
    replace(PLAN, rate=0.01, train_steps=200, delta=1e-6),
]


@pytest.mark.parametrize("plan", SEVERAL)
def test_the_budget_is_kept_and_not_wasted(plan: Schedule) -> None:
    spent = plan.after_round(plan.rounds)
    assert 0.97 * plan.epsilon <= spent <= plan.epsilon
    assert plan.release_epsilon == RELEASE_SHARE * plan.epsilon


@pytest.mark.parametrize("plan", SEVERAL)
def test_an_independent_accountant_agrees(plan: Schedule) -> None:
    dp = pytest.importorskip("dp_accounting")
    accountant = dp.pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    number = plan.rounds * (plan.train_steps + plan.decoder_steps)
    step = dp.GaussianDpEvent(plan.noise_multiplier)
    accountant.compose(dp.PoissonSampledDpEvent(plan.rate, step), number)
    accountant.compose(dp.GaussianDpEvent(plan.release_noise), plan.releases)
    assert accountant.get_epsilon(plan.delta) == pytest.approx(
        plan.after_round(plan.rounds), abs=0.02
    )


@pytest.mark.parametrize("plan", SEVERAL[:2])
def test_the_sum_is_of_all_steps_and_releases(plan: Schedule) -> None:
    steps = [(plan.noise_multiplier, plan.rate, 1)] * (2 * plan.train_steps + plan.decoder_steps)
    steps += [(plan.release_noise, 1.0, 1)] * (plan.opening + 2 * plan.repeated)
    with np.errstate(divide="ignore"):
        expected = epsilon_spent(reversed(steps), plan.delta)
    assert plan.at_upload(2, "features") == pytest.approx(expected, 1e-6)


@pytest.mark.parametrize("plan", SEVERAL[:2])
def test_epsilon_only_grows(plan: Schedule) -> None:
    way = [plan.at_upload(0, "anchor")]
    assert way[0] == pytest.approx(plan.release_epsilon if plan.opening else 0.0, abs=1e-6)
    for number in (1, 2, 3):
        way += [plan.at_upload(number, "features"), plan.at_upload(number, "decoder")]
        assert way[-1] == plan.after_round(number)
    assert way == sorted(way)
    assert len(set(way)) == len(way)


@pytest.mark.parametrize(
    ("batch", "clients", "population", "epochs", "rate", "steps"),
    [
        (32, 5, 1000, 2, 0.16, 13),
        (32, 20, 60_000, 1, 640 / 60_000, 94),
        (100, 10, 1000, 3, 1.0, 3),
        (100, 10, 500, 3, 1.0, 3),
    ],
)
def test_rate_and_steps_are_public(
    batch: int, clients: int, population: int, epochs: int, rate: float, steps: int
) -> None:
    plan = schedule_of(
        config(
            clients={"count": clients},
            training={"batch": batch, "epochs": epochs},
            privacy={"population": population},
        )
    )
    assert (plan.rate, plan.train_steps, plan.batch) == (pytest.approx(rate), steps, batch)
    assert plan.train_steps == math.ceil(epochs / plan.rate)


def test_a_smaller_cohort_is_charged_as_if_everybody_came() -> None:
    assert schedule_of(config(clients={"cohort": 0.5})) == schedule_of(config())


@pytest.mark.parametrize("share", ["anchored", "features", "features+decoder"])
def test_releases_carry_their_part_of_the_budget(share: str) -> None:
    settings = config(method={"share": share, "rounds": 3, "latent": 16})
    check(settings)
    mechanism = mechanism_of(settings, 10)
    assert mechanism is not None
    plan, spec, claim = schedule_of(settings), mechanism.spec, mechanism.claim
    assert spec.releases == plan.releases == (1 if share == "anchored" else 3)
    assert mechanism.every_round == (share != "anchored")
    assert spec.noise_multiplier == pytest.approx(plan.release_noise, rel=1e-3)
    assert spec.noise_multiplier >= plan.release_noise
    assert claim.epsilon <= 8.0
    assert (spec.width == 16) == (share != "anchored")


@pytest.mark.parametrize(
    ("tables", "message", "hint"),
    [
        ({"method": {"name": "fedproto"}}, "'fedproto'", 'method.name = "fedvtc"'),
        ({"method": {"name": "local"}}, "'local'", 'method.name = "fedvtc"'),
        ({"engine": {"precision": "bfloat16"}}, "bfloat16", "float32"),
        ({"privacy": {"delta": 0.01}}, "privacy.delta", "lower"),
        ({"privacy": {"accountant": "gdp"}}, "no upper bound", "PRV"),
    ],
)
def test_refusals(tables: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check(config(**tables))
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2
