"""Public images: which they are, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvtc_edge.config import DataSettings
from fedvtc_edge.data import load_dataset, public
from fedvtc_edge.data.arrays import pack
from fedvtc_edge.data.own import DataTerms, terms_of
from fedvtc_edge.data.public import digest_of_images
from fedvtc_edge.errors import DataError


def rows(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


@pytest.mark.parametrize("evaluate", ["test", "validation"])
def test_the_rest_is_neither_trained_on_nor_tested_on(evaluate: str) -> None:
    settings = DataSettings(limit=300, public="rest", evaluate=evaluate)  # type: ignore[arg-type]
    data, alone = load_dataset(settings), load_dataset(settings.model_copy(update={"public": ""}))
    assert data.x_public is not None
    assert alone.x_public is None
    np.testing.assert_array_equal(data.x_train, alone.x_train)
    whole = load_dataset(DataSettings(evaluate=evaluate))  # type: ignore[arg-type]
    known = rows(data.x_train) | rows(data.x_public)
    assert len(data.x_public) == min(len(whole.x_train) - 300, public.PUBLIC)
    assert known <= rows(whole.x_train)
    # Digits has a few images twice: those apart, nothing is on two sides.
    twice = len(whole.x_train) - len(rows(whole.x_train))
    assert len(rows(data.x_train) & rows(data.x_public)) <= twice


def test_of_more_images_some_are_drawn_whatever_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public, "PUBLIC", 50)
    first, second = (load_dataset(DataSettings(limit=300, public="rest")).x_public for _ in "ab")
    assert first is not None
    assert len(first) == 50
    np.testing.assert_array_equal(first, second)


def archive(path: Path, size: int, channels: int = 1) -> str:
    images = np.random.default_rng(0).integers(0, 255, (20, size, size, channels), np.uint8)
    labels = np.arange(20) % 2
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return str(path)


def test_another_set_of_any_classes_gives_its_training_images(tmp_path: Path) -> None:
    data = load_dataset(DataSettings(public=archive(tmp_path / "other.npz", 12)))
    assert data.x_public is not None
    assert data.x_public.shape == (20, 8, 8, 1)  # as large as the run's own
    assert len(data.class_names) == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"public": "rest"}, "no training image is left over"),
        ({"public": "rest", "limit": 5000}, "no training image is left over"),
        ({"public": "Digits"}, "names the clients' own images"),
        ({"public": "digitz"}, "unknown data set 'digitz'"),
    ],
)
def test_what_is_no_public_set(changes: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_dataset(DataSettings(**changes))  # type: ignore[arg-type]


def test_images_in_colour_beside_grey_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images of shape") as raised:
        load_dataset(DataSettings(public=archive(tmp_path / "colour.npz", 8, 3)))
    assert raised.value.hint == "both must be grey or in colour"


def test_no_file_holds_public_images() -> None:
    with pytest.raises(DataError, match="x_public goes into no file"):
        pack(load_dataset(DataSettings(limit=300, public="rest")))


def test_terms_tell_public_images_and_are_as_before_without() -> None:
    data = load_dataset(DataSettings(limit=300, public="rest"))
    terms = terms_of(data, 0)
    assert DataTerms.from_json(terms.to_json()) == terms
    assert terms.public == digest_of_images(data.x_public)
    assert data.x_public is not None
    assert digest_of_images(data.x_public[::-1]) != terms.public
    assert "public" not in terms_of(load_dataset(DataSettings()), 0).to_json()
