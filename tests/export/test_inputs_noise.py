"""Synthesis noise: one public stream per seed, and another generator is noticed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.errors import BundleError
from fedvtc_edge.export import inputs

seeds = st.integers(0, inputs.MAX_SEED)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1])
def test_noise_is_literally_what_the_manifest_says(seed: int) -> None:
    generator = np.random.Generator(np.random.Philox(key=seed))
    expected = generator.standard_normal((5, 3), dtype=np.float32)
    got = inputs.draw(seed, 5, 3)
    assert got.dtype == np.float32
    assert got.tobytes() == expected.tobytes()
    assert inputs.draw(np.uint64(seed), 5, 3).tobytes() == expected.tobytes()


def test_golden_noise() -> None:
    """The stream itself: changing it changes every image of every seed."""
    promised = inputs.describe_noise(8)
    assert (promised.golden.seed, promised.golden.count) == (250801669, 64)
    digest = "0c2e969cce63c25cf2ade661559714ea08d4bacd55c55557becf218262cadba6"
    assert promised.golden.sha256 == digest
    data = inputs.draw(250801669, 64, 8).astype("<f4").tobytes()
    assert hashlib.sha256(data).hexdigest() == digest
    inputs.check(promised, 8)


@hypothesis_settings(deadline=None, max_examples=50)
@given(seed=seeds, count=st.integers(1, 40), fewer=st.integers(0, 40), latent=st.integers(1, 20))
def test_fewer_rows_are_a_prefix_of_more(seed: int, count: int, fewer: int, latent: int) -> None:
    fewer = min(fewer, count)
    whole = inputs.draw(seed, count, latent)
    assert whole[:fewer].tobytes() == inputs.draw(seed, fewer, latent).tobytes()


@hypothesis_settings(deadline=None, max_examples=50)
@given(one=seeds, other=seeds)
def test_seeds_differ(one: int, other: int) -> None:
    equal = np.array_equal(inputs.draw(one, 2, 8), inputs.draw(other, 2, 8))
    assert equal == (one == other)


def test_it_is_standard_normal() -> None:
    drawn = inputs.draw(7, 4000, 25)
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1) < 0.02
    assert 3.5 < np.abs(drawn).max() < 7


@pytest.mark.parametrize(
    "seed", [True, np.True_, -1, 2**63, 2**200, 0.0, 1.5, np.float32(1), "0", None, [0], np.nan]
)
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    with pytest.raises(BundleError, match="seed"):
        inputs.draw(seed, 2, 3)


PHILOX = np.random.Philox


@pytest.mark.parametrize(
    "other", [np.random.PCG64, np.random.MT19937, lambda key: PHILOX(key=key ^ 1)]
)
def test_a_numpy_that_draws_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, other: Any
) -> None:
    promised = inputs.describe_noise(8)
    monkeypatch.setattr(np.random, "Philox", lambda key: other(key))
    with pytest.raises(BundleError, match=rf"numpy {np.__version__} draws other noise") as error:
        inputs.check(promised, 8)
    assert "tools" in error.value.hint


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"count": 63}, {"sha256": hashlib.sha256(b"").hexdigest()}]
)
def test_every_part_of_the_sample_counts(change: dict[str, Any]) -> None:
    promised = inputs.describe_noise(8)
    golden = replace(promised.golden, **change)
    with pytest.raises(BundleError, match="other noise"):
        inputs.check(replace(promised, golden=golden), 8)


def test_noise_of_another_width_is_another_sample() -> None:
    with pytest.raises(BundleError, match="other noise"):
        inputs.check(inputs.describe_noise(8), 9)
