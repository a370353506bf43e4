"""Masked sums are the plain sums, whoever drops out and when; or there is no sum."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.masking import (
    MaskedSum,
    MaskingError,
    MaskingStep,
    decode_fixed,
    encode_fixed,
    grid_bound,
    run_masked_sum,
    threshold_of,
)
from fedvtc_edge.privacy import discrete_gaussian
from fedvtc_edge.privacy.sampler import min_honest, share_of

STEPS = range(5)


def run(party: Any, drop: dict[str, int] | None = None) -> MaskedSum:
    return run_masked_sum(
        party.inputs, party.identities, party.trusted, party.context, drop, bound=party.bound
    )


def is_exact(party: Any, drop: dict[str, int]) -> None:
    result = run(party, drop)
    there = tuple(n for n in party.plan.clients if drop.get(n, 9) > MaskingStep.MASK)
    assert result.survivors == there
    assert result.suspects == ()
    assert result.total.dtype == np.int64
    assert result.total.tolist() == party.plain(there).tolist()


def test_three_clients_every_pattern(three: Any) -> None:
    is_exact(three, {})
    for name, step in itertools.product(three.plan.clients, STEPS):
        is_exact(three, {name: step})


def test_three_clients_one_too_few(three: Any) -> None:
    for pair in itertools.combinations(three.plan.clients, 2):
        for steps in itertools.product(STEPS, STEPS):
            with pytest.raises(MaskingError, match="expected 2 of 3"):
                run(three, dict(zip(pair, steps, strict=True)))


def test_ten_clients_every_assignment_of_steps(ten: Any) -> None:
    draw = random.Random(1)
    for count in range(4):
        for steps in itertools.product(STEPS, repeat=count):
            names = draw.sample(ten.plan.clients, count)
            is_exact(ten, dict(zip(names, steps, strict=True)))


def test_ten_clients_every_subset(ten: Any) -> None:
    draw = random.Random(2)
    for count in range(1, 4):
        for names in itertools.combinations(ten.plan.clients, count):
            is_exact(ten, {name: draw.choice(STEPS) for name in names})


def test_ten_clients_one_too_few(ten: Any) -> None:
    draw = random.Random(3)
    for _ in range(40):
        names = draw.sample(ten.plan.clients, 4)
        with pytest.raises(MaskingError, match="expected 7 of 10"):
            run(ten, {name: draw.choice(STEPS) for name in names})


@pytest.mark.slow
def test_a_hundred_clients(party: Any) -> None:
    crowd, draw = party(100, size=50), random.Random(4)
    names = crowd.plan.clients
    is_exact(crowd, {})
    is_exact(crowd, dict.fromkeys(names[:33], 2))
    is_exact(crowd, {name: draw.choice(STEPS) for name in draw.sample(names, 33)})
    with pytest.raises(MaskingError):
        run(crowd, dict.fromkeys(draw.sample(names, 34), draw.choice(STEPS)))


@pytest.mark.parametrize("clients", [3, 4, 5, 6])
@pytest.mark.parametrize("bound", [1, 2**20, 2**49])
def test_extremes_do_not_wrap(party: Any, clients: int, bound: int) -> None:
    some = party(clients, bound=bound)
    for extreme in (bound, -bound, 0):
        some.inputs = {name: np.full(7, extreme) for name in some.inputs}
        assert run(some).total.tolist() == [clients * extreme] * 7


def test_the_modulus_is_the_least_that_holds_the_sum(party: Any) -> None:
    for clients, bound, size in ((3, 2**31 // 3, 4), (3, 2**31 // 3 + 1, 8), (4, 2**29, 8)):
        assert party(clients, bound=bound).plan.dtype.itemsize == size


@pytest.mark.parametrize("clients", range(3, 200))
def test_the_threshold(clients: int) -> None:
    t = threshold_of(clients)
    assert clients - t == clients // 3, "a third may drop"
    assert 3 * t >= 2 * clients
    assert 3 * t > 2 * clients or clients % 3 == 0
    assert 2 * t > clients, "two lists cannot both have t honest clients behind them"


@pytest.mark.parametrize("clients", [0, 1, 2, 1001])
def test_no_threshold(clients: int) -> None:
    with pytest.raises(MaskingError):
        threshold_of(clients)


def test_real_numbers_add_up_on_the_grid(party: Any) -> None:
    some, rng = party(5, size=30, bound=grid_bound(8.0, scale_bits=20)), np.random.default_rng(6)
    real = {name: rng.uniform(-8, 8, 30) for name in some.inputs}
    some.inputs = {n: encode_fixed(x, scale_bits=20, bound=8.0) for n, x in real.items()}
    result = run(some, {"client-03": 2})
    total = decode_fixed(result.total, scale_bits=20)
    assert total == pytest.approx(sum(real[n] for n in result.survivors), abs=4 * 2.0**-21)
    assert (total * 2**20 == some.plain(result.survivors)).all()


def test_unequal_lists_of_clients(three: Any) -> None:
    inputs = {**three.inputs, "client-09": three.inputs["client-00"]}
    for given, drop in ((inputs, None), ({}, None), (three.inputs, {"nobody": 2})):
        with pytest.raises(MaskingError, match="different clients"):
            run_masked_sum(given, three.identities, three.trusted, three.context, drop)


def test_order_of_the_dictionaries_is_of_no_account(three: Any) -> None:
    backwards = dict(reversed(three.inputs.items()))
    keys = dict(reversed(three.identities.items()))
    result = run_masked_sum(backwards, keys, three.trusted, three.context)
    assert result.total.tolist() == three.plain(three.inputs).tolist()


def test_private_releases_with_shared_noise_add_up(party: Any) -> None:
    """As they are: integers, each with its share of the noise."""
    some = party(5, size=40)
    share = share_of(2.0**20, min_honest(5, dropouts=1, colluders=1))
    some.inputs = {name: discrete_gaussian(share, 40) + 1000 for name in some.inputs}
    is_exact(some, {"client-02": 2})
