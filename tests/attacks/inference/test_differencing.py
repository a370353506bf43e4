"""What an upload and the next one, without a record, say about that record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fedvtc_edge import wire
from fedvtc_edge.attacks.adversary.view import Case, Population, View
from fedvtc_edge.attacks.inference.exact_recovery import Differencing, cosines, departed
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.statistics.class_statistics import ClassStatistics

Array = NDArray[np.float64]

ANCHOR = Anchor(ImageShape(8, 1), 64, 0).eval()


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """170 sevens or so, shuffled."""
    data = load_digits()
    chosen = np.random.default_rng(1).permutation(data.images[data.target == 7])
    return torch.from_numpy(chosen / 16).float()[:, None]


def features(images: torch.Tensor) -> Array:
    with torch.no_grad():
        z: Array = ANCHOR(images).double().numpy()
    return z


def case(
    images: torch.Tensor,
    count: int,
    precision: wire.Precision = "float32",
    noise: float = 0.0,
    **changes: Any,
) -> Case:
    """The first image left; candidates are it and 40 that were never there."""
    z, rng = features(images), np.random.default_rng(2)

    def view(held: Array) -> View:
        labels = [0] * len(held)
        sums = ClassStatistics.of(held, labels, classes=1)
        seen = wire.decode(wire.encode(sums, precision=precision), classes=1, width=64)
        return View(
            who="server",
            label=0,
            count=max(float(seen.count[0]) + noise * rng.standard_normal(), 1.0),
            mean=seen.mean[0] + noise / count * rng.standard_normal(64),
            std=None,
            public=images[:0],
            everyday=images[:0],
            noise=noise,
            extract=ANCHOR,
            population=Population(z[-30:].mean(0), np.eye(64)),
        )

    whole = replace(view(z[:count]), after=view(z[1:count]))
    return Case(replace(whole, **changes), images[[0, *range(count, count + 40)]])


def answer(question: Case) -> Array:
    (guess,) = Differencing().guess([question], stream())
    assert guess is not None
    assert guess.picture is None
    return guess.scores


@pytest.mark.parametrize("count", [1, 2, 5, 100])
def test_the_record_that_left_is_what_the_difference_is(images: torch.Tensor, count: int) -> None:
    scores = answer(case(images, count))
    assert scores[0] > 0.999
    assert scores[1:].max() < 0.99
    assert ((scores >= -1) & (scores <= 1 + 1e-12)).all()


def test_float16_hides_a_record_among_a_hundred_a_little(images: torch.Tensor) -> None:
    exact, rounded = (answer(case(images, 100, precision)) for precision in ("float32", "float16"))
    assert 0.9 < rounded[0] < exact[0] - 1e-4
    assert rounded.argmax() == 0


def test_departed_is_the_difference_of_sums() -> None:
    z, centre = np.random.default_rng(3).standard_normal((9, 5)), np.full(5, 7.0)
    gone = departed(z.mean(0), 9, z[1:].mean(0), 8, centre)
    np.testing.assert_allclose(gone, z[0] - centre)


def test_false_counts_do_little_about_the_centre() -> None:
    """A count that is off by half adds half of what the mean is off the centre, and no more."""
    z = 50 + np.random.default_rng(4).standard_normal((9, 64))
    gone = departed(z.mean(0), 9.5, z[1:].mean(0), 8, z.mean(0))
    assert cosines((z - z.mean(0))[:1], gone)[0] > 0.999


def test_noise_hides_it_by_degrees(images: torch.Tensor) -> None:
    found = [answer(case(images, 20, noise=noise))[0] for noise in (0.0, 0.1, 1.0, 1e3)]
    assert np.isfinite(found).all()
    assert found[0] > 0.999 > found[1] > 0.5 > abs(found[3])
    assert found[1] > found[2]


def test_noised_counts_are_taken_as_they_are(images: torch.Tensor) -> None:
    question = case(images, 20, noise=1.0)
    view = question.view
    assert view.after is not None
    assert view.population is not None
    assert abs(view.count - view.after.count - 1) > 0.1
    centre = view.population.mean
    gone = departed(view.mean, view.count, view.after.mean, view.after.count, centre)
    twin = [
        float((phi - centre) @ gone / np.linalg.norm(phi - centre) / np.linalg.norm(gone))
        for phi in question.features()
    ]
    np.testing.assert_allclose(answer(question), twin)


def test_nothing_gone_tells_nothing(images: torch.Tensor) -> None:
    question = case(images, 20)
    mean = question.view.mean
    assert question.view.population is not None
    centred = replace(question.view.population, mean=mean)
    after = replace(question.view, after=None, mean=mean)
    same = Case(replace(question.view, after=after, population=centred), question.candidates)
    np.testing.assert_array_equal(answer(same), 0.0)


def test_no_direction_has_cosine_zero() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert cosines(rows, np.array([1.0, 0.0])).tolist() == [0.0, 0.6]
    assert cosines(rows, np.zeros(2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("lacking", ["after", "extract", "population"])
def test_no_answer_without_what_it_needs(images: torch.Tensor, lacking: str) -> None:
    question = case(images, 5, **{lacking: None})
    assert Differencing().guess([question], stream()) == [None]
