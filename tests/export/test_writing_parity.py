"""The comparisons that decide whether a graph is exported: slow twins, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedvtc_edge.errors import ParityError
from fedvtc_edge.export.writing import (
    TIE,
    TOLERANCE,
    compare_floats,
    compare_logits,
    compare_pixels,
)

numbers = st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
rows = arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(2, 4)), elements=numbers)


def of(*values: Any) -> Any:
    return np.array(values, np.float32)


# Logits and features.


@given(rows, st.data())
def test_relative_error_is_the_worst_rows(reference: Any, data: st.DataObject) -> None:
    factor = data.draw(st.sampled_from([0.0, 1e-7, 1e-5, 9e-5, 2e-4, 0.1]))
    signs = data.draw(arrays.arrays(np.int8, reference.shape, elements=st.integers(-1, 1)))
    actual = (reference * (1 + factor * signs)).astype(np.float32)
    worst = 0.0
    for expected, got in zip(reference, actual, strict=True):
        largest = max(abs(float(x)) for x in expected)
        apart = max(abs(float(x) - float(y)) for x, y in zip(expected, got, strict=True))
        worst = max(worst, apart / largest if largest else apart)
    if worst > 1.01 * TOLERANCE:
        with pytest.raises(ParityError, match=r"logits: .* relative error"):
            compare_floats(reference, actual, "logits")
    elif worst < 0.99 * TOLERANCE:
        report = compare_floats(reference, actual, "logits")
        assert report["samples"] == len(reference)
        assert report["max_relative_error"] == pytest.approx(worst, rel=0.1, abs=1e-7)


def test_an_error_counts_against_its_own_row_only() -> None:
    reference = of([1000, 0], [0.01, 0])
    compare_floats(reference, of([1000.01, 0], [0.01, 0]), "x")
    with pytest.raises(ParityError, match=r"relative error 0\.5"):
        compare_floats(reference, of([1000, 0], [0.015, 0]), "x")
    with pytest.raises(ParityError):  # an absolute tolerance would pass garbage that is tiny
        compare_floats(of([1e-9, 0]), of([0, 1e-9]), "x")


@pytest.mark.parametrize("compare", [compare_floats, compare_logits])
@pytest.mark.parametrize(
    ("reference", "actual"),
    [
        (of([1, 2]), of([1, np.nan])),
        (of([1, 2]), of([1, np.inf])),
        (of([1, np.nan]), of([1, 2])),
        (of([1, np.nan]), of([1, np.nan])),
        (of([1, np.inf]), of([1, np.inf])),
        (of([1, 2]), of([1, 2, 3])),
        (of([1, 2]), of([1, 2], [1, 2])),
        (of([1, 2]), of([2, 1])),
        (of([0, 0]), of([0, 1e-6])),
    ],
)
def test_what_no_tolerance_covers(compare: Any, reference: Any, actual: Any) -> None:
    with pytest.raises(ParityError) as refused:
        compare(reference, actual, "classifier.onnx, random images")
    assert refused.value.exit_code == 1
    assert "classifier.onnx, random images: onnxruntime and torch disagree" in str(refused.value)
    assert "not exported" in refused.value.hint


@given(rows, st.sampled_from([0.0, 1e-7, 3e-5]), st.integers(0, 2**32 - 1))
def test_argmax_may_differ_in_ties_alone(reference: Any, factor: float, seed: int) -> None:
    shift = np.random.default_rng(seed).uniform(-1, 1, reference.shape)
    scale = np.abs(reference).max(1, keepdims=True)
    actual = (reference + factor * shift * scale).astype(np.float32)
    report = compare_logits(reference, actual, "logits")
    differing = sum(
        max(range(len(x)), key=x.__getitem__) != max(range(len(y)), key=y.__getitem__)
        for x, y in zip(reference.tolist(), actual.tolist(), strict=True)
    )
    assert report["ties"] == differing
    assert report["argmax_agreement"] == pytest.approx(1 - differing / len(reference))


def test_a_tie_is_counted_and_a_disagreement_refused() -> None:
    near = 1 - TOLERANCE / 2
    report = compare_logits(of([1, near], [1, 0]), of([near, 1], [1, 0]), "x")
    assert (report["ties"], report["argmax_agreement"]) == (1, 0.5)
    with pytest.raises(ParityError):
        compare_logits(of([1, 0.99], [1, 0]), of([0.99, 1], [1, 0]), "x")


# Pixels.

levels_ = st.one_of(
    st.floats(0, 255, width=32),
    st.integers(0, 254).flatmap(
        lambda n: st.sampled_from([0.5, 0.5 - TIE / 2, 0.5 + TIE / 2, 0.5 - 3 * TIE]).map(
            lambda part: float(np.float32(n + part))
        )
    ),
)


@given(
    arrays.arrays(np.float32, (2, 2, 2, 1), elements=levels_),
    st.lists(st.sampled_from([0, 0, 0, 1, -1, 2, 255]), min_size=8, max_size=8),
)
def test_pixels_differ_in_ties_alone(levels: Any, changes: list[int]) -> None:
    ties, wrong, painted = 0, 0, []
    for level, change in zip(levels.ravel().tolist(), changes, strict=True):
        expected = round(level)  # Python rounds half to even, as torch and ONNX do
        actual = min(max(expected + change, 0), 255)
        if actual != expected:
            below = int(level)
            toss = abs(level - below - 0.5) <= TIE and actual in (below, below + 1)
            ties, wrong = ties + toss, wrong + (not toss)
        painted.append(actual)
    actual = np.array(painted, np.uint8).reshape(levels.shape)
    if wrong:
        with pytest.raises(ParityError, match=f"painter: .* {wrong} of 8 pixels differ"):
            compare_pixels(levels, actual, "painter")
    else:
        assert compare_pixels(levels, actual, "painter") == {
            "samples": 2,
            "pixels": 8,
            "equal_pixels": 8 - ties,
            "rounding_ties": ties,
        }


@pytest.mark.parametrize(
    ("levels", "actual"),
    [
        (of([0, 100]), np.array([[0, 101]], np.uint8)),
        (of([0, 100.5]), np.array([[0, 99]], np.uint8)),
        (of([0, 255]), np.array([[0, 0]], np.uint8)),
        (of([0, 0.2]), np.array([[0, 255]], np.uint8)),
        (of([0, 1]), np.array([[0, 1]], np.float32)),
        (of([0, 1]), np.array([[0, 1]], np.int64)),
        (of([0, 1]), np.array([[0, 1, 2]], np.uint8)),
        (of([0, np.nan]), np.array([[0, 0]], np.uint8)),
        (of([0, np.inf]), np.array([[0, 255]], np.uint8)),
    ],
)
def test_pixels_that_no_tie_explains(levels: Any, actual: Any) -> None:
    with pytest.raises(ParityError, match=r"synthesizer\.onnx: onnxruntime and torch disagree"):
        compare_pixels(levels, actual, "synthesizer.onnx")
