"""Likelihood ratios: against literal densities, as ratios, in power, and through the wire."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2, halfnorm, multivariate_normal, wishart

from fedvtc_edge import wire
from fedvtc_edge.attacks.adversary.view import Attack, Case, Population, View
from fedvtc_edge.attacks.inference import membership
from fedvtc_edge.attacks.inference.membership import (
    Membership,
    SecondMoments,
    excluded,
    leverage,
    lifted,
    mean_ratio,
    scatter_ratio,
    spread_ratio,
)
from fedvtc_edge.attacks.scoring.metrics import auc, auc_interval
from fedvtc_edge.statistics.class_statistics import ClassStatistics

Array = NDArray[np.float64]

ROUNDING: dict[wire.Precision, float] = {"float32": 2.0**-24, "float16": 2.0**-11}
relaxed = hypothesis_settings(deadline=None, max_examples=150)


@contextmanager
def one_machine() -> Iterator[None]:
    """Features agree to the last bit: nothing but rounding is left to allow for."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(membership, "AGREE", 0.0)
        yield


def people(rng: np.random.Generator, width: int) -> Population:
    root = rng.standard_normal((width, width)) / width**0.5 + np.eye(width)
    return Population(rng.standard_normal(width), root @ root.T)


def records(rng: np.random.Generator, population: Population, count: int) -> Array:
    drawn: Array = rng.multivariate_normal(population.mean, population.covariance, count)
    return drawn


def uploaded(
    features: Array,
    labels: list[int],
    precision: wire.Precision,
    *,
    pooled: bool = False,
) -> ClassStatistics:
    """What the server reads of features [N, p]."""
    classes, width = max(labels) + 1, features.shape[1]
    sums = ClassStatistics.of(features, labels, classes=classes, pooled=pooled)
    data = wire.encode(sums, precision=precision)
    return wire.decode(data, classes=classes, width=width, pooled=pooled)


def within(statistics: ClassStatistics) -> Array:
    """Scatter as an adversary computes it."""
    mean = statistics.mean
    scatter: Array = statistics.square - (mean * statistics.count[:, None]).T @ mean
    return (scatter + scatter.T) / 2


# ---------------------------------------------------------------- slow twins


@pytest.mark.parametrize(("count", "noise"), [(2, 0.0), (7, 0.3), (1, 0.5), (3.6, 1.0)])
def test_mean_ratio_is_that_of_the_densities(count: float, noise: float) -> None:
    rng = np.random.default_rng(1)
    world, mean = people(rng, 4), rng.standard_normal(4)
    candidates, bit = rng.standard_normal((5, 4)), np.eye(4)
    with one_machine():
        got = mean_ratio(candidates, mean, count, world, noise, rounding=0.0)
    for score, phi in zip(got, candidates, strict=True):
        centre = phi / count + (count - 1) / count * world.mean
        spread = (count - 1) / count**2 * world.covariance + noise**2 * bit
        inside = multivariate_normal(centre, spread).logpdf(mean)
        plain = multivariate_normal(world.mean, world.covariance / count + noise**2 * bit)
        assert score == pytest.approx(inside - plain.logpdf(mean), rel=1e-9)


@pytest.mark.parametrize(("count", "known"), [(2, 3.0), (50, 10.0), (1, 1.0)])
def test_an_unsure_population_is_one_more_gaussian(count: float, known: float) -> None:
    """Of c and φ jointly, with μ itself random, divided by that of φ, which is the same."""
    rng = np.random.default_rng(2)
    world, mean, candidates = people(rng, 3), rng.standard_normal(3), rng.standard_normal((4, 3))
    noise = 0.2
    with one_machine():
        got = mean_ratio(candidates, mean, count, world, noise, rounding=0.0, known=known)
    for score, phi in zip(got, candidates, strict=True):
        logs = []
        for shared in (1 / count + 1 / known, 1 / known):  # covariance of c and φ
            blocks = np.array([[1 / count + 1 / known, shared], [shared, 1 + 1 / known]])
            covariance = np.kron(blocks, world.covariance)
            covariance[:3, :3] += noise**2 * np.eye(3)
            joint = multivariate_normal(np.tile(world.mean, 2), covariance)
            logs.append(joint.logpdf(np.concatenate([mean, phi])))
        assert score == pytest.approx(logs[0] - logs[1], rel=1e-8)


@pytest.mark.parametrize("count", [3, 4, 20])
def test_spread_ratio_is_that_of_chi_squares(count: int) -> None:
    rng = np.random.default_rng(3)
    variance = np.array([0.5, 1.0, 2.0])
    world = Population(np.zeros(3), np.diag(variance))
    z = records(rng, world, count)
    candidates = np.concatenate([z, z.mean(0) + 0.3 * z.std(0) * rng.standard_normal((5, 3))])
    mean, std = z.mean(0), z.std(0)
    got = spread_ratio(candidates, mean, std, count, world, rounding=0.0)
    for score, phi in zip(got, candidates, strict=True):
        twin = 0.0
        for j in range(3):
            whole = count * std[j] ** 2
            left = whole - count / (count - 1) * (phi[j] - mean[j]) ** 2
            twin += chi2(count - 2).logpdf(left / variance[j])
            twin -= chi2(count - 1).logpdf(whole / variance[j])
        assert score == pytest.approx(twin, rel=1e-6)


@pytest.mark.parametrize("freedom", [4, 5, 12, 60])
def test_scatter_ratio_is_that_of_wisharts(freedom: int) -> None:
    rng = np.random.default_rng(4)
    width, count = 3, 6
    world = people(rng, width)
    scatter = wishart(freedom, world.covariance).rvs(random_state=rng)
    mean = rng.standard_normal(width)
    candidates = mean + 0.2 * rng.standard_normal((6, width))
    with one_machine():
        got = scatter_ratio(candidates, mean, count, scatter, freedom, world, rounding=0.0)
    compared = 0
    for score, phi in zip(got, candidates, strict=True):
        left = scatter - count / (count - 1) * np.outer(phi - mean, phi - mean)
        if np.linalg.eigvalsh(left)[0] < 0.1 * np.linalg.eigvalsh(scatter)[0]:
            continue
        # scipy's needs at least p degrees, of which W′ has one less than W.
        twin = wishart(freedom - 1, world.covariance).logpdf(left)
        assert score == pytest.approx(twin - wishart(freedom, world.covariance).logpdf(scatter))
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize("part", ["mean", "spread", "scatter"])
def test_ratios_average_to_one_where_the_candidate_is_not_in(part: str) -> None:
    """∫ p(seen | out) · p(seen | in) / p(seen | out) = 1, whatever φ is: no factor is missing."""
    rng = np.random.default_rng(5)
    world, phi, ratios, count = Population(np.zeros(1), np.eye(1)), np.array([[0.6]]), [], 6
    for z in rng.standard_normal((4000, count, 1)):
        mean, std = z.mean(0), z.std(0)
        score = mean_ratio(phi, mean, count, world)
        if part == "scatter":
            scatter = count * np.diag(np.square(std))
            score += scatter_ratio(phi, mean, count, scatter, count - 1, world)
        elif part == "spread":
            score += spread_ratio(phi, mean, std, count, world)
        ratios.append(math.exp(float(score[0])))
    error = float(np.std(ratios)) / 4000**0.5
    assert error < 0.02
    assert np.mean(ratios) == pytest.approx(1.0, abs=4 * error)


def test_of_two_the_ratio_averages_to_one_too() -> None:
    """By quadrature, because the member's density is a needle at |φ − c|."""
    world, mean, phi = Population(np.zeros(1), np.full((1, 1), 1.7)), np.array([0.1]), 0.6
    stds = np.linspace(0.49, 0.51, 4001)
    ratios = [spread_ratio(np.array([[phi]]), mean, s[None], 2, world)[0] for s in stds]
    expected = np.exp(ratios) * halfnorm(scale=(1.7 / 2) ** 0.5).pdf(stds)
    # All of it but the tail where s is so small that the candidate is excluded.
    assert expected.sum() * (stds[1] - stds[0]) == pytest.approx(NormalDist().cdf(1), abs=0.001)


# ---------------------------------------------------------------- power


def scores_of(
    width: int, count: int, uploads: int, seed: int, *, truly: bool = True
) -> tuple[Array, Array]:
    """(mean, mean and std) scores [2, uploads, n] of members (or not ``truly``), of others."""
    rng = np.random.default_rng(seed)
    world = Population(np.zeros(width), np.eye(width))
    scored = np.empty((2, 2, uploads, count))
    for row in range(uploads):
        z, others = rng.standard_normal((2, count, width))
        mean, std = z.mean(0), z.std(0)
        if not truly:
            z = rng.standard_normal((count, width))
        candidates = np.concatenate([z, others])
        plain = mean_ratio(candidates, mean, count, world)
        both = plain + spread_ratio(candidates, mean, std, count, world)
        scored[:, 0, row], scored[:, 1, row] = plain.reshape(2, -1), both.reshape(2, -1)
    return scored[0], scored[1]


@pytest.mark.parametrize(
    ("width", "count", "uploads"),
    [(64, 5, 100), (64, 20, 60), (64, 100, 40), (16, 20, 100), (16, 100, 60), (256, 200, 12)],
)
def test_power_is_that_of_theory(width: int, count: int, uploads: int) -> None:
    members, others = (part.reshape(2, -1) for part in scores_of(width, count, uploads, width))
    normal = NormalDist()
    plain = normal.cdf((width / (2 * count)) ** 0.5)
    assert auc(members[0], others[0]) == pytest.approx(plain, abs=0.02)
    # The std doubles the evidence; at small n it is worth more than the asymptotic formula.
    both = auc(members[1], others[1])
    assert both > normal.cdf((width / count) ** 0.5) - 0.02
    if count >= 100:
        assert both == pytest.approx(normal.cdf((width / count) ** 0.5), abs=0.02)


def test_nobody_is_found_who_is_not_in() -> None:
    # One candidate each per upload: those are independent, as the interval assumes.
    strangers, others = scores_of(64, 20, 150, 1, truly=False)
    for mine, theirs in zip(strangers, others, strict=True):
        low, high = auc_interval(mine[:, 0], theirs[:, 0], 0.95)
        assert low <= 0.5 <= high
        assert high - low < 0.15
    members, others = scores_of(64, 20, 150, 1)
    assert auc_interval(members[0][:, 0], others[0][:, 0], 0.95)[0] > 0.8


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize(
    ("width", "classes", "count", "least"),
    [(48, 4, 3, 1.0), (48, 4, 13, 1.0), (48, 4, 15, 0.999), (48, 4, 40, 0.8)],
    ids=["f < p", "f = p", "p < f < 2p", "2p < f"],
)
def test_scatter_tells_members_up_to_many_degrees(
    precision: wire.Precision, width: int, classes: int, count: int, least: float
) -> None:
    rng, labels = np.random.default_rng(6), np.repeat(range(classes), count).tolist()
    world = people(rng, width)
    members, others = list[Array](), list[Array]()
    for _ in range(4):
        z = records(rng, world, classes * count)
        seen = uploaded(z, labels, precision, pooled=True)
        about = (seen.mean[0], count, within(seen), classes * (count - 1), world)
        rounding = {"rounding": ROUNDING[precision], "root": precision == "float16"}
        members.append(scatter_ratio(z[:count], *about, **rounding))
        others.append(scatter_ratio(records(rng, world, 50), *about, **rounding))
    assert np.isfinite(members).all()
    assert np.isfinite(others).all()
    assert auc(np.concatenate(members), np.concatenate(others)) >= least


def test_correlated_features_count_as_often_as_they_are_independent() -> None:
    rng = np.random.default_rng(7)
    z, width = rng.standard_normal((8, 1)), 5
    phi = rng.standard_normal((4, 1)) * 0.5
    single = spread_ratio(phi, z.mean(0), z.std(0), 8, Population(np.zeros(1), np.eye(1)))
    copies = Population(np.zeros(width), np.ones((width, width)) + 1e-9 * np.eye(width))
    same = spread_ratio(
        np.tile(phi, width), np.tile(z.mean(0), width), np.tile(z.std(0), width), 8, copies
    )
    np.testing.assert_allclose(same, single, rtol=1e-6)


def test_noise_takes_the_evidence_away() -> None:
    rng = np.random.default_rng(8)
    world, found = Population(np.zeros(32), np.eye(32)), []
    for noise in (0.0, 0.3, 20.0):
        parts: list[list[Array]] = [[], []]
        for members, others in rng.standard_normal((100, 2, 10, 32)):
            mean = members.mean(0) + noise * rng.standard_normal(32)
            for part, who in zip(parts, (members, others), strict=True):
                part.append(mean_ratio(who, mean, 10, world, noise))
        found.append(auc(np.concatenate(parts[0]), np.concatenate(parts[1])))
    assert found[0] > found[1] + 0.05 > 0.75
    assert found[2] == pytest.approx(0.5, abs=0.05)


# ---------------------------------------------------------------- members are never excluded


@st.composite
def held(draw: st.DrawFn) -> Array:
    """Features [n, p]: of any size, near to each other or not, some constant, some extreme."""
    count, width = draw(st.integers(1, 30)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.sampled_from(["normal", "one far", "two values", "constant"]))
    z = rng.standard_normal((count, width))
    if shape == "one far":  # Samuelson's inequality is an equation
        z[:] = z[0]
        z[-1] += rng.standard_normal(width)
    elif shape == "two values":
        z = np.sign(z)
    elif shape == "constant":
        z[:] = z[0]
    size, spread = 10.0 ** draw(st.integers(-6, 6)), 10.0 ** draw(st.integers(-7, 2))
    centre = rng.standard_normal(width)
    return (size * (centre + spread * z)).astype(np.float32).astype(np.float64)


@given(held(), st.sampled_from(["float32", "float16"]))
@relaxed
def test_no_rounding_excludes_a_member(z: Array, precision: wire.Precision) -> None:
    seen = uploaded(z, [0] * len(z), precision)
    about = (seen.mean[0], seen.std[0], len(z), ROUNDING[precision])
    assert not excluded(z, *about).any()
    with one_machine():  # what rounding needs is not borrowed from what machines need
        assert not excluded(z, *about).any()


@given(held(), st.sampled_from(["float32", "float16"]), st.integers(0, 2**32))
@relaxed
def test_no_machine_excludes_a_member(z: Array, precision: wire.Precision, seed: int) -> None:
    seen = uploaded(z, [0] * len(z), precision)
    off = np.random.default_rng(seed).choice([-1, 1], z.shape)
    elsewhere = z + off * membership.AGREE * np.sqrt(np.square(z).mean(0).max())
    assert not excluded(elsewhere, seen.mean[0], seen.std[0], len(z), ROUNDING[precision]).any()


def test_rounding_would_exclude_members_if_it_were_not_allowed_for() -> None:
    rng, wronged = np.random.default_rng(9), {"float32": 0, "float16": 0}
    with one_machine():
        for _ in range(100):
            z = 3 + 1e-3 * rng.standard_normal((4, 5))
            for precision in ROUNDING:
                seen = uploaded(z, [0] * 4, precision)
                wronged[precision] += excluded(z, seen.mean[0], seen.std[0], 4, 0.0).sum()
    assert min(wronged.values()) > 0


def test_others_are_excluded() -> None:
    rng = np.random.default_rng(10)
    z, others = rng.standard_normal((5, 64)), rng.standard_normal((300, 64))
    for precision in ROUNDING:
        seen = uploaded(z, [0] * 5, precision)
        about = (seen.mean[0], seen.std[0], 5, ROUNDING[precision])
        assert excluded(others, *about).mean() > 0.95
        scores = spread_ratio(
            others, *about[:3], Population(np.zeros(64), np.eye(64)), rounding=ROUNDING[precision]
        )
        assert (np.isneginf(scores) == excluded(others, *about)).all()


@given(
    st.integers(1, 8),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(-4, 1),
    st.sampled_from(["float32", "float16"]),
    st.integers(0, 2**32),
)
@relaxed
def test_no_rounding_lifts_a_members_leverage(
    width: int, counts: list[int], spread: int, precision: wire.Precision, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    counts[0] += 1
    labels = np.repeat(range(len(counts)), counts).tolist()
    size = 10.0**spread * 10.0 ** rng.uniform(-3, 0, width)
    z = rng.standard_normal(width) + size * rng.standard_normal((len(labels), width))
    z *= width**0.5 / np.linalg.norm(z, axis=1, keepdims=True)  # as all features here are
    seen = uploaded(z, labels, precision, pooled=True)
    root = precision == "float16"
    freedom = float(sum(counts) - len(counts))
    about = (seen.mean[0], counts[0], within(seen), freedom)
    for machines in (nullcontext, one_machine):
        with machines():
            raised = lifted(*about, rounding=ROUNDING[precision], root=root)
        height = leverage(z[: counts[0]] - seen.mean[0], counts[0], raised)
        assert (height <= (2.3 if root else 1.6)).all()
        assert (height > -1e-9).all()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_rounding_would_lift_leverages_if_it_were_not_allowed_for(
    precision: wire.Precision,
) -> None:
    rng, root, highest = np.random.default_rng(14), precision == "float16", [0.0, 0.0]
    for _ in range(20):
        axes = np.linalg.qr(rng.standard_normal((8, 8)))[0]
        z = 3 + (10 ** rng.uniform(-5, 0, 8) * rng.standard_normal((40, 8))) @ axes
        seen = uploaded(z, [0] * 40, precision, pooled=True)
        about = (seen.mean[0], 40, within(seen), 39)
        for place, rounding in enumerate((ROUNDING[precision], 2.0**-50)):
            with one_machine():
                raised = lifted(*about, rounding=rounding, root=root)
            height = leverage(z - seen.mean[0], 40, raised)
            highest[place] = max(highest[place], float(height.max()))
    assert highest[0] <= (2.3 if root else 1.6)
    assert highest[1] > 10


# ---------------------------------------------------------------- degenerate uploads


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_one_record_is_found_among_its_likes(precision: wire.Precision) -> None:
    rng = np.random.default_rng(11)
    world = people(rng, 16)
    z = records(rng, world, 1)
    near = z + 0.02 * rng.standard_normal((40, 16))  # far nearer than other records
    seen, candidates = uploaded(z, [0], precision), np.concatenate([near, z])
    scores = mean_ratio(candidates, seen.mean[0], 1, world, rounding=ROUNDING[precision])
    assert np.isfinite(scores).all()
    assert scores.argmax() == 40
    assert scores[40] > 20  # more certain than any other evidence
    elsewhere = z + membership.AGREE * np.abs(z).max() * rng.choice([-0.5, 0.5], 16)
    assert mean_ratio(elsewhere, seen.mean[0], 1, world, rounding=ROUNDING[precision])[0] > 20


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_both_of_two_are_found(precision: wire.Precision) -> None:
    rng = np.random.default_rng(12)
    world = people(rng, 16)
    z = records(rng, world, 2)
    near = z[:1] + 0.05 * rng.standard_normal((40, 16))
    seen, candidates = uploaded(z, [0, 0], precision), np.concatenate([near, z])
    about = (seen.mean[0], seen.std[0], 2, world)
    scores = spread_ratio(candidates, *about, rounding=ROUNDING[precision])
    assert set(np.argsort(scores)[-2:]) == {40, 41}
    assert np.isfinite(scores[40:]).all()


def test_what_rounding_hides_is_no_evidence() -> None:
    """Without the first, two equal records are left: of density ∞, were numbers exact."""
    z, world = np.array([[2.0], [1.0], [1.0]]), Population(np.zeros(1), np.eye(1))
    scores = [
        spread_ratio(z[:1], z.mean(0), z.std(0), 3, world, rounding=2.0**-bits)[0]
        for bits in (40, 30)
    ]
    assert scores[0] - scores[1] == pytest.approx(10 * math.log(2) / 2, abs=1e-6)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["equal", "constant feature", "zeros", "usual"])
def test_no_upload_makes_nonsense(
    kind: str, count: int, width: int, precision: wire.Precision
) -> None:
    rng = np.random.default_rng(13)
    z = rng.standard_normal((count, width))
    if kind == "equal":
        z[:] = z[0]
    elif kind == "zeros":
        z[:] = 0.0
    elif kind == "constant feature":
        z[:, 0] = 1.0
    tiny = 1e-12 if kind != "usual" else 1.0  # the least that population() ever gives
    world = Population(z.mean(0), np.diag([tiny, *[1.0] * (width - 1)]))
    strangers, rounding = 10 + rng.standard_normal((3, width)), ROUNDING[precision]
    candidates, seen = np.concatenate([z, strangers]), uploaded(z, [0] * count, precision)
    mean, std = seen.mean[0], seen.std[0]
    scores = mean_ratio(candidates, mean, count, world, rounding=rounding)
    assert np.isfinite(scores).all()
    scores += spread_ratio(candidates, mean, std, count, world, rounding=rounding)
    assert np.isfinite(scores[:count]).all()
    assert not np.isnan(scores).any()
    assert (scores < np.inf).all()
    if kind != "usual":
        assert scores[:count].min() > scores[count:].max()  # nothing is like them
    if count > 1:
        scatter = within(uploaded(z, [0] * count, precision, pooled=True))
        root = precision == "float16"
        more = scatter_ratio(
            candidates, mean, count, scatter, count - 1, world, rounding=rounding, root=root
        )
        assert np.isfinite(more).all()


# ---------------------------------------------------------------- attacks on views


def flat(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1)


def case(count: int = 6, *, pooled: bool = False, **changes: Any) -> Case:
    """The first candidate is a member; features are pixels."""
    rng = np.random.default_rng(count)
    images = torch.from_numpy(rng.standard_normal((count + 30, 1, 4, 4)))
    z = images[:count].flatten(1).numpy()
    seen = uploaded(z, [0] * count, "float32", pooled=pooled)
    view = View(
        who="server",
        label=0,
        count=float(count),
        mean=seen.mean[0],
        std=None if pooled else seen.std[0],
        public=torch.zeros(9, 1, 4, 4),
        everyday=torch.zeros(9, 1, 4, 4),
        scatter=within(seen) if pooled else None,
        freedom=count - 1.0 if pooled else 0.0,
        extract=flat,
        population=Population(np.zeros(16), np.eye(16)),
    )
    return Case(replace(view, **changes), images[[0, *range(count, count + 30)]])


STREAM = torch.Generator()


def answer(attack: Attack, question: Case) -> Array:
    (guess,) = attack.guess([question], STREAM)
    assert guess is not None
    assert guess.picture is None
    return guess.scores


def test_membership_adds_what_the_view_permits() -> None:
    for pooled in (False, True):
        question = case(pooled=pooled)
        view, phi = question.view, question.features()
        assert view.population is not None
        first = mean_ratio(phi, view.mean, 6, view.population, known=10)
        if view.std is not None:
            more = spread_ratio(phi, view.mean, view.std, 6, view.population)
        else:
            assert view.scatter is not None
            more = scatter_ratio(phi, view.mean, 6, view.scatter, 5, view.population)
            np.testing.assert_array_equal(answer(SecondMoments(), question), more)
        both = answer(Membership(), question)
        np.testing.assert_array_equal(both, first + more)
        assert both.argmax() == 0
        alone = replace(view, std=None, scatter=None, freedom=0.0)
        got = answer(Membership(), Case(alone, question.candidates))
        np.testing.assert_array_equal(got, first)


def test_noise_leaves_the_mean_alone() -> None:
    for pooled in (False, True):
        question = case(pooled=pooled, noise=0.5)
        view = question.view
        assert view.population is not None
        first = mean_ratio(question.features(), view.mean, 6, view.population, 0.5, known=10)
        np.testing.assert_array_equal(answer(Membership(), question), first)
        assert SecondMoments().guess([question], STREAM) == [None]


def test_a_float16_scatter_is_read_as_a_root() -> None:
    question = case(20, pooled=True, rounding=2.0**-11)
    view = question.view
    assert view.scatter is not None
    assert view.population is not None
    about = (question.features(), view.mean, 20, view.scatter, 19, view.population)
    twin = scatter_ratio(*about, rounding=2.0**-11, root=True)
    np.testing.assert_array_equal(answer(SecondMoments(), question), twin)


def test_no_answer_without_what_it_needs() -> None:
    blind = [case(extract=None), case(population=None), case(pooled=True, extract=None)]
    assert Membership().guess(blind, STREAM) == [None] * 3
    without = [*blind, case(), case(1, pooled=True), case(pooled=True, population=None)]
    assert SecondMoments().guess(without, STREAM) == [None] * 6


def test_a_single_record_of_a_pooled_upload_is_found_by_its_mean() -> None:
    assert answer(Membership(), case(1, pooled=True)).argmax() == 0


@pytest.mark.parametrize("attack", [Membership(), SecondMoments()], ids=lambda a: a.name)
def test_no_answer_depends_on_another_case(attack: Attack) -> None:
    questions = [case(6, pooled=True), case(9, pooled=True), case(12, pooled=True)]
    together = attack.guess(questions, STREAM)
    for question, guess in zip(questions, together, strict=True):
        assert guess is not None
        np.testing.assert_array_equal(guess.scores, answer(attack, question))
