"""The game: true claims stand, false ones fall, and what was not noticed is not called safe."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from planted_bugs import Noised

from fedvtc_edge.attacks.dp.bounds import BEYOND
from fedvtc_edge.attacks.dp.game import (
    LOOKS,
    MechanismAudit,
    audit,
    audit_scores,
    trials_for,
)
from fedvtc_edge.errors import FedVTCError, PrivacyError, ScoreError
from fedvtc_edge.privacy import noise_for
from fedvtc_edge.privacy.claim import Claim

DELTA = 1e-5
Array = NDArray[Any]


def claim_for(epsilon: float, mechanism: str = "Gaussian") -> Claim:
    return Claim(epsilon, DELTA, "example", "add/remove", mechanism)


def apart(mu: float, *, epsilon: float = 4.0, size: int = 12, **changes: Any) -> Noised:
    """Noise of 1000, and worlds that differ by μ of it, in all numbers alike."""
    zero = np.rint(np.random.default_rng(9).normal(0, 1e5, size))
    gap = np.rint(mu * 1000 / math.sqrt(size))
    mechanism = Noised(
        (zero, zero + gap), (1000.0, 1000.0), np.zeros(size, np.int64), claim_for(epsilon)
    )
    return replace(mechanism, **changes)


def played(mechanism: Noised, *, confidence: float = 0.95, **options: Any) -> MechanismAudit:
    options = {"trials": 80, "control": mechanism.halved(), **options}
    return audit(mechanism, mechanism.claim, confidence=confidence, **options)


MU = 1 / noise_for(4.0, DELTA)
"""At which ε is 4."""


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [1, 30])
@pytest.mark.parametrize("mu", [0.0, MU])
def test_a_true_claim_is_refuted_no_more_often_than_promised(
    mu: float, size: int, known: bool
) -> None:
    """At the very ε that is claimed, and with a loose promise, which can be seen to break."""
    mechanism, confidence, seeds = apart(mu, size=size, known=known), 0.7, 50
    leaks = sum(
        played(mechanism.seeded(seed), confidence=confidence, trials=30).verdict == "leak"
        for seed in range(seeds)
    )
    assert leaks / seeds <= 1 - confidence


def test_half_of_the_noise_is_caught_and_so_the_true_claim_passes() -> None:
    trials = trials_for(claim_for(4.0), confidence=0.99)
    results = [played(apart(MU).seeded(seed), confidence=0.99, trials=trials) for seed in range(20)]
    assert [result.verdict for result in results] == ["pass"] * 20
    for result in results:
        assert result.lower_bound <= 4 < result.control.best
        assert result.bounds.most_mu is not None
        assert result.bounds.most_mu < 2 * MU
        assert result.trials in {math.ceil(times * trials) for times, _ in LOOKS}
        assert result.confidence == 0.99


def test_half_of_the_noise_alone_is_a_leak() -> None:
    assert played(apart(2 * MU)).verdict == "leak"


def test_too_few_trials_are_inconclusive_and_not_a_pass() -> None:
    mu = 1 / noise_for(0.5, DELTA)
    results = [played(apart(mu, epsilon=0.5).seeded(seed), trials=8) for seed in range(5)]
    assert [result.verdict for result in results] == ["inconclusive"] * 5


def test_the_same_seed_gives_the_same_result_and_another_another() -> None:
    mechanism = apart(MU)
    assert played(mechanism.seeded(3)) == played(mechanism.seeded(3))
    assert played(mechanism.seeded(3)) != played(mechanism.seeded(4))


@pytest.mark.parametrize("known", [True, False])
def test_equal_worlds_prove_nothing(known: bool) -> None:
    result = played(apart(0.0, known=known))
    assert result.verdict == "inconclusive"
    assert result.lower_bound < 1


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_no_noise_at_all_is_no_nan(known: bool, mu: float) -> None:
    result = played(apart(mu, scales=(0.0, 0.0), known=known))
    assert result.verdict == ("leak" if mu else "inconclusive")
    assert result.lower_bound == (BEYOND if mu else 0.0)


def test_no_noise_refutes_the_largest_claim() -> None:
    assert played(apart(1.0, scales=(0.0, 0.0), epsilon=1000.0)).verdict == "leak"


def test_what_is_said_to_be_known_never_enters_a_bound() -> None:
    """An auditor who believes in worlds far apart finds nothing where they are equal."""

    @dataclass(frozen=True, eq=False)
    class Lying(Noised):
        def exact(self, world: int) -> Array:
            return self.means[world] + 1e9 * world

    honest = apart(0.0)
    result = played(Lying(**{k: v for k, v in vars(honest).items() if k != "_stream"}))
    assert result.lower_bound < 1


def test_a_scale_that_depends_on_the_record_is_a_leak_though_no_mean_moves() -> None:
    result = played(apart(0.0, size=64, scales=(1000.0, 1300.0)))
    assert result.verdict == "leak"


def test_a_rare_blatant_leak_is_counted_where_no_mean_would_show_it() -> None:
    """One upload in three of world 1 says so outright, and no Gaussian is claimed."""

    @dataclass(frozen=True, eq=False)
    class Rare(Noised):
        def release(self, world: int) -> Array:
            upload = super().release(world)
            if world and self._stream.random() < 1 / 3:  # type: ignore[attr-defined]
                upload[0] += 1e7
            return upload

    rare = Rare(**{k: v for k, v in vars(apart(0.1)).items() if k != "_stream"} | {"known": False})
    claimed = claim_for(1.0, "some noise of our own")
    result = audit(rare, claimed, trials=400, confidence=0.95, control=rare.halved())
    assert result.verdict == "leak"
    assert result.bounds.gaussian is None


def test_only_counting_bounds_what_is_not_gaussian() -> None:
    mechanism = apart(2 * MU)
    blind = audit(
        mechanism.seeded(0),
        claim_for(4.0, "Laplace"),
        trials=80,
        confidence=0.95,
        control=mechanism.halved(),
    )
    assert blind.verdict == "inconclusive"


def test_more_attacks_make_each_bound_more_careful() -> None:
    # So few that all looks are one, or they might stop at different ones.
    loose = apart(5 * MU, epsilon=200.0)
    one, many = (played(loose, attacks=attacks, trials=8, most=8) for attacks in (1, 20))
    assert one.bounds.mu is not None
    assert many.bounds.mu is not None
    assert many.bounds.mu < one.bounds.mu
    assert many.lower_bound < one.lower_bound


def test_trials_grow_with_secrecy() -> None:
    needed = [trials_for(claim_for(epsilon), confidence=0.95) for epsilon in (1.0, 4.0, 16.0)]
    assert needed == sorted(needed, reverse=True)
    assert trials_for(claim_for(1.0), confidence=0.99) > needed[0]
    assert trials_for(claim_for(1.0), confidence=0.95, attacks=3) > needed[0]


def test_what_is_decided_early_costs_less() -> None:
    """A blatant leak is seen at the first look, and an audit without means ends undecided."""
    blatant = played(apart(8 * MU), trials=200)
    assert (blatant.verdict, blatant.trials) == ("leak", 50)
    poor = played(apart(MU), trials=200, most=10)
    assert (poor.verdict, poor.trials) == ("inconclusive", 10)


def test_the_errors_of_all_looks_add_up_to_one() -> None:
    assert sum(part for _, part in LOOKS) == 1
    assert all(part > 0 for _, part in LOOKS)


def test_a_bound_may_be_looked_at_at_any_time() -> None:
    """A true claim, looked at five times at 0.7: refuted at any of them in three of ten at most."""
    seeds, stream = 60, np.random.default_rng(1)
    leaks = 0
    for _ in range(seeds):

        def draw(number: int, mu: float = MU) -> tuple[Array, Array]:
            return stream.normal(0, 1, number), stream.normal(mu, 1, number)

        # Its control is as it is itself, so that nothing stops it but a refutation.
        result = audit_scores(draw, draw, claim_for(4.0), trials=20, confidence=0.7)
        leaks += result.verdict == "leak"
    assert leaks / seeds <= 0.3


def test_half_of_the_noise_does_not_pass() -> None:
    """Its control is caught as often as it is itself: a pass needs that half is excluded."""
    for seed in range(40):
        half = apart(2 * MU).seeded(seed)
        trials = trials_for(claim_for(4.0), confidence=0.95)
        assert played(half, trials=trials).verdict != "pass"


GOOD = apart(MU)


@pytest.mark.parametrize(
    ("options", "kind", "names"),
    [
        ({"trials": 1}, ScoreError, "1 trials"),
        ({"trials": 7}, ScoreError, "7 trials"),
        ({"confidence": 0.0}, ScoreError, "confidence = 0.0"),
        ({"confidence": 1.0}, ScoreError, "confidence = 1.0"),
        ({"confidence": math.nan}, ScoreError, "confidence = nan"),
        ({"attacks": 0}, ScoreError, "0 attacks"),
        ({"control": apart(MU, size=5)}, PrivacyError, r"shape \[5\]"),
    ],
)
def test_wrong_inputs_are_named(
    options: dict[str, Any], kind: type[FedVTCError], names: str
) -> None:
    with pytest.raises(kind, match=names) as caught:
        played(GOOD, **options)
    assert caught.value.hint


def test_a_length_that_tells_is_refused() -> None:
    zero, one = np.zeros(12), np.zeros(13)
    odd = replace(GOOD, means=(zero, one), known=True)
    with pytest.raises(PrivacyError, match=r"shape \[13\] of world 1, expected \[12\]"):
        played(odd)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    zero = np.full(12, bad)
    for known in (True, False):
        with pytest.raises(ScoreError, match="not finite"):
            played(replace(GOOD, means=(zero, zero), known=known))


def test_claims_without_a_delta_or_with_none_that_fits_are_refused() -> None:
    for delta, names in ((None, "without delta"), (0.0, "delta 0")):
        claim = Claim(4.0, delta, "example", "add/remove", "Gaussian")
        with pytest.raises(PrivacyError, match=names):
            audit(GOOD, claim, trials=8, confidence=0.95, control=GOOD)
