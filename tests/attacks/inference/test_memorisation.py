"""What a model remembers: found where it is there, and only there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge.attacks.inference.memorisation import (
    confidence_scores,
    matched,
    nearest_ratio,
    reconstruction_scores,
    synthesis_of,
)
from fedvtc_edge.config import load_config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ScoreError
from fedvtc_edge.training.compute import deterministic
from fedvtc_edge.training.knowledge import CODE_STD, class_codes
from fedvtc_edge.training.losses import ClassMoments

Labels = NDArray[np.int64]
LABELS = st.lists(st.integers(0, 4), max_size=20).map(lambda made: np.array(made, np.int64))

CLASSES, LATENT = 10, 8


class Digits(NamedTuple):
    """20 members, of four classes; images of all ten to compare with; and codes."""

    members: Tensor
    member_labels: Labels
    others: Tensor
    other_labels: Labels
    codes: ClassMoments


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with deterministic():
        yield


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = load_dataset(load_config({}).data)
    order = np.random.default_rng(0).permutation(len(data.y_train))  # they come writer by writer
    images = torch.from_numpy(data.x_train[order]).permute(0, 3, 1, 2).float() / 255
    labels = np.asarray(data.y_train[order], np.int64)
    inside = np.concatenate([np.flatnonzero(labels == label)[:5] for label in (1, 3, 5, 8)])
    outside = np.setdiff1d(np.arange(len(labels)), inside)[:400]
    mean = torch.from_numpy(class_codes(CLASSES, LATENT)).float()
    codes = ClassMoments(mean, torch.full_like(mean, CODE_STD))
    # In bad light: of clean digits, five of a class are enough to know the others by.
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    images = (images + 0.6 * noise).clamp(0, 1)
    return Digits(images[inside], labels[inside], images[outside], labels[outside], codes)


# ---------------------------------------------------------------- painted images


def test_paintings_that_copy_training_images_are_seen(digits: Digits) -> None:
    stream = torch.Generator().manual_seed(0)

    def paint(labels: Tensor) -> Tensor:
        (label,) = set(labels.tolist())
        pool = digits.members[digits.member_labels == label]
        picked = pool[torch.randint(len(pool), (len(labels),), generator=stream)]
        return picked + 0.05 * torch.randn(picked.shape, generator=stream)

    found = nearest_ratio(paint, *digits[:4], np.random.default_rng(0), per_class=7)
    assert found.share == 1.0
    assert found.ratios.max() < -0.5
    assert found.chance < 0.01
    assert list(found.labels) == [1] * 7 + [3] * 7 + [5] * 7 + [8] * 7


def test_exact_copies_are_as_near_as_can_be(digits: Digits) -> None:
    """Among so many images that a matrix product would round their distance away."""
    images, zeros = digits.others, np.zeros(200, np.int64)
    found = nearest_ratio(
        lambda labels: images[: len(labels)],
        *(images[:200], zeros, images[200:], zeros),
        np.random.default_rng(0),
    )
    assert found.ratios.max() < -500


def test_what_tells_nothing_is_chance() -> None:
    """As near to one as to the other, always: half of the paintings, and every split."""
    one, zero = torch.zeros(1, 1, 2, 2), np.zeros(1, np.int64)
    found = nearest_ratio(
        lambda labels: torch.rand(len(labels), 1, 2, 2),
        *(one, zero, one, zero),
        np.random.default_rng(0),
    )
    assert (found.share, found.chance) == (0.5, 1.0)


def test_paintings_of_the_class_at_large_are_not_accused(digits: Digits) -> None:
    """Fresh images of each class: p-values as they should be, not only once."""
    stream, chances = torch.Generator().manual_seed(0), []

    def paint(labels: Tensor) -> Tensor:
        pool = digits.others[200:][digits.other_labels[200:] == int(labels[0])]
        return pool[torch.randint(len(pool), (len(labels),), generator=stream)]

    rest = digits.others[:200], digits.other_labels[:200]
    for seed in range(12):
        chosen = np.random.default_rng(seed).permutation(200)
        inside, outside = chosen[:60], chosen[60:]
        sides = rest[0][inside], rest[1][inside], rest[0][outside], rest[1][outside]
        found = nearest_ratio(paint, *sides, np.random.default_rng(seed), per_class=5)
        chances.append(found.chance)
    assert np.mean(np.array(chances) < 0.1) <= 0.3
    assert 0.3 < np.mean(chances) < 0.7


def test_ratios_are_those_of_a_slow_twin() -> None:
    members, others = torch.tensor([0.0, 4.0, 9.0]), torch.tensor([1.0, 7.0, 9.0])
    sides = members.view(3, 1, 1, 1), np.array([0, 0, 6]), others.view(3, 1, 1, 1)
    found = nearest_ratio(
        lambda labels: torch.linspace(0, 8, len(labels)).view(-1, 1, 1, 1),
        *sides,
        np.array([0, 0, 2]),
        np.random.default_rng(0),
        per_class=9,
    )
    expected = [
        math.log(max(min(abs(x - 0), abs(x - 4)), 1e-300))
        - math.log(max(min(abs(x - 1), abs(x - 7)), 1e-300))
        for x in range(9)
    ]
    # Copies have no finite ratio: only its sign counts.
    copies = [0, 1, 4, 7]
    np.testing.assert_allclose(
        np.delete(found.ratios, copies), np.delete(expected, copies), atol=1e-6
    )
    np.testing.assert_array_equal(np.sign(found.ratios), np.sign(expected))
    signs = np.sign(np.round(expected, 9))
    assert found.share == (np.sum(signs < 0) + np.sum(signs == 0) / 2) / 9


def test_codes_are_painted_as_the_bundle_paints_them() -> None:
    codes = ClassMoments(
        torch.tensor([[5.0, 0.0], [0.0, -5.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    )
    paint = synthesis_of(lambda z: z, codes, torch.Generator().manual_seed(0))
    painted = paint(torch.tensor([0] * 4000 + [1]))
    assert painted[-1].tolist() == [0.0, -5.0]
    assert set(painted[:-1, 0].tolist()) == {5.0}
    assert painted[:-1, 1].mean() == pytest.approx(0.0, abs=0.06)
    assert painted[:-1, 1].std() == pytest.approx(1.0, abs=0.05)


# ---------------------------------------------------------------- scores


def test_reconstruction_is_the_squared_error_of_one_image() -> None:
    images = torch.rand(300, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    scores = reconstruction_scores(
        lambda x: x.flatten(1), lambda z: 0.5 * z.view(-1, 1, 2, 2), images
    )
    np.testing.assert_allclose(scores, -0.25 * images.square().sum((1, 2, 3)), rtol=1e-5)


def test_confidence_is_the_log_odds_even_where_p_rounds_to_one() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [200.0, 3.0, 1.0], [300.0, 3.0, 1.0]])
    scores = confidence_scores(lambda x: x, logits, np.array([1, 0, 0]))
    p = torch.softmax(logits[0].double(), 0)[1].item()
    assert scores[0] == pytest.approx(math.log(p / (1 - p)))
    assert scores[2] - scores[1] == pytest.approx(100.0)


# ---------------------------------------------------------------- matching


@given(LABELS, LABELS, st.integers(0, 5))
def test_as_many_of_each_class_on_both_sides(members: Labels, others: Labels, seed: int) -> None:
    most = {label: min((members == label).sum(), (others == label).sum()) for label in range(5)}
    draw = np.random.default_rng(seed)
    if not any(most.values()):
        with pytest.raises(ScoreError, match="no class in common"):
            matched(members, others, draw)
        return
    inside, outside = matched(members, others, draw)
    np.testing.assert_array_equal(members[inside], others[outside])
    for side, labels in ((inside, members), (outside, others)):
        assert len(set(side)) == len(side)
        assert {label: (labels[side] == label).sum() for label in range(5)} == most


def test_which_are_left_out_is_drawn() -> None:
    one, many = np.zeros(1, np.int64), np.zeros(50, np.int64)
    for side, sides in enumerate([(many, one), (one, many)]):
        drawn = {int(matched(*sides, np.random.default_rng(seed))[side][0]) for seed in range(20)}
        assert len(drawn) > 10
