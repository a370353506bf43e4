"""Three famous mistakes are refuted; what is right instead passes."""

from __future__ import annotations

from collections import Counter
from functools import cache, partial

import pytest
from planted_bugs import Noised, averaged, clipped, mu_of, trained

from fedvtc_edge.attacks.dp.bounds import epsilon_of
from fedvtc_edge.attacks.dp.game import audit, trials_for

WRONG = {
    "extractor retrained, natural image": partial(trained, "natural", retrained=True),
    "extractor retrained, wrong label": partial(trained, "mislabelled", retrained=True),
    "extractor retrained, noise image": partial(trained, "noise", retrained=True),
    "clipped class by class": partial(clipped, per_class=True),
    "scaled by a private count": partial(averaged, private=True, moved=True, records=4),
    "scale alone is private": partial(averaged, private=True, moved=False, records=4),
}
RIGHT = {
    "extractor frozen, natural image": partial(trained, "natural", retrained=False),
    "extractor frozen, noise image": partial(trained, "noise", retrained=False),
    "clipped as a whole": partial(clipped, per_class=False),
    "scaled by a public count": partial(averaged, private=False, moved=True, records=4),
}
CONFIDENCE = 0.99


@cache
def built(name: str, epsilon: float) -> Noised:
    return {**WRONG, **RIGHT}[name](epsilon)


def verdicts(name: str, epsilon: float, seeds: int, *, known: bool = True) -> Counter[str]:
    mechanism = built(name, epsilon)
    claim = mechanism.claim
    trials = trials_for(claim, confidence=CONFIDENCE)
    found: Counter[str] = Counter()
    for seed in range(seeds):
        one = mechanism.seeded(seed)
        control = one.halved()
        result = audit(one, claim, trials=trials, confidence=CONFIDENCE, control=control)
        found[result.verdict] += 1
    return found


@pytest.mark.parametrize("name", WRONG)
def test_a_planted_bug_is_refuted(name: str) -> None:
    assert verdicts(name, 4.0, 20) == {"leak": 20}


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_mechanism_passes(name: str) -> None:
    assert verdicts(name, 4.0, 20)["pass"] >= 19


@pytest.mark.parametrize("name", ["extractor retrained, natural image", "scale alone is private"])
def test_a_bug_is_refuted_at_a_small_epsilon_too(name: str) -> None:
    assert verdicts(name, 1.0, 3) == {"leak": 3}


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_the_right_mechanism_passes_in_95_of_100(name: str) -> None:
    assert verdicts(name, 4.0, 100)["pass"] >= 95


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in WRONG if "wrong label" not in name and "noise image" not in name]
)
def test_a_planted_bug_is_refuted_in_100_of_100(name: str) -> None:
    assert verdicts(name, 4.0, 100) == {"leak": 100}


def test_the_bugs_are_as_bad_as_they_are_said_to_be() -> None:
    """ε that is claimed, and ε that is true, on a client of 95 records."""
    true = {
        kind: epsilon_of(mu_of(trained(kind, 1.0, retrained=True)), 1e-5)
        for kind in ("natural", "mislabelled", "noise")
    }
    assert true == pytest.approx({"natural": 6.2, "mislabelled": 6.1, "noise": 35.3}, abs=0.1)
    assert mu_of(clipped(4.0, per_class=True)) == pytest.approx(
        10**0.5 * mu_of(clipped(4.0, per_class=False)), rel=1e-3
    )


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_mechanism_is_attacked_where_it_is_weakest(name: str) -> None:
    """Its true ε is what is claimed, so that a pass is no matter of a soft target."""
    assert 3.8 < epsilon_of(mu_of(built(name, 4.0)), 1e-5) <= 4.0
