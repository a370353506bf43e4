"""Whole uploads are clipped, exactly; their sum is noised once."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.errors import ConfigError, PrivacyError
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.privacy.accountant import epsilon_spent
from fedvtc_edge.privacy.claim import UNITS
from fedvtc_edge.privacy.ledger import Ledger
from fedvtc_edge.privacy.mechanism import CentralMechanism, mechanism_of
from fedvtc_edge.privacy.release import bounded_sums, check_norm, clipped_upload, estimate, noised
from fedvtc_edge.privacy.release_spec import (
    COUNT,
    TYPICAL,
    ClientReleaseSpec,
    spec_for_clients,
    unit_of,
)
from fedvtc_edge.privacy.sampler import GRID

Call = Callable[..., Any]
CENTRE = np.zeros(4)


def design_with(**changes: Any) -> ClientReleaseSpec:
    settings: dict[str, Any] = {
        "classes": 3,
        "width": 4,
        "second": True,
        "clip": 1.0,
        "epsilon": 4.0,
        "delta": 1e-5,
        "unit": 2.0,
    }
    return ClientReleaseSpec(**{**settings, **changes})


def mechanism_for(config: Config) -> CentralMechanism:
    mechanism = mechanism_of(config, 10)
    assert isinstance(mechanism, CentralMechanism)
    return mechanism


def square(upload: np.ndarray) -> int:
    return sum(int(x) ** 2 for x in upload)


def examples(size: int, seed: int, *, width: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Honest features, and some that are huge, tiny or no numbers."""
    draw = np.random.default_rng(seed)
    z = draw.standard_normal((size, width))
    z *= 10.0 ** draw.choice([-300, -3, 0, 0, 0, 3, 200], (size, 1))
    odd = draw.random(z.shape) < 0.03
    z[odd] = draw.choice([math.nan, math.inf, -math.inf, 1.7e308], int(odd.sum()))
    return z, draw.integers(0, 3, size)


# ---------------------------------------------------------------- the bound


@hypothesis_settings(deadline=None, max_examples=150)
@given(
    size=st.integers(0, 60),
    seed=st.integers(0, 2**32 - 1),
    second=st.booleans(),
    clip=st.sampled_from([1e-3, 0.3, 1.0, math.pi, 1e3]),
    unit=st.sampled_from([1e-3, 0.7, 5.0, 1e5]),
)
def test_no_upload_passes_the_bound(
    size: int, seed: int, second: bool, clip: float, unit: float
) -> None:
    """One client added or removed changes the sum by its upload, whatever it holds."""
    spec = design_with(second=second, clip=clip, unit=unit)
    upload = clipped_upload(spec, *examples(size, seed), CENTRE)
    assert (upload.dtype, upload.shape) == (np.int64, (spec.size,))
    assert square(upload) <= (Fraction(clip) * GRID) ** 2
    check_norm(spec, upload)


def test_what_is_within_the_bound_is_not_scaled() -> None:
    spec = design_with(unit=100.0)
    z, y = np.ones((5, 4)), np.array([0, 1, 2, 0, 0])
    upload = clipped_upload(spec, z, y, CENTRE)
    exact = bounded_sums(spec, z, y, CENTRE, bound=1.0) / 100.0
    np.testing.assert_array_equal(upload, np.trunc(exact))
    assert upload[0] == pytest.approx(3 * upload[1], abs=2)


def test_clipping_keeps_the_direction() -> None:
    """A slow twin: what is beyond the bound is divided by its norm."""
    spec = design_with(unit=0.1)
    z, y = examples(40, 7)
    z = np.nan_to_num(np.clip(z, -1, 1))
    upload = clipped_upload(spec, z, y, CENTRE)
    raw = [Fraction(int(v)) / Fraction(0.1) for v in bounded_sums(spec, z, y, CENTRE, bound=1.0)]
    norm = math.sqrt(sum(v * v for v in raw))
    assert norm > GRID, "far beyond the bound"
    for got, value in zip(upload, raw, strict=True):
        assert abs(int(got) - float(value) * GRID / norm) <= 1.0


def test_one_outlier_is_not_all_of_an_upload() -> None:
    spec = design_with(unit=1e3)
    z, y = np.ones((50, 4)), np.zeros(50, np.int64)
    plain = clipped_upload(spec, z, y, CENTRE)
    z[0] *= 1e100
    assert np.abs(clipped_upload(spec, z, y, CENTRE) - plain).max() < GRID / 400


def test_a_client_without_data_uploads_as_much() -> None:
    spec = design_with()
    upload = clipped_upload(spec, np.zeros((0, 4)), np.zeros(0, np.int64), CENTRE)
    assert not upload.any()
    assert upload.shape == (spec.size,)


def test_an_upload_beyond_the_bound_is_refused() -> None:
    spec = design_with()
    upload = np.zeros(spec.size, np.int64)
    upload[3] = GRID
    check_norm(spec, upload)
    upload[4] = 1  # norm² is GRID² + 1: float64 would not see it
    with pytest.raises(PrivacyError, match="the clip bound is 1"):
        check_norm(spec, upload)
    with pytest.raises(PrivacyError, match="clip bound"):
        check_norm(spec, np.full(spec.size, -(2**62)))


# ---------------------------------------------------------------- the noise


def test_noise_is_on_every_number_and_never_twice_the_same() -> None:
    spec = design_with(classes=10, width=64, second=False)
    total = np.zeros(spec.size, np.int64)
    one, other = noised(spec, total), noised(spec, total)
    assert (one != other).mean() > 0.99
    spread = np.concatenate([one, other]) / float(spec.sigma)
    assert abs(spread.std() - 1) < 6 / (2 * spread.size) ** 0.5
    assert not total.any()


def test_the_budget_is_shared_by_all_rounds() -> None:
    spec = design_with(releases=10)
    spent = [epsilon_spent([(spec.noise_multiplier, 1.0, n)], 1e-5) for n in (1, 5, 10)]
    assert spent == sorted(spent)
    assert 3.99 < spent[-1] <= 4.0


def test_the_estimate_is_in_examples() -> None:
    """Whatever the unit of an upload: counts come out as they went in, weights aside."""
    spec = design_with(width=4, second=False, unit=50.0, epsilon=1000.0)
    z, y = np.ones((90, 4)) * 0.2, np.repeat([0, 1, 2], [60, 20, 10])
    upload = clipped_upload(spec, z, y, CENTRE)
    world = estimate(spec, upload, 1, CENTRE)
    example = np.linalg.norm(bounded_sums(spec, z[:1], y[:1], CENTRE, bound=1.0)) / GRID
    per_example = bounded_sums(spec, z[:1], y[:1], CENTRE, bound=1.0)[0] / GRID / COUNT
    assert 0 < example <= 1
    expected = np.array([60, 20, 10]) * per_example
    assert world.count == pytest.approx(expected * world.count.sum() / expected.sum(), rel=0.05)


# ---------------------------------------------------------------- the public rule


def test_a_typical_client_is_at_the_bound() -> None:
    assert unit_of(200, 60_000) == TYPICAL * 300
    spec = spec_for_clients(
        classes=10,
        clients=200,
        population=60_000,
        epsilon=8.0,
        delta=1e-5,
        clip=1.0,
        widest=128,
        second=True,
    )
    assert (spec.width, spec.second, spec.unit) == (64, True, 75.0)


@pytest.mark.parametrize(
    ("clients", "epsilon", "width", "second"),
    [(1000, 8.0, 128, True), (200, 8.0, 64, True), (200, 4.0, 64, False), (200, 1.0, 32, False)],
)
def test_the_narrower_the_noisier(clients: int, epsilon: float, width: int, second: bool) -> None:
    config = load_config(
        {
            "privacy": {"mode": "client", "epsilon": epsilon},
            "clients": {"count": clients},
        }
    )
    spec = mechanism_for(config).spec
    assert isinstance(spec, ClientReleaseSpec)
    assert (spec.width, spec.second) == (width, second)


# ---------------------------------------------------------------- claims and refusals


def test_the_claim_names_its_trust(tmp_path: Any) -> None:
    config = load_config({"privacy": {"mode": "client"}, "clients": {"count": 50}})
    mechanism = mechanism_for(config)
    claim = mechanism.claim
    assert claim.mechanism is not None
    assert "trusted server" in claim.mechanism
    assert "per client" in claim.mechanism
    assert (claim.epsilon, mechanism.spec.releases, claim.unit) == (4.0, 1, "client")
    assert mechanism.is_release_of("server")
    assert not mechanism.is_release_of("client-00")
    ledger = Ledger(tmp_path / "ledger.json", mechanism)
    ledger.begin()
    ledger.record(0, "client-00", "anchor", b"clipped")
    ledger.record(0, "server", "anchor", b"noised")
    ledger.record(0, "server", "anchor", b"noised")
    with pytest.raises(PrivacyError, match="epsilon 4 is spent"):
        ledger.record(0, "server", "anchor", b"noised again")
    text = (tmp_path / "ledger.json").read_text()
    assert "no noise: for the trusted server" in text
    assert text.count('"epsilon": null') == 1
    assert text.count('"epsilon": 4.0') == 1


def test_every_round_costs() -> None:
    config = load_config(
        {"privacy": {"mode": "client"}, "method": {"share": "features", "rounds": 5}}
    )
    mechanism = mechanism_for(config)
    spent = [mechanism.epsilon_at(number, "features") for number in (1, 2, 3, 4, 5)]
    assert spent == [mechanism.epsilon_after(number) for number in (1, 2, 3, 4, 5)]
    assert mechanism.epsilon_after(0) == 0
    assert spent == sorted(set(spent))
    assert 3.99 < spent[-1] <= 4.0
    assert (mechanism.spec.releases, mechanism.every_round) == (5, True)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("--set method.share=features+decoder", "decoder's weights", '"anchored" or "features"'),
        ("--set method.name=fedproto", "is not noised", 'method.name = "fedvtc"'),
        ("--set privacy.delta=0.2", "above 1/6, one over clients.count", "lower privacy.delta"),
        ("--set privacy.clip=1e-3", "too fine for the integer grid", "raise privacy.clip"),
    ],
)
def test_no_honest_number_exists(call: Call, words: str, message: str, hint: str) -> None:
    answer = call("run", "--set", "privacy.mode=client", *words.split(), "--out", "run", "--quiet")
    answer.refuses(message, hint)


def test_delta_is_against_the_number_of_clients() -> None:
    """A thousand examples, five clients: the unit is the client."""
    document = {"privacy": {"mode": "client", "delta": 0.01}, "clients": {"count": 5}}
    check(load_config(document))
    document["privacy"]["mode"] = "anchored"
    with pytest.raises(ConfigError, match=r"one over privacy\.population"):
        check(load_config(document))


def test_the_unit_is_the_client(tiny: Callable[..., Config]) -> None:
    assert "one client" in UNITS["client"]
