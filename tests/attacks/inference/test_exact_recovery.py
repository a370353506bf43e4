"""Classes of one and of two records: what is read off, and what has to be guessed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fedvtc_edge import wire
from fedvtc_edge.attacks.adversary.view import Case, Population, View, populations
from fedvtc_edge.attacks.inference.exact_recovery import (
    ExactRecovery,
    alignment,
    exactness,
    recover_from_scatter,
    recover_one,
    recover_two,
)
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.statistics.class_statistics import ClassStatistics

Array = NDArray[np.float64]

ROUNDING: dict[wire.Precision, float] = {"float32": 2.0**-24, "float16": 2.0**-11}


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uploaded(z: Array, precision: wire.Precision, *, pooled: bool = False) -> ClassStatistics:
    sums = ClassStatistics.of(z, [0] * len(z), classes=1, pooled=pooled)
    data = wire.encode(sums, precision=precision)
    return wire.decode(data, classes=1, width=z.shape[1], pooled=pooled)


def within(seen: ClassStatistics) -> Array:
    scatter: Array = seen.square - seen.count[0] * np.outer(seen.mean[0], seen.mean[0])
    return scatter


def covariance(rng: np.random.Generator, width: int, rank: int) -> Array:
    """A few directions that dominate, as features have."""
    root = rng.standard_normal((width, rank))
    return root @ root.T + 0.05 * np.eye(width)


def pair(rng: np.random.Generator, width: int, rank: int) -> tuple[Array, Array]:
    """A covariance as above, and two records of it: the same ones on every machine.

    ``rng.multivariate_normal`` would draw them by a singular value decomposition, and so
    others for every LAPACK; where two numbers nearly agree, rounding is all that is left.
    """
    root = rng.standard_normal((width, rank))
    z = rng.standard_normal((2, rank)) @ root.T + 0.05**0.5 * rng.standard_normal((2, width))
    return root @ root.T + 0.05 * np.eye(width), z


# ---------------------------------------------------------------- one record


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("width", [1, 64])
def test_the_mean_of_one_record_is_that_record(precision: wire.Precision, width: int) -> None:
    z = np.random.default_rng(1).standard_normal((1, width))
    seen = uploaded(z, precision)
    assert exactness(recover_one(seen.mean[0]), z) <= ROUNDING[precision]
    assert seen.std[0].max() < 2e-3 * np.abs(z).max()  # but for rounding it is 0


# ---------------------------------------------------------------- two records


@pytest.mark.parametrize("seed", range(8))
def test_no_signs_are_likelier_than_those_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width = 9
    world, mean, std = covariance(rng, width, 3), rng.standard_normal(width), rng.random(width)
    found = recover_two(mean, std, world, stream(seed))
    inverse = np.linalg.inv(world)
    costs = [
        float((np.array(signs) * std) @ inverse @ (np.array(signs) * std))
        for signs in itertools.product([-1.0, 1.0], repeat=width)
    ]
    half = (found[0] - found[1]) / 2
    assert float(half @ inverse @ half) == pytest.approx(min(costs))


@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-5), ("float16", 1.5e-3)])
def test_two_records_are_exact_but_for_signs(precision: wire.Precision, error: float) -> None:
    rng, cosines = np.random.default_rng(2), []
    for seed in range(8):
        world, z = pair(rng, 64, 6)
        seen = uploaded(z, precision)
        found = recover_two(seen.mean[0], seen.std[0], world, stream(seed))
        assert exactness(found, z) < error
        np.testing.assert_allclose(found.mean(0), seen.mean[0], atol=1e-12)
        cosines.append(alignment(found, z))
    assert np.mean(cosines) > 0.98


def test_independent_features_keep_their_signs_to_themselves() -> None:
    rng = np.random.default_rng(3)
    cosines = []
    for seed in range(20):
        z = rng.standard_normal((2, 64))
        found = recover_two(z.mean(0), z.std(0), np.eye(64), stream(seed))
        assert exactness(found, z) < 1e-12
        cosines.append(alignment(found, z))
    assert np.mean(cosines) < 0.3


def digits() -> tuple[torch.Tensor, NDArray[np.int64]]:
    data = load_digits()
    return torch.from_numpy(data.images / 16).float()[:, None], data.target


def test_digits_under_the_anchor() -> None:
    """Real features are correlated enough for signs to follow, most of them."""
    images, labels = digits()
    with torch.no_grad():
        z = Anchor(ImageShape(8, 1), 128, 0).eval()(images).double().numpy()
    rng, cosines, plain = np.random.default_rng(4), [], []
    order = rng.permutation(len(z))
    public, rest = order[:300], order[300:]
    for seed in range(10):
        pair = z[rng.choice(rest[labels[rest] == seed % 10], 2, replace=False)]
        world = populations(z[public], labels[public], 10)[seed % 10]
        seen = uploaded(pair, "float32")
        mean, std = seen.mean[0], seen.std[0]
        assert abs(float(mean @ (pair[0] - pair[1]))) < 1e-3  # all are of length √p
        found = recover_two(mean, std, world.covariance, stream(seed), sphere=True)
        assert exactness(found, pair) < 1e-3
        cosines.append(alignment(found, pair))
        guess = std * rng.choice([-1, 1], 128)
        plain.append(alignment(np.stack([mean + guess, mean - guess]), pair))
    assert np.mean(cosines) > 0.8
    assert np.mean(plain) < 0.2


@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-4), ("float16", 2e-3)])
@pytest.mark.parametrize("width", [1, 2, 64])
def test_a_scatter_of_two_records_has_their_signs(
    precision: wire.Precision, error: float, width: int
) -> None:
    z = 1 + np.random.default_rng(5).standard_normal((2, width))
    seen = uploaded(z, precision, pooled=True)
    found = recover_from_scatter(seen.mean[0], within(seen))
    off = min(np.abs(found - z).max(), np.abs(found - z[::-1]).max())
    assert off < error * np.abs(z).max()
    assert alignment(found, z) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("kind", ["equal", "zeros", "one constant"])
def test_nothing_is_not_a_number(kind: str, width: int, precision: wire.Precision) -> None:
    z = np.random.default_rng(6).standard_normal((2, width))
    if kind == "equal":
        z[1] = z[0]
    elif kind == "zeros":
        z[:] = 0.0
    else:
        z[:, 0] = 2.0
    world = np.diag([1e-12, *[1.0] * (width - 1)])
    seen, pooled = uploaded(z, precision), uploaded(z, precision, pooled=True)
    for sphere in (False, True):
        found = recover_two(seen.mean[0], seen.std[0], world, stream(), sphere=sphere)
        assert exactness(found, z) < 5e-3
    found = recover_from_scatter(pooled.mean[0], within(pooled))
    assert exactness(found, z) < 5e-3
    assert 0 <= alignment(found, z) <= 1 + 1e-12


# ---------------------------------------------------------------- measures


def test_exactness_forgives_order_and_signs_alone() -> None:
    rng = np.random.default_rng(7)
    truth = rng.standard_normal((2, 6))
    mean, half = truth.mean(0), (truth[0] - truth[1]) / 2
    signs = np.array([1, -1, 1, 1, -1, -1])
    other = np.stack([mean + signs * half, mean - signs * half])
    assert exactness(truth[::-1], truth) == 0
    assert exactness(other, truth) < 1e-15
    assert exactness(other, truth[:1]) < 1e-15
    off = truth.copy()
    off[1, 2] += 0.01
    assert exactness(off, truth) == pytest.approx(0.01 / np.abs(truth[1]).max())
    assert exactness(truth[:1], truth) > 0.5
    assert exactness(mean[None], truth[:1]) > 0.1


def test_alignment_forgives_order_alone() -> None:
    rng = np.random.default_rng(8)
    truth = rng.standard_normal((2, 6))
    assert alignment(truth[::-1], truth) == pytest.approx(1.0)
    assert alignment(truth + 5, truth) == pytest.approx(1.0)
    across = truth.copy()
    across[0] = truth[1] + np.linalg.svd((truth[0] - truth[1])[None])[2][1]
    assert alignment(across, truth) == pytest.approx(0.0, abs=1e-12)
    same = truth[[0, 0]]
    assert alignment(same, same) == 1.0
    assert alignment(same, truth) == alignment(truth, same) == 0.0


# ---------------------------------------------------------------- the attack on views


def flat(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1)


def normalised(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(images.flatten(1)) * 4


def case(count: int, *, extract: Any = flat, pooled: bool = False, **changes: Any) -> Case:
    """The first candidate is a member."""
    rng = np.random.default_rng(count)
    root = np.linalg.cholesky(covariance(rng, 16, 3))
    pixels = rng.standard_normal((count + 30, 16)) @ root.T
    images = torch.from_numpy(pixels).reshape(-1, 1, 4, 4)
    z = extract(images).numpy()
    seen = uploaded(z[:count], "float32", pooled=pooled)
    view = View(
        who="server",
        label=0,
        count=float(count),
        mean=seen.mean[0],
        std=None if pooled else seen.std[0],
        public=images[:0],
        everyday=images[-20:],
        scatter=within(seen) if pooled else None,
        freedom=count - 1.0 if pooled else 0.0,
        extract=extract,
        population=Population(z.mean(0), np.cov(z.T) + 0.01 * np.eye(16)),
    )
    return Case(replace(view, **changes), images[[0, *range(count, count + 30)]])


def answer(question: Case, seed: int = 0) -> Array:
    (guess,) = ExactRecovery().guess([question], stream(seed))
    assert guess is not None
    assert guess.picture is None
    return guess.scores


@pytest.mark.parametrize("extract", [flat, normalised])
@pytest.mark.parametrize(("count", "pooled"), [(1, False), (1, True), (2, False), (2, True)])
def test_members_are_nearest(count: int, pooled: bool, extract: Any) -> None:
    scores = answer(case(count, pooled=pooled, extract=extract))
    assert scores.argmax() == 0
    if count == 1 or pooled:
        assert scores[0] > -1e-3 > scores[1] / 100


def test_scores_are_distances_to_the_nearer_record() -> None:
    question = case(2, pooled=True)
    view = question.view
    assert view.scatter is not None
    first, second = recover_from_scatter(view.mean, view.scatter)
    twin = [
        -min(float(np.linalg.norm(phi - first)), float(np.linalg.norm(phi - second)))
        for phi in question.features()
    ]
    np.testing.assert_allclose(answer(question), twin)


@pytest.mark.parametrize("extract", [flat, normalised])
def test_equal_lengths_are_noticed(extract: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(*words: Any, sphere: bool) -> Array:
        asked.append(sphere)
        return recover_two(*words, sphere=sphere)

    monkeypatch.setattr("fedvtc_edge.attacks.inference.exact_recovery.recover_two", spy)
    answer(case(2, extract=extract))
    answer(case(2, extract=extract, everyday=torch.zeros(0, 1, 4, 4)))
    assert asked == [extract is normalised, False]


def test_no_answer_without_what_it_needs() -> None:
    blind = [
        case(3),
        case(3, pooled=True),
        replaced(case(1), extract=None),
        replaced(case(2), noise=0.1),
        replaced(case(2), std=None),
        replaced(case(2), population=None),
        replaced(case(2, pooled=True), freedom=2.0),
    ]
    assert ExactRecovery().guess(blind, stream()) == [None] * 7


def replaced(question: Case, **changes: Any) -> Case:
    return Case(replace(question.view, **changes), question.candidates)


def test_noise_does_not_stop_it_from_trying_one_record() -> None:
    question = case(1, noise=0.1)
    noised = question.view.mean + 0.1 * np.random.default_rng(9).standard_normal(16)
    assert answer(replaced(question, mean=noised)).argmax() == 0


def test_no_answer_depends_on_another_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def chance(*words: Any, sphere: bool) -> Array:  # what the search may find is the stream's
        return torch.randn(2, 16, generator=words[3], dtype=torch.float64).numpy()

    monkeypatch.setattr("fedvtc_edge.attacks.inference.exact_recovery.recover_two", chance)
    questions = [case(2), case(1), case(3), case(2, extract=normalised)]
    for question, guess in zip(questions, ExactRecovery().guess(questions, stream(4)), strict=True):
        (alone,) = ExactRecovery().guess([question], stream(4))
        if guess is None:
            assert alone is None
        else:
            assert alone is not None
            np.testing.assert_array_equal(guess.scores, alone.scores)
    assert not np.array_equal(answer(questions[0], 4), answer(questions[0], 5))
