"""What is given to a graph: one form is let through, all others are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.errors import BundleError
from fedvtc_edge.export.inputs import as_labels, check_images, check_noise
from fedvtc_edge.export.manifest import Image

NAMES = ("cat", "dog", "bird")
KNOWN = np.array([True, False, True])
FORM = Image(
    size=8, channels=3, colour="rgb", resize="bilinear, antialiased, stretched to the square"
)
KINDS = "bhilBHIL"


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_every_whole_type_are_taken(kind: str) -> None:
    got = as_labels(np.array([2, 0, 2], kind), NAMES, KNOWN)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, [2, 0, 2])


@pytest.mark.parametrize("labels", [[2, 0], (0,), range(0, 3, 2), np.array([0, 9, 2])[::2]])
def test_labels_of_every_sequence_are_taken(labels: Any) -> None:
    np.testing.assert_array_equal(as_labels(labels, NAMES, KNOWN), np.asarray(labels))


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([-1], r"label -1, expected 0 to 2"),
        ([0, 3], r"label 3, expected 0 to 2"),
        ([0, -(2**63)], "label -9223372036854775808, expected"),
        (np.array([2**64 - 1], np.uint64), "label 18446744073709551615, expected"),
        (np.array([2**63], np.uint64), "label 9223372036854775808, expected"),
        ([2**64], "object"),
        ([-1, 2**63], "expected whole numbers"),
        ([1.0], "float64"),
        (np.array([1], np.float16), "float16"),
        ([np.nan], "float64"),
        ([True, False], "bool"),
        (np.array([True]), "bool"),
        ([np.True_], "bool"),
        ([1 + 0j], "complex"),
        (["0"], "<U1"),
        ([b"0"], "S1"),
        ([None], "object"),
        (None, "object"),
        (np.array([0], "m8[s]"), "timedelta"),
        (np.array([0], "M8[s]"), "datetime"),
        ([], r"shape \[0\]"),
        (np.zeros(0, np.int64), r"shape \[0\]"),
        (0, r"shape \[\]"),
        ([[0, 2]], r"shape \[1, 2\]"),
        (np.zeros((0, 2), int), r"shape \[0, 2\]"),
        ([[0], [0, 2]], "labels: "),
        ([1], r"label 1 \(dog\): no client had a sample"),
        ([0, 1, 2], r"label 1 \(dog\)"),
    ],
)
def test_labels_that_are_none_are_refused(labels: Any, reason: str) -> None:
    with pytest.raises(BundleError, match=reason) as error:
        as_labels(labels, NAMES, KNOWN)
    assert error.value.exit_code == 2


@hypothesis_settings(deadline=None, max_examples=100)
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_exactly_the_known_classes_are_taken(kind: str, data: st.DataObject) -> None:
    bounds = np.iinfo(kind)
    near = st.sampled_from([0, 2])
    anywhere = st.integers(int(bounds.min), int(bounds.max))
    labels = data.draw(st.lists(near | anywhere, min_size=1, max_size=6))
    if set(labels) <= {0, 2}:
        assert as_labels(np.array(labels, kind), NAMES, KNOWN).tolist() == labels
    else:
        with pytest.raises(BundleError, match="label"):
            as_labels(np.array(labels, kind), NAMES, KNOWN)


@pytest.mark.parametrize("shape", [(4, 3), (1, 3)])
def test_noise_of_the_right_form_is_taken(shape: tuple[int, int]) -> None:
    check_noise(np.zeros(shape, np.float32), *shape)
    check_noise(np.zeros(shape[::-1], np.float32).T, *shape)


@pytest.mark.parametrize(
    ("noise", "reason"),
    [
        (np.zeros((4, 3)), "float64, expected float32"),
        (np.zeros((4, 3), np.float16), "float16"),
        (np.zeros((4, 3), ">f4"), ">f4"),
        (np.zeros((4, 3), int), "int64"),
        ([[0.0] * 3] * 4, "list, expected float32"),
        (None, "NoneType"),
        (np.zeros((4, 2), np.float32), r"\[4, 2\], expected \[4, 3\]"),
        (np.zeros((5, 3), np.float32), r"\[5, 3\], expected \[4, 3\]"),
        (np.zeros((0, 3), np.float32), r"\[0, 3\], expected"),
        (np.zeros(12, np.float32), r"\[12\], expected"),
        (np.zeros((4, 3, 1), np.float32), r"\[4, 3, 1\], expected"),
    ],
)
def test_noise_of_another_form_is_refused(noise: Any, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        check_noise(noise, 4, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (3, 2)])
def test_noise_that_is_not_finite_is_refused(value: float, place: tuple[int, int]) -> None:
    noise = np.zeros((4, 3), np.float32)
    noise[place] = value
    with pytest.raises(BundleError, match="NaN or infinity"):
        check_noise(noise, 4, 3)


@pytest.mark.parametrize("count", [1, 5])
def test_images_of_the_right_form_are_taken(count: int) -> None:
    check_images(np.zeros((count, 8, 8, 3), np.uint8), FORM)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "float32, expected uint8"),
        (np.zeros((2, 8, 8, 3), np.int8), "int8"),
        (np.zeros((2, 8, 8, 3), bool), "bool"),
        (np.zeros((2, 8, 8, 3), np.int64), "int64"),
        ([[[[0] * 3] * 8] * 8], "list"),
        (None, "NoneType"),
        (np.zeros((8, 8, 3), np.uint8), r"\[8, 8, 3\], expected \[N, 8, 8, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"\[0, 8, 8, 3\].* N at least 1"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"\[2, 3, 8, 8\]"),
        (np.zeros((2, 8, 8, 1), np.uint8), r"\[2, 8, 8, 1\]"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"\[2, 8, 8, 4\]"),
        (np.zeros((2, 9, 8, 3), np.uint8), r"\[2, 9, 8, 3\]"),
        (np.zeros((2, 8, 7, 3), np.uint8), r"\[2, 8, 7, 3\]"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), r"\[1, 2, 8, 8, 3\]"),
    ],
)
def test_images_of_another_form_are_refused(images: Any, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        check_images(images, FORM)
