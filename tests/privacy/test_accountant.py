"""ε as others account for it, in any order, and never less than it is."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.errors import PrivacyError
from fedvtc_edge.privacy import accountant, epsilon_spent, noise_for
from fedvtc_edge.privacy.accountant import ComposedStep, _gaussian_delta, _log_half_erfc

DELTA = 1e-5


def composition(seed: int) -> tuple[list[ComposedStep], float]:
    """Steps with sampling and without, of noise that spends a sensible ε together."""
    draw = random.Random(seed)
    steps: list[ComposedStep] = []
    for place in range(draw.randint(1, 3)):
        if place == seed % 2:
            steps.append((draw.uniform(1.0, 6.0), 1.0, draw.randint(1, 4)))
        else:
            rate, number = draw.uniform(0.005, 0.6), draw.randint(1, 300)
            noise = draw.uniform(0.7, 4.0) * max(1.0, rate * math.sqrt(number))
            steps.append((noise, rate, number))
    return steps, 10 ** draw.uniform(-8, -3)


def independent(steps: list[ComposedStep], delta: float) -> float:
    """ε by Google's privacy loss distributions (connect the dots)."""
    total = None
    for noise, rate, number in steps:
        one = pld.from_gaussian_mechanism(
            noise, sampling_prob=rate, value_discretization_interval=1e-3, use_connect_dots=True
        )
        one = one.self_compose(number) if number > 1 else one
        total = one if total is None else total.compose(one)
    assert total is not None
    return float(total.get_epsilon_for_delta(delta))


# ---------------------------------------------------------------- agreement


@pytest.mark.parametrize("seed", range(14))
def test_an_independent_accountant_agrees(seed: int) -> None:
    steps, delta = composition(seed)
    ours, theirs = epsilon_spent(steps, delta), independent(steps, delta)
    assert abs(ours - theirs) < 0.02
    assert ours > theirs - 1e-3, "an upper bound"


@pytest.mark.parametrize(
    ("steps", "epsilon"),
    [
        ([(1.0, 1.0, 1)], 4.377),
        ([(5.0, 1.0, 20)], 3.849),
        ([(0.5, 1.0, 1)], 9.997),
        ([], 0.0),
        ([(1.0, 1.0, 0), (2.0, 0.1, 0)], 0.0),
        ([(1e9, 1.0, 1)], 0.0),
    ],
)
def test_known_values(steps: list[ComposedStep], epsilon: float) -> None:
    assert epsilon_spent(steps, DELTA) == pytest.approx(epsilon, abs=6e-4)


@pytest.mark.parametrize(
    ("epsilon", "noise"), [(1.0, 3.7306), (4.0, 1.0812), (8.0, 0.6002), (16.0, 0.3442)]
)
def test_known_noise(epsilon: float, noise: float) -> None:
    assert noise_for(epsilon, DELTA) == pytest.approx(noise, abs=6e-5)


def test_replacing_costs_twice_the_sensitivity() -> None:
    """As the Guarantee says: ε 1, 4 and 8 become 2.15, 9.08 and 19.1."""
    for epsilon, replaced in ((1.0, 2.15), (4.0, 9.08), (8.0, 19.1)):
        spent = epsilon_spent([(noise_for(epsilon, DELTA) / 2, 1.0, 1)], DELTA)
        assert spent == pytest.approx(replaced, abs=0.05)


def exact_delta(mu: float, epsilon: float) -> float:
    """δ = ∫₀^μ φ(ε/t − t/2) dt: positive terms only, in 60 digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
        near = mpmath.erfc((e / m - m / 2) / mpmath.sqrt(2)) / 2
        far = mpmath.exp(e) * mpmath.erfc((e / m + m / 2) / mpmath.sqrt(2)) / 2
        return float(near - far)


@hypothesis_settings(deadline=None, max_examples=150)
@given(mu=st.floats(-7, 1.6), ratio=st.floats(-3, 1.5))
def test_delta_is_never_less_than_it_is(mu: float, ratio: float) -> None:
    """In float64 it must err to the side that asks for more noise."""
    size = 10**mu
    epsilon = min(10**ratio * size, 1000.0)
    true, ours = exact_delta(size, epsilon), _gaussian_delta(size, epsilon)
    assert ours >= true
    assert ours <= true * (1 + 1e-5) + 1e-11


@pytest.mark.parametrize("x", [0.1, 3.0, 20.0, 24.9999, 25.0, 25.5, 26.0])
def test_the_tail_is_one_function(x: float) -> None:
    """Asymptotic and exact meet where float64 still has both."""
    assert _log_half_erfc(x) == pytest.approx(math.log(math.erfc(x) / 2), rel=1e-14)


def test_the_far_tail() -> None:
    mpmath = pytest.importorskip("mpmath")
    for x in (25.0, 27.5, 40.0, 1e3, 1e6):
        with mpmath.workdps(40):
            exact = float(mpmath.log(mpmath.erfc(mpmath.mpf(x)) / 2))
        assert _log_half_erfc(x) == pytest.approx(exact, rel=1e-14, abs=1e-12)


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_order_and_parts_do_not_matter(seed: int) -> None:
    steps, delta = composition(seed)
    whole = epsilon_spent(steps, delta)
    parts = [(z, q, k) for z, q, n in steps for k in (n // 2, n - n // 2)]
    random.Random(0).shuffle(parts)
    # Full releases are one sum, whose last bit depends on the order; the rest is merged.
    assert epsilon_spent(parts, delta) == pytest.approx(whole, rel=1e-9)
    assert epsilon_spent(iter(reversed(steps)), delta) == pytest.approx(whole, rel=1e-9)


@hypothesis_settings(deadline=None, max_examples=100)
@given(
    noises=st.lists(st.floats(0.3, 50.0), min_size=1, max_size=8),
    numbers=st.lists(st.integers(0, 40), min_size=8, max_size=8),
    seed=st.integers(0, 99),
)
def test_full_releases_compose_as_their_inverse_squares(
    noises: list[float], numbers: list[int], seed: int
) -> None:
    steps = [(z, 1.0, n) for z, n in zip(noises, numbers, strict=False)]
    shuffled = random.Random(seed).sample(steps, len(steps))
    split = [(z, 1.0, 1) for z, _, n in steps for _ in range(n)]
    square = sum(n / z**2 for z, _, n in steps)
    try:
        spent = epsilon_spent(steps, DELTA)
    except PrivacyError:
        assert square > 1000
        return
    assert epsilon_spent(shuffled, DELTA) == pytest.approx(spent, rel=1e-9, abs=1e-12)
    assert epsilon_spent(split, DELTA) == pytest.approx(spent, rel=1e-9, abs=1e-12)
    if square:
        assert epsilon_spent([(square**-0.5, 1.0, 1)], DELTA) == pytest.approx(spent, rel=1e-9)


@hypothesis_settings(deadline=None, max_examples=150)
@given(
    exponent=st.floats(-6, 2.99),
    tail=st.floats(-300, -0.001),
    releases=st.integers(1, 1000),
)
def test_noise_and_epsilon_invert_each_other(exponent: float, tail: float, releases: int) -> None:
    epsilon, delta = 10**exponent, 10**tail
    epsilon = min(max(epsilon, 1e-6), 1000.0)
    noise = noise_for(epsilon, delta, releases)
    spent = epsilon_spent([(noise, 1.0, releases)], delta)
    ordinary = epsilon > 1e-3 and delta > 1e-100
    # Both are bounds, worked out in floats: beyond the ordinary they agree in five digits.
    assert spent <= epsilon * (1 + (1e-9 if ordinary else 1e-5))
    if ordinary:
        assert spent == pytest.approx(epsilon, rel=1e-5, abs=1e-5)
        # and not a little too much noise
        with_less = epsilon_spent([(noise * 0.999, 1.0, releases)], delta) if epsilon < 900 else 1e9
        assert with_less > spent


def test_more_noise_spends_less() -> None:
    full = [epsilon_spent([(z, 1.0, 3)], DELTA) for z in (0.5, 0.7, 1.0, 1.5, 3.0, 10.0, 100.0)]
    assert all(more > less for more, less in pairwise(full))
    tighter = [epsilon_spent([(1.0, 1.0, 1)], d) for d in (0.3, 1e-2, 1e-5, 1e-50, 1e-300)]
    assert all(less < more for less, more in pairwise(tighter))
    noise = [noise_for(e, DELTA) for e in (1e-6, 1e-3, 0.1, 1, 4, 8, 100, 1000)]
    assert all(more > less for more, less in pairwise(noise))
    assert noise_for(4.0, DELTA, 4) == pytest.approx(2 * noise_for(4.0, DELTA))


def test_sampling_and_fewer_steps_spend_less() -> None:
    spent = [epsilon_spent([(1.0, q, 50)], DELTA) for q in (0.01, 0.1, 0.5, 1.0)]
    assert all(less < more for less, more in pairwise(spent))
    steps = [epsilon_spent([(1.0, 0.05, n)], DELTA) for n in (1, 10, 100)]
    assert all(less < more for less, more in pairwise(steps))


def test_all_but_certain_sampling_is_a_full_release() -> None:
    nearly = epsilon_spent([(1.0, 1 - 1e-12, 1)], DELTA)
    assert nearly == pytest.approx(epsilon_spent([(1.0, 1.0, 1)], DELTA), abs=0.02)


# ---------------------------------------------------------------- where Opacus has no answer


@pytest.mark.parametrize(
    ("step", "delta"),
    [
        ((1.0, 0.01, 100), 1e-100),  # its Fourier transform has no such tails
        ((1.0, 0.1, 10_000), 1e-10),  # its mesh would not fit
        ((1e200, 0.5, 1), 1e-5),  # σ² overflows
        ((0.1, 0.001, 10), 1e-5),  # exp() overflows
        ((2.0, 1 - 1e-16, 10), 1e-5),
        ((2.0, 1e-300, 10), 1e-5),
        ((1.0, 0.01, 100), 0.999),
    ],
)
def test_another_upper_bound_stands_in(step: ComposedStep, delta: float) -> None:
    spent = epsilon_spent([step], delta)
    if step[2] < 1000:  # ten thousand full releases are no claim at all
        assert 0 <= spent <= epsilon_spent([(step[0], 1.0, step[2])], delta) + 1e-9
    assert spent < 200


def test_a_stand_in_is_an_upper_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    from opacus.accountants import PRVAccountant

    steps: list[ComposedStep] = [(1.0, 0.05, 200), (2.0, 1.0, 1)]
    best = epsilon_spent(steps, DELTA)
    for answer in (math.nan, RuntimeError("Discrete mean differs"), ValueError("mesh")):

        def asked(*_: Any, answer: Any = answer, **__: Any) -> float:
            if isinstance(answer, Exception):
                raise answer
            return float(answer)

        monkeypatch.setattr(PRVAccountant, "get_epsilon", asked)
        spent = epsilon_spent(steps, DELTA)
        assert best < spent < 1.5 * best
        assert spent >= independent(steps, DELTA)


def test_the_gdp_approximation_is_nowhere() -> None:
    assert "GaussianAccountant" not in vars(accountant)
    assert "gdp" not in accountant.__file__


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "step",
    [
        (0.0, 1.0, 1),
        (-1.0, 1.0, 1),
        (math.nan, 1.0, 1),
        (math.inf, 1.0, 1),
        (1.0, 0.0, 1),
        (1.0, -0.1, 1),
        (1.0, 1.0001, 1),
        (1.0, math.nan, 1),
        (1.0, 1.0, -1),
        (1.0, 1.0, 1.5),
        (1.0, 1.0, math.nan),
        (1.0, 1.0, True),
        (1.0, 0.5, 10**400),
    ],
)
def test_impossible_steps(step: Any) -> None:
    with pytest.raises(PrivacyError, match="step with noise") as refused:
        epsilon_spent([(1.0, 1.0, 1), step], DELTA)
    assert refused.value.hint


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1.0, 2.0, math.nan, math.inf, 1e-301])
def test_impossible_deltas(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        epsilon_spent([(1.0, 1.0, 1)], delta)
    with pytest.raises(PrivacyError, match="delta"):
        noise_for(1.0, delta)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, 1001.0, 1e-7])
def test_impossible_epsilons(epsilon: float) -> None:
    with pytest.raises(PrivacyError, match="epsilon"):
        noise_for(epsilon, DELTA)


@pytest.mark.parametrize("releases", [0, -1, True, 1.5, 10**400])
def test_impossible_numbers_of_releases(releases: Any) -> None:
    with pytest.raises(PrivacyError, match="releases"):
        noise_for(1.0, DELTA, releases)


@pytest.mark.parametrize(
    "step",
    [
        (0.01, 1.0, 1),
        (1e-200, 1.0, 1),
        (5e-324, 1.0, 3),
        (1.0, 1.0, 10**15),
        (1e-200, 0.5, 1),
        (1e-3, 0.5, 3),
        (1.0, 0.01, 10**15),
    ],
)
def test_what_hides_nothing_is_no_claim(step: ComposedStep) -> None:
    with pytest.raises(PrivacyError, match="next to no noise"):
        epsilon_spent([step], DELTA)


@pytest.mark.parametrize("delta", [1e-300, 1e-12, 0.5, 0.999999])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 1.0, 30.0, 1000.0])
def test_edges(epsilon: float, delta: float) -> None:
    noise = noise_for(epsilon, delta)
    assert 0 < noise < math.inf
    assert epsilon_spent([(noise, 1.0, 1)], delta) <= epsilon * (1 + 1e-5)
