"""Claims that mean nothing, claims that the settings contradict, and how claims are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.attacks.dp.claims import (
    Thresholds,
    claim_of_run,
    read_claim,
    reasons_against,
)
from fedvtc_edge.config import Config
from fedvtc_edge.errors import ConfigError, PrivacyError
from fedvtc_edge.privacy import epsilon_spent, noise_for
from fedvtc_edge.privacy.claim import Claim
from fedvtc_edge.privacy.mechanism import LocalMechanism, mechanism_of

Tiny = Callable[..., Config]

GOOD = Claim(4.0, 1e-5, "example", "add/remove", "discrete Gaussian, noise multiplier 1.0812")


def least_epsilon(config: Config, delta: float, neighbouring: str) -> float:
    mechanism = mechanism_of(config)
    assert mechanism is not None
    return mechanism.least_epsilon(delta, neighbouring)


# ---------------------------------------------------------------- of a claim alone


def test_a_good_claim_has_nothing_against_it() -> None:
    assert reasons_against(GOOD) == []
    assert reasons_against(replace(GOOD, mechanism="Laplace", delta=0.0)) == []
    assert reasons_against(replace(GOOD, accountant="PRV")) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"delta": None}, "does not say its delta"),
        ({"unit": None}, "does not say its unit"),
        ({"unit": ""}, "does not say its unit"),
        ({"neighbouring": None}, "does not say its neighbouring relation"),
        ({"mechanism": None}, "does not say its mechanism"),
        ({"batch_norm": True}, "BatchNorm"),
        ({"decoder_outside_ledger": True}, "decoder"),
        ({"clip_from_data": True}, "clip bound is taken from the data"),
        ({"accountant": "GDP"}, "no upper bound"),
        ({"accountant": "Opacus' gdp accountant"}, "no upper bound"),
        ({"accountant": "Gaussian DP, central limit"}, "no upper bound"),
        ({"accountant": "gaussian differential privacy"}, "no upper bound"),
        ({"accountant": "CLT"}, "no upper bound"),
        ({"delta": 0.0}, "no epsilon at delta 0"),
    ],
)
def test_each_defect_is_named(changes: dict[str, Any], reason: str) -> None:
    [found] = reasons_against(replace(GOOD, **changes))
    assert reason in found


def test_all_defects_are_named_together() -> None:
    worst = Claim(1.0, None, None, None, None, "gdp", True, True, True)
    assert len(reasons_against(worst)) == 8


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan"), 1001.0])
def test_an_epsilon_that_is_none_is_refused(epsilon: float) -> None:
    with pytest.raises(PrivacyError, match="a claim of epsilon") as caught:
        replace(GOOD, epsilon=epsilon)
    assert caught.value.hint


@pytest.mark.parametrize("delta", [-1e-9, 1.0, float("nan")])
def test_a_delta_that_is_none_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyError, match="a claim of delta"):
        replace(GOOD, delta=delta)


@pytest.mark.parametrize(
    ("mechanism", "gaussian"),
    [
        ("Gaussian", True),
        ("gaussian noise of scale 1", True),
        ("discrete Gaussian on the sum over the clients", True),
        ("discrete-gaussian", True),
        ("DP-SGD, noise multiplier 1; discrete Gaussian, noise multiplier 2", False),
        ("sampled Gaussian", False),
        ("Laplace", False),
        ("", False),
        (None, False),
    ],
)
def test_only_plain_gaussian_noise_has_the_exact_curve(
    mechanism: str | None, gaussian: bool
) -> None:
    assert replace(GOOD, mechanism=mechanism).gaussian is gaussian


# ---------------------------------------------------------------- of a run

ANCHORED = {"mode": "anchored", "epsilon": 4.0}
CLIENT = {"mode": "client", "epsilon": 4.0}


def test_a_runs_own_claim_is_valid(tiny: Tiny) -> None:
    for privacy, changes in (
        (ANCHORED, {}),
        (CLIENT, {}),
        (CLIENT, {"method": {"share": "features"}}),
        ({"mode": "anchored", "epsilon": 0.3}, {}),
        (ANCHORED, {"transport": {"masking": True}}),
    ):
        config = tiny(privacy=privacy, **changes)
        claim = claim_of_run(config)
        assert claim is not None
        assert claim.epsilon == privacy["epsilon"]
        assert claim.gaussian
        assert reasons_against(claim, config) == []


def test_a_claim_over_training_is_valid_and_not_of_one_gaussian(tiny: Tiny) -> None:
    """Of so small a population every example is in every batch, and the accountant is exact."""
    config = tiny(privacy={"mode": "example", "epsilon": 8.0, "population": 90})
    claim = claim_of_run(config)
    assert claim is not None
    assert (claim.unit, claim.gaussian) == ("example", False)
    assert reasons_against(claim, config) == []
    [found] = reasons_against(replace(claim, epsilon=claim.epsilon * 0.9), config)
    assert "less than the run's noise gives" in found
    assert least_epsilon(config, 1e-5, "replace") > 2 * claim.epsilon


def test_what_is_sampled_counts_once_and_what_is_not_twice(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    mostly_sampled, mostly_whole = [(1.0, 0.1, 5), (4.0, 1.0, 1)], [(9.0, 0.1, 5), (1.0, 1.0, 1)]
    for steps, least in (
        (mostly_sampled, epsilon_spent(mostly_sampled, 1e-5)),
        (mostly_whole, epsilon_spent([(0.5, 1.0, 1)], 1e-5)),
    ):
        monkeypatch.setattr(LocalMechanism, "steps", lambda self, s=steps: s)
        assert least_epsilon(tiny(privacy=ANCHORED), 1e-5, "replace") == least


def test_without_privacy_nothing_is_claimed_nor_can_be(tiny: Tiny) -> None:
    assert claim_of_run(tiny()) is None
    assert reasons_against(GOOD, tiny()) == ["the run adds no noise: its privacy.mode is 'none'"]


def test_decoders_that_are_sent_stand_in_no_ledger(tiny: Tiny) -> None:
    found = reasons_against(GOOD, tiny(method={"share": "features+decoder"}))
    assert any("decoders" in reason for reason in found)


def test_units_must_agree(tiny: Tiny) -> None:
    for privacy, unit in ((ANCHORED, "client"), (CLIENT, "example")):
        [found] = reasons_against(replace(GOOD, unit=unit, delta=1e-6), tiny(privacy=privacy))
        assert f"its unit is one {unit}" in found


@pytest.mark.parametrize(
    ("privacy", "unit", "number"), [(ANCHORED, "example", 1000), (CLIENT, "client", 3)]
)
def test_delta_must_not_be_above_one_over_the_number_of_units(
    tiny: Tiny, privacy: dict[str, Any], unit: str, number: int
) -> None:
    config = tiny(privacy=privacy)
    for delta, bad in ((1.01 / number, True), (0.5, True), (1 / number, False)):
        found = reasons_against(replace(GOOD, unit=unit, delta=delta), config)
        assert [f"above 1/{number}" in reason for reason in found] == [True] * bad


@pytest.mark.parametrize(
    ("neighbouring", "delta", "least"),
    [
        ("add/remove", 1e-5, 4.0),
        ("replace", 1e-5, 9.08),
        ("add/remove", 1e-9, 5.66),
        ("add/remove", 1e-4, 3.47),
    ],
)
@pytest.mark.parametrize("privacy", [ANCHORED, CLIENT])
def test_no_claim_is_below_what_the_noise_gives(
    tiny: Tiny, privacy: dict[str, Any], neighbouring: str, delta: float, least: float
) -> None:
    config = tiny(privacy=privacy)
    unit = "client" if privacy is CLIENT else "example"
    claim = replace(GOOD, unit=unit, neighbouring=neighbouring, delta=delta)
    needed = least_epsilon(config, delta, neighbouring)
    assert needed == pytest.approx(least, abs=0.01)
    assert needed == pytest.approx(
        epsilon_spent([(noise_for(4.0, 1e-5) / (1 + (neighbouring == "replace")), 1.0, 1)], delta),
        rel=1e-3,
    )
    assert reasons_against(replace(claim, epsilon=needed), config) == []
    [found] = reasons_against(replace(claim, epsilon=needed * 0.999), config)
    assert "less than the run's noise gives" in found
    assert neighbouring in found
    printed = float(found.partition("gives: ")[2].partition(" at")[0])
    assert reasons_against(replace(claim, epsilon=printed), config) == []


def test_replacing_under_the_epsilon_of_adding_is_invalid(tiny: Tiny) -> None:
    for epsilon, twice in ((1.0, 2.15), (4.0, 9.08), (8.0, 19.1)):
        config = tiny(privacy={"mode": "anchored", "epsilon": epsilon})
        claim = replace(GOOD, neighbouring="replace", epsilon=epsilon)
        [found] = reasons_against(claim, config)
        assert "for neighbours by replace" in found
        assert least_epsilon(config, 1e-5, "replace") == pytest.approx(twice, rel=5e-3)


def test_where_no_epsilon_exists_no_claim_stands(tiny: Tiny) -> None:
    config = tiny(privacy={"mode": "anchored", "epsilon": 900.0})
    claim = replace(GOOD, neighbouring="replace", epsilon=1000.0)
    [found] = reasons_against(claim, config)
    assert "none that can be shown" in found
    [found] = reasons_against(replace(GOOD, mechanism="our own", delta=0.0), config)
    assert "none that can be shown" in found


# ---------------------------------------------------------------- as a file

FULL = """
epsilon = 4
delta = 1e-5
unit = "client"
neighbouring = "replace"
mechanism = "Gaussian"
accountant = "PRV"
clip_from_data = true
batch_norm = true
decoder_outside_ledger = true
max_identification = 0.1
max_membership_tpr = 0.05
max_epsilon = 8.0
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "claim.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_file_says_all_there_is_to_say(tmp_path: Path) -> None:
    claim, thresholds = read_claim(written(tmp_path, FULL))
    assert claim == Claim(4.0, 1e-5, "client", "replace", "Gaussian", "PRV", True, True, True)
    assert thresholds == Thresholds(0.1, 0.05, 8.0)


def test_what_a_file_leaves_out_makes_the_claim_invalid_not_the_file(tmp_path: Path) -> None:
    claim, thresholds = read_claim(written(tmp_path, "epsilon = 1"))
    assert thresholds == Thresholds()
    assert claim is not None
    assert len(reasons_against(claim)) == 4


def test_thresholds_may_stand_alone(tmp_path: Path) -> None:
    claim, thresholds = read_claim(written(tmp_path, "max_epsilon = 2"))
    assert claim is None
    assert thresholds == Thresholds(max_epsilon=2.0)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("epsilom = 1", "unknown key epsilom", "did you mean epsilon?"),
        ("epsilon = 1\nneighboring = 'replace'", "unknown key neighboring", "neighbouring?"),
        ("max_epsilom = 1", "unknown key max_epsilom", "did you mean max_epsilon?"),
        ("max_epsilon = 1\nwhatever = 1", "unknown key whatever", "valid keys: epsilon"),
        ("[claim]\nepsilon = 1", "unknown key claim", ""),
        ("", "epsilon is missing", "nothing is claimed"),
        ("delta = 1e-5", "epsilon is missing", "thresholds may stand alone"),
        ("epsilon = '4'", "epsilon = '4': expected a valid number", "epsilon = 4.0"),
        ("epsilon = 0", "epsilon = 0: expected greater than 0", ""),
        ("epsilon = inf", "epsilon = inf", ""),
        ("epsilon = nan", "epsilon = nan", ""),
        ("epsilon = 1e4", "less than or equal to 1000", ""),
        ("epsilon = true", "epsilon = True", ""),
        ("epsilon = 1\ndelta = 1", "delta = 1: expected less than 1", ""),
        ("epsilon = 1\ndelta = -1.0", "delta = -1.0", ""),
        ("epsilon = 1\nunit = 'exmaple'", "expected example or client", "did you mean example?"),
        ("epsilon = 1\nunit = 'zzz'", "unit = 'zzz'", "valid values: example, client"),
        ("epsilon = 1\nunit = 1", "unit = 1", "valid values"),
        ("epsilon = 1\nneighbouring = 'replaced'", "add/remove or replace", "mean replace?"),
        ("epsilon = 1\nbatch_norm = 'no'", "batch_norm = 'no'", ""),
        ("epsilon = 1\nbatch_norm = 0", "batch_norm = 0", ""),
        ("epsilon = 1\nmechanism = ['a']", "mechanism = ['a']", ""),
        (f"epsilon = 1\nmechanism = '{'x' * 500}'", "mechanism = 'xxx", ""),
        ("max_identification = 1.5", "max_identification = 1.5", ""),
        ("max_membership_tpr = -0.1", "max_membership_tpr = -0.1", ""),
        ("max_epsilon = 'low'", "max_epsilon = 'low'", ""),
        ("epsilon = ", "is not TOML", "toml.io"),
        ("epsilon = 1 #" + "x" * 64_000, "larger than 64000 bytes", ""),
    ],
)
def test_a_bad_file_is_refused_with_a_way_out(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_claim(written(tmp_path, text))
    assert message in str(caught.value)
    assert "claim.toml" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert hint in caught.value.hint
    assert caught.value.hint


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_claim(tmp_path / "none.toml")
