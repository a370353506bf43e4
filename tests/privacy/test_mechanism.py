"""Settings under which no honest ε exists are refused, with a way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.errors import ConfigError, UsageError
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.masking import threshold_of
from fedvtc_edge.privacy.claim import UNITS
from fedvtc_edge.privacy.mechanism import LocalMechanism, anchor_width, mechanism_of
from fedvtc_edge.privacy.release_spec import ReleaseSpec
from fedvtc_edge.privacy.sampler import LARGEST_SIGMA, LEAST_SIGMA
from fedvtc_edge.report import wording
from fedvtc_edge.runs.records import Summary
from fedvtc_edge.workflows.run import run

Call = Callable[..., Any]
Tiny = Callable[..., Config]

PRIVATE = "--set privacy.mode=anchored"

REFUSED = [
    ("--set method.name=fedproto", "method.name = 'fedproto'", 'method.name = "fedvtc"'),
    ("--set method.name=local", "method.name = 'local'", 'privacy.mode = "none"'),
    ("--set method.name=local-matched", "is not noised", 'method.name = "fedvtc"'),
    ("--set method.name=centralised", "is not noised", 'method.name = "fedvtc"'),
    ("--set method.share=features", "sensitivity is not bounded", 'method.share = "anchored"'),
    ("--set method.share=features+decoder", "trained on the very samples", "saw no data"),
    ("--set privacy.delta=0.002", "above 1/1000", "lower privacy.delta"),
    ("--set privacy.population=200000", "above 1/200000", "lower privacy.delta"),
    ("--set privacy.epsilon=0", "privacy.epsilon = 0", "docs/configuration.md"),
    ("--set privacy.epsilon=-1", "privacy.epsilon = -1", ""),
    ("--set privacy.epsilon=inf", "privacy.epsilon = inf", ""),
    ("--set privacy.epsilon=nan", "privacy.epsilon = nan", ""),
    ("--set privacy.epsilon=1001", "less than or equal to 1000", ""),
    ("--set privacy.epsilon=1e-9", "privacy.epsilon = 1e-09", ""),
    ("--set privacy.delta=0", "privacy.delta = 0", ""),
    ("--set privacy.delta=1", "privacy.delta = 1", ""),
    ("--set privacy.delta=-1e-5", "privacy.delta = -1e-05", ""),
    ("--set privacy.delta=1e-310", "delta 1e-310", "number of samples"),
    ("--set privacy.clip=0", "privacy.clip = 0", ""),
    ("--set privacy.clip=1e4", "privacy.clip = 10000", ""),
    ("--set privacy.clip=1e-3", "too fine for the integer grid", "raise privacy.clip"),
    ("--set privacy.population=0", "privacy.population = 0", ""),
    ("--set privacy.noise_multiplier=1", "noise is calibrated, never typed", "privacy.epsilon"),
    ("--set privacy.sigma=1", "noise is calibrated, never typed", "noise_for"),
    ("--set privacy.accountant=gdp", "no upper bound", "PRV"),
    ("--set privacy.sample_rate=0.01", "would tell that size", "privacy.population"),
    ("--set privacy.max_grad_norm=1", "has another name", "privacy.clip"),
    ("--set privacy.clip=median", "a bound taken from the data", "give a number"),
]


@pytest.mark.parametrize(("words", "message", "hint"), REFUSED)
def test_no_honest_number_exists(
    call: Call, tmp_path: Path, words: str, message: str, hint: str
) -> None:
    answer = call("run", *PRIVATE.split(), *words.split(), "--out", "run", "--quiet")
    answer.refuses(message, hint)
    assert not (tmp_path / "run").exists(), "refused before anything was written"


def test_refused_before_data_are_read(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, tmp_path: Path
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("fedvtc_edge.workflows.run.load_data", never)
    for method in ({"name": "fedproto"}, {"share": "features"}):
        with pytest.raises(ConfigError):
            run(tiny(privacy={"mode": "anchored"}, method=method), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def spec_of(config: Config, classes: int = 10) -> ReleaseSpec:
    mechanism = mechanism_of(config, classes)
    assert isinstance(mechanism, LocalMechanism)
    assert mechanism.sensitivity("replace") == 2 * mechanism.sensitivity() > 0
    assert anchor_width(config, classes) == mechanism.spec.width
    return mechanism.spec


@pytest.mark.parametrize("name", ["fedvtc", "statistics", "fedproto", "local", "centralised"])
@pytest.mark.parametrize("share", ["anchored", "features"])
def test_where_nothing_is_claimed_nothing_is_refused(name: str, share: str) -> None:
    config = load_config({"method": {"name": name, "share": share}, "privacy": {"delta": 0.5}})
    check(config)
    assert mechanism_of(config) is None
    assert anchor_width(config, 10) == config.method.anchor


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 0.1, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("delta", [1e-300, 1e-12, 1e-5, 1e-3])
@pytest.mark.parametrize("clip", [1e-3, 0.03, 1.0, 1e3])
def test_what_is_claimed_is_within_the_grid(epsilon: float, delta: float, clip: float) -> None:
    """Either the discrete noise is accounted for and the sums fit, or there is no run."""
    privacy = {"mode": "anchored", "epsilon": epsilon, "delta": delta, "clip": clip}
    config = load_config({"privacy": privacy})
    spec = spec_of(config)
    if LEAST_SIGMA <= spec.sigma <= LARGEST_SIGMA:
        check(config)
        return
    with pytest.raises(ConfigError, match="integer grid"):
        check(config)
    assert clip != 1.0 or epsilon <= 1e-3, "the default clip serves every sensible budget"


def test_the_claim_says_what_is_paid() -> None:
    privacy = {"mode": "anchored", "epsilon": 4.0, "delta": 1e-5}
    config = load_config({"privacy": privacy})
    mechanism = mechanism_of(config)
    assert mechanism is not None
    claim = mechanism.claim
    assert (claim.epsilon, claim.delta, claim.unit) == (4.0, 1e-5, "example")
    assert mechanism.epsilon_after(0) == mechanism.epsilon_at(0, "anchor") == 4.0
    assert (mechanism.spec.releases, mechanism.every_round) == (1, False)
    assert claim.mechanism is not None
    for part in ("discrete Gaussian", "noise multiplier 1.0812", "L2 sensitivity 1", "delta 1e-05"):
        assert part in claim.mechanism


def test_noise_does_not_depend_on_the_classes() -> None:
    """The claim is made before the data are read, and so before their classes are known."""
    config = load_config({"privacy": {"mode": "anchored"}})
    assert len({spec_of(config, classes).sigma for classes in (2, 10, 1000)}) == 1


@pytest.mark.parametrize("moments", ["covariance", "diagonal"])
def test_the_rule_reads_the_settings(moments: str) -> None:
    document: dict[str, Any] = {
        "privacy": {"mode": "anchored", "population": 60_000, "epsilon": 3.0, "clip": 0.5},
        "method": {"anchor": 48, "moments": moments},
        "clients": {"count": 20},
    }
    spec = spec_of(load_config(document))
    assert (spec.width, spec.second) == (48, moments == "covariance")
    assert (spec.epsilon, spec.delta, spec.clip) == (3.0, 1e-5, 0.5)


def test_delta_of_one_over_the_population_is_allowed() -> None:
    check(load_config({"privacy": {"mode": "anchored", "delta": 0.001}}))


@pytest.mark.parametrize("count", [3, 4, 5, 6, 100, 1000])
def test_masks_bear_the_dropouts_that_noise_is_made_for(count: int) -> None:
    config = load_config({"clients": {"count": count}})
    assert config.group - config.dropouts == threshold_of(count)


def test_every_refusal_is_the_users_to_mend() -> None:
    assert issubclass(ConfigError, UsageError)


def test_the_unit_reads_as_a_sentence() -> None:
    summary = Summary.model_construct(epsilon=4.0, delta=1e-5, privacy_unit=UNITS["example"])
    assert wording.privacy(summary) == (
        "ε = 4",
        "At δ = 1e-5. Protects any one training example of a client: whether it was there or not. "
        "Smaller ε is stronger.",
    )
