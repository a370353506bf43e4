"""The class prior and the figures at home, against slow and obvious twins."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.statistics.class_prior import accuracy_on, class_prior, log_prior, recalls

CLASSES = 4
COUNTS = st.lists(st.integers(0, 50), min_size=CLASSES, max_size=CLASSES)
LABELS = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30)


def weighted_one_by_one(counts: list[int], predicted: list[int], labels: list[int]) -> float | None:
    """Each test image weighs its class's share of the client's data, evenly split, exactly."""
    right = total = Fraction(0)
    for guess, truth in zip(predicted, labels, strict=True):
        weight = Fraction(counts[truth], labels.count(truth))
        total += weight
        right += weight if guess == truth else 0
    return float(right / total) if total else None


@given(COUNTS, LABELS, st.data())
def test_accuracy_weighted_by_recalls_is_that_of_weighted_images(
    counts: list[int], labels: list[int], data: st.DataObject
) -> None:
    same = st.lists(st.integers(0, CLASSES - 1), min_size=len(labels), max_size=len(labels))
    predicted = data.draw(same)
    expected = weighted_one_by_one(counts, predicted, labels)
    found = accuracy_on(counts, recalls(predicted, labels, CLASSES))
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))
    assert found is None or 0.0 <= found <= 1.0


@given(LABELS)
def test_the_test_sets_own_classes_give_the_plain_accuracy(labels: list[int]) -> None:
    predicted = [0] * len(labels)
    counts = np.bincount(labels, minlength=CLASSES)
    plain = np.mean(np.array(labels) == 0)
    assert accuracy_on(counts, recalls(predicted, labels, CLASSES)) == pytest.approx(plain)


def test_recalls_by_hand() -> None:
    found = recalls([0, 1, 1, 2, 2], [0, 0, 1, 2, 1], 4)
    assert found[:3].tolist() == [0.5, 0.5, 1.0]
    assert np.isnan(found[3])  # no image of it


def test_classes_without_test_images_count_on_neither_side() -> None:
    assert accuracy_on([3, 1, 100], [0.5, 1.0, np.nan]) == pytest.approx(2.5 / 4)
    assert accuracy_on([0, 0, 100], [0.5, 1.0, np.nan]) is None


@given(COUNTS)
def test_a_prior_is_a_distribution_in_which_no_class_is_impossible(counts: list[int]) -> None:
    prior = class_prior(counts)
    assert prior.sum() == pytest.approx(1.0)
    assert (prior > 0).all()
    total = sum(counts)
    by_hand = [(n + 1 / CLASSES) / (total + 1) for n in counts]
    np.testing.assert_allclose(prior, by_hand, rtol=1e-12)
    np.testing.assert_allclose(np.exp(log_prior(counts)), prior, rtol=1e-6)


def test_two_hundred_absent_classes_do_not_outweigh_fifty_examples() -> None:
    counts = np.zeros(200, int)
    counts[:3] = [30, 15, 5]
    assert class_prior(counts)[3:].sum() < 0.02
    assert class_prior(np.zeros(200, int)) == pytest.approx(np.full(200, 1 / 200))


def test_bayes_rule_by_hand() -> None:
    """Adding log π to a uniform posterior is the posterior with π as prior."""
    likelihood = np.array([0.2, 0.1, 0.4])
    uniform = np.log(likelihood / likelihood.sum())
    counts = [7, 2, 0]
    prior = class_prior(counts)
    expected = likelihood * prior / (likelihood * prior).sum()
    scores = np.exp(uniform + log_prior(counts))
    np.testing.assert_allclose(scores / scores.sum(), expected, rtol=1e-6)


def test_a_device_needs_no_torch_for_it() -> None:
    code = "import sys, fedvtc_edge.statistics.class_prior; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
