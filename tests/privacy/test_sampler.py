"""The sampler draws what it says, exactly, and nobody can foresee or repeat it.

It reads the operating system's entropy and takes no seed, so these tests are random.
Every bound is one that an exact sampler passes in all but one of a million runs.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedvtc_edge.errors import PrivacyError
from fedvtc_edge.privacy import discrete_gaussian
from fedvtc_edge.privacy.sampler import MAX_SIGMA, _Entropy, _floor_root, _laplace

SCALES = [0.3, 1.0, 2.5, Fraction(7, 3), 10.0]
DRAWS = 60_000
ONCE_IN_A_LIFETIME = 1e-8


def ids(scale: Any) -> str:
    return str(scale)


@pytest.fixture(scope="module")
def drawn() -> Callable[[float | Fraction], np.ndarray]:
    kept: dict[float | Fraction, np.ndarray] = {}

    def draw(scale: float | Fraction) -> np.ndarray:
        if scale not in kept:
            kept[scale] = discrete_gaussian(scale, DRAWS)
        return kept[scale]

    return draw


def mass(scale: float | Fraction) -> tuple[np.ndarray, np.ndarray]:
    """The integers within 12 σ, and the probability of each."""
    reach = int(12 * scale) + 8
    values = np.arange(-reach, reach + 1)
    weights = np.exp(-(values**2) / (2 * float(scale) ** 2))
    return values, weights / weights.sum()


def fits(observed: Counter[int], expected: dict[int, float], draws: int) -> None:
    """A χ² test; values expected fewer than ten times count as one."""
    seen, due, rest_seen, rest_due = [], [], draws, float(draws)
    for value, chance in expected.items():
        if draws * chance >= 10:
            seen.append(observed[value])
            due.append(draws * chance)
            rest_seen -= observed[value]
            rest_due -= draws * chance
    seen.append(rest_seen)
    due.append(max(rest_due, 1.0))
    square = float(np.sum(np.square(np.subtract(seen, due)) / due))
    assert square < stats.chi2.isf(ONCE_IN_A_LIFETIME, len(due) - 1)


# ---------------------------------------------------------------- the distribution


@pytest.mark.parametrize("scale", SCALES, ids=ids)
def test_every_integer_comes_as_often_as_it_should(
    drawn: Callable[[float | Fraction], np.ndarray], scale: float | Fraction
) -> None:
    values, chances = mass(scale)
    expected = dict(zip(values.tolist(), chances.tolist(), strict=True))
    fits(Counter(drawn(scale).tolist()), expected, DRAWS)


@pytest.mark.parametrize("scale", SCALES, ids=ids)
def test_the_tails_are_no_fatter(
    drawn: Callable[[float | Fraction], np.ndarray], scale: float | Fraction
) -> None:
    values, chances = mass(scale)
    for far in (2, 3, 4):
        chance = float(chances[np.abs(values) > far * scale].sum())
        beyond = int((np.abs(drawn(scale)) > far * scale).sum())
        assert beyond <= stats.binom.isf(1e-8, DRAWS, chance)
        assert beyond >= stats.binom.ppf(1e-8, DRAWS, chance)


@pytest.mark.slow
def test_the_variance_is_exact_within_one_per_cent() -> None:
    """σ = 3 draws five hundred thousand times: 1 % is five standard errors."""
    draws, scale = 520_000, 3.0
    values, chances = mass(scale)
    variance = float((chances * values**2).sum())
    error = math.sqrt(float((chances * (values**2 - variance) ** 2).sum()) / draws) / variance
    assert 5 * error < 0.01
    x = discrete_gaussian(scale, draws).astype(float)
    assert np.square(x).mean() == pytest.approx(variance, rel=0.01)
    assert abs(x.mean()) < 5.5 * scale / math.sqrt(draws)


@pytest.mark.parametrize("scale", [2.0**30, 2.0**50, 1_133_756.61])
def test_huge_scales(scale: float) -> None:
    """From 2²⁰ on it looks continuous: Kolmogorov–Smirnov, and the lowest bits are uniform."""
    draws = discrete_gaussian(scale, 20_000)
    assert stats.kstest(draws / scale, "norm").pvalue > ONCE_IN_A_LIFETIME
    low = Counter((draws % 16).tolist())
    fits(low, dict.fromkeys(range(16), 1 / 16), len(draws))
    # One bit of sign, whatever the size.
    assert abs(int((draws > 0).sum()) - 10_000) < 6 * math.sqrt(5_000)


def test_signs_and_neighbours_are_independent(
    drawn: Callable[[float | Fraction], np.ndarray],
) -> None:
    x = drawn(2.5).astype(float)
    for lag in (1, 2, 7):
        correlation = float(np.corrcoef(x[:-lag], x[lag:])[0, 1])
        assert abs(correlation) < 6 / math.sqrt(DRAWS)


# ---------------------------------------------------------------- entropy


def test_no_seed_repeats_a_draw() -> None:
    made = []
    for _ in range(2):
        np.random.seed(5)
        random.seed(5)
        made.append(discrete_gaussian(2.0**20, 20).tolist())
    assert made[0] != made[1]


def test_no_generator_of_the_process_is_touched() -> None:
    np.random.seed(5)
    random.seed(5)
    before = np.random.get_state()[1].tolist(), random.getstate()
    discrete_gaussian(3.0, 50)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before


def test_every_word_is_the_operating_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    system = os.urandom

    def count(size: int) -> bytes:
        asked.append(size)
        return system(size)

    monkeypatch.setattr(os, "urandom", count)
    discrete_gaussian(4.0, 500)
    assert sum(asked) >= 8 * 500
    fetched = len(asked)
    discrete_gaussian(4.0, 1)
    assert len(asked) == fetched + 1, "no pool outlives its call"


def test_the_same_entropy_gives_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else: the draws are a function of the system's bytes."""

    def draw() -> list[int]:
        stream = np.random.default_rng(0)
        monkeypatch.setattr(os, "urandom", stream.bytes)
        return discrete_gaussian(Fraction(10**9, 7), 30).tolist()

    assert draw() == draw()


def test_pooled_words_are_read_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = np.random.default_rng(1)
    whole = stream.bytes(3 * 8192)
    parts = iter(whole[i : i + 8192] for i in range(0, len(whole), 8192))
    monkeypatch.setattr(os, "urandom", lambda size: next(parts))
    entropy = _Entropy()
    words = [entropy.word() for _ in range(3 * 1024)]
    assert words == np.frombuffer(whole, "<u8").tolist()


# ---------------------------------------------------------------- building blocks


class Scripted(_Entropy):
    """Entropy that was written down beforehand."""

    def __init__(self, *words: int) -> None:
        super().__init__()
        self.words: Iterator[int] = iter(words)

    def word(self) -> int:
        return next(self.words)


def twin_chance(numerator: int, denominator: int, *words: int) -> bool:
    """Whether 0.w₁w₂w₃… in base 2⁶⁴ lies below the ratio; the rest is taken for zeros."""
    number = sum(Fraction(word, 2 ** (64 * place)) for place, word in enumerate(words, 1))
    return number < Fraction(numerator, denominator)


def test_chance_compares_as_many_bits_as_it_takes() -> None:
    third = 2**64 // 3  # 0x5555…: a third agrees with it in every bit, for ever
    for words in ([third - 1], [third + 1], [third, 0], [third, 2**64 - 1], [third, third, 5]):
        assert Scripted(*words).chance(1, 3) == twin_chance(1, 3, *words)
    entropy = Scripted(third, third, third + 1, 77)
    assert entropy.chance(1, 3) is False
    assert entropy.word() == 77, "three words decided; not one more was read"


def test_chance_agrees_with_exact_fractions() -> None:
    draw = random.Random(4)
    for _ in range(500):
        denominator = draw.randrange(1, 10 ** draw.randrange(1, 60))
        numerator = draw.randrange(denominator + 1)
        threshold = (numerator << 64) // denominator
        words = [
            draw.choice([threshold, threshold - 1, threshold + 1, draw.getrandbits(64)]),
            *(draw.getrandbits(64) for _ in range(3)),
        ]
        words[0] = min(max(words[0], 0), 2**64 - 1)
        expected = twin_chance(numerator, denominator, *words)
        assert Scripted(*words).chance(numerator, denominator) == expected


@pytest.mark.parametrize("words", [[0], [2**64 - 1], [12345]])
def test_certain_and_impossible(words: list[int]) -> None:
    assert Scripted(*words).chance(7, 7) is True
    # 0 of 7: the word 0 ties, and a tie with nothing left is never below it.
    assert Scripted(*words, 1).chance(0, 7) is False


@pytest.mark.parametrize("bound", [1, 2, 3, 5, 8, 100])
def test_below_is_uniform(bound: int) -> None:
    entropy = _Entropy()
    fits(
        Counter(entropy.below(bound) for _ in range(4000)),
        dict.fromkeys(range(bound), 1 / bound),
        4000,
    )


def test_below_rejects_what_would_fold() -> None:
    top = 61  # 3 bits are the highest of the word
    assert Scripted(7 << top, 6 << top, 5 << top, 4 << top).below(5) == 4
    # 65 bits of two words; the first pair is beyond the bound.
    assert Scripted(2**64 - 1, 0, 1 << 63, 9 << 63 & (2**64 - 1)).below(2**64 + 9) == 2**64 + 1


def test_below_bounds_of_more_than_a_word() -> None:
    entropy, bound = _Entropy(), 3 * 2**99
    draws = [entropy.below(bound) for _ in range(3000)]
    assert max(draws) < bound
    fits(Counter(x * 6 // bound for x in draws), dict.fromkeys(range(6), 1 / 6), 3000)


@pytest.mark.parametrize(
    ("numerator", "denominator"), [(0, 1), (1, 3), (1, 1), (7, 2), (5, 1), (10**30, 10**30 + 1)]
)
def test_an_exponential_chance(numerator: int, denominator: int) -> None:
    entropy, draws = _Entropy(), 6000
    chance = math.exp(-numerator / denominator)
    hits = sum(entropy.chance_exp(numerator, denominator) for _ in range(draws))
    assert hits <= stats.binom.isf(1e-8, draws, chance)
    assert hits >= stats.binom.ppf(1e-8, draws, chance)


def test_an_exponential_chance_is_von_neumanns_alternating_series() -> None:
    """P(true) summed over all lengths that the loop can have is exp(-γ), to the last digit."""
    gamma, survive, total = Fraction(3, 7), Fraction(1), Fraction(0)
    for length in range(1, 40):
        stop = survive * (1 - gamma / length)
        total += stop if length % 2 else 0
        survive *= gamma / length
    assert float(total) == pytest.approx(math.exp(-3 / 7), rel=1e-15)


@pytest.mark.parametrize("scale", [1, 2, 7])
def test_the_laplace_beneath(scale: int) -> None:
    draws = 20_000
    entropy = _Entropy()
    decay = math.exp(-1 / scale)
    values = range(-30 * scale, 30 * scale + 1)
    expected = {x: (1 - decay) / (1 + decay) * decay ** abs(x) for x in values}
    fits(Counter(_laplace(scale, entropy) for _ in range(draws)), expected, draws)


def test_the_root_is_exact() -> None:
    draw = random.Random(8)
    for _ in range(300):
        b = draw.randrange(1, 10**20)
        a = draw.randrange(1, 10**40)
        root = _floor_root(a, b)
        assert root**2 * b <= a < (root + 1) ** 2 * b


# ---------------------------------------------------------------- shape and refusals


@pytest.mark.parametrize("size", [0, 1, 5])
def test_as_many_as_asked_for(size: int) -> None:
    draws = discrete_gaussian(1.5, size)
    assert draws.shape == (size,)
    assert draws.dtype == np.int64


def test_a_tiny_scale_is_hardly_any_noise() -> None:
    assert not discrete_gaussian(1e-3, 200).any()
    assert not discrete_gaussian(Fraction(1, 10**30), 20).any()
    assert not discrete_gaussian(5e-324, 5).any()


@pytest.mark.parametrize(
    "scale", [0, 0.0, -1, -1e-300, math.nan, math.inf, MAX_SIGMA * 1.001, Fraction(-1, 3)]
)
def test_impossible_scales(scale: float | Fraction) -> None:
    with pytest.raises(PrivacyError, match="sigma") as refused:
        discrete_gaussian(scale, 3)
    assert refused.value.hint


@pytest.mark.parametrize("size", [-1, True, False])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(PrivacyError, match="size"):
        discrete_gaussian(1.0, size)
