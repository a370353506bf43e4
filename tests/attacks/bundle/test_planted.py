"""The search for what was scaled, shifted or mixed: it is found, and chance finds nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedvtc_edge.attacks.bundle import planted
from fedvtc_edge.attacks.bundle.planted import Search, Wanted, nearness

Array = NDArray[Any]
DRAW = np.random.default_rng(5)


def wanted(rows: Array, floor: float = 0.8) -> list[Wanted]:
    return [Wanted(str(place), "images", row[None], floor) for place, row in enumerate(rows)]


def names(search: Search, numbers: Array) -> set[str]:
    return {found.wanted.name for found in search.within(numbers)}


def haystack(length: int, row: Array, place: int, scale: float, shift: float) -> Array:
    numbers = np.random.default_rng(8).standard_normal(length)
    numbers[place : place + len(row)] = scale * row + shift
    return numbers


@pytest.mark.parametrize("length", [24, 64, 300, 784])
@pytest.mark.parametrize("scale", [1.0, -0.003, 40.0])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
def test_what_was_scaled_and_shifted_is_found(length: int, scale: float, kind: Any) -> None:
    rows = DRAW.standard_normal((20, length))
    search = Search(wanted(rows), 5000)
    for place in (0, 777, 5000 - length):
        numbers = haystack(5000, rows[3], place, scale, 2.0 * scale).astype(kind)
        assert names(search, numbers) == {"3"}


@given(
    place=st.integers(0, 2000 - 100),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-10, 10),
    length=st.sampled_from([40, 100]),
)
def test_it_is_found_anywhere(place: int, scale: float, shift: float, length: int) -> None:
    rows = np.random.default_rng(1).standard_normal((5, length))
    search = Search(wanted(rows), 2000)
    assert names(search, haystack(2000, rows[2], place, scale, shift * scale)) == {"2"}


@pytest.mark.parametrize("length", [64, 300])
def test_noise_on_it_is_forgiven_as_far_as_chance_allows(length: int) -> None:
    rows = DRAW.standard_normal((10, length))
    search = Search(wanted(rows), 3000)
    noisy = rows[4] + 0.3 * DRAW.standard_normal(length)
    assert names(search, haystack(3000, noisy, 50, 0.1, 0.0)) == {"4"}
    lost = rows[4] + 30 * DRAW.standard_normal(length)
    assert names(search, haystack(3000, lost, 50, 0.1, 0.0)) == set()


@pytest.mark.parametrize("length", [64, 300])
@pytest.mark.parametrize("giant", [1e9, 1e30, 1e300, np.inf, np.nan])
def test_a_huge_number_hides_nothing_but_itself(length: int, giant: float) -> None:
    rows = DRAW.standard_normal((10, length))
    numbers = haystack(4000, rows[1], 1000, 1e-4, 0.0)
    numbers[[10, 990, 1000 + length + 2]] = giant
    assert names(Search(wanted(rows), 4000), numbers) == {"1"}


def test_columns_are_found_as_rows_are() -> None:
    rows = DRAW.standard_normal((6, 50))
    numbers = DRAW.standard_normal((50, 9))
    numbers[:, 4] = 3 - 2 * rows[5]
    search = Search(wanted(rows), numbers.size)
    assert names(search, numbers) == {"5"}
    assert names(search, numbers.reshape(5, 10, 9)) == set()  # the columns are no axis any more


@pytest.mark.parametrize("length", [64, 300])
def test_mixtures_are_found(length: int) -> None:
    rows = DRAW.standard_normal((6, length))
    mixed = DRAW.standard_normal(6) @ rows
    plane = Search([Wanted("plane", "statistics", rows)], 3000)
    assert names(plane, haystack(3000, mixed, 100, 0.2, 5.0)) == {"plane"}
    assert names(Search(wanted(rows, 0.99), 3000), haystack(3000, mixed, 100, 0.2, 5.0)) == set()
    assert names(plane, DRAW.standard_normal(3000)) == set()


@pytest.mark.parametrize("kind", [np.float32, np.int8])
@pytest.mark.parametrize("length", [12, 30, 64, 200])
def test_chance_finds_nothing(length: int, kind: Any) -> None:
    """Eight seeds of 200 by 20,000 comparisons; the bound is one in a million for each."""
    for seed in range(8):
        draw = np.random.default_rng(seed)
        rows = draw.standard_normal((200, length))
        numbers = draw.standard_normal(20_000)
        numbers = (30 * numbers).clip(-127, 127).astype(kind)
        assert names(Search(wanted(rows), numbers.size), numbers) == set()


def test_the_bound_is_one() -> None:
    """Of random directions about as many fall within the angle as the bound allows."""
    draw = np.random.default_rng(3)
    for length, rank in ((8, 1), (12, 3), (30, 1)):
        near = nearness(length, rank, pairs=1.0, chance=1e-3)
        rows = draw.standard_normal((400_000, length - 1))
        inside = np.square(rows[:, :rank]).sum(axis=1) / np.square(rows).sum(axis=1)
        share = float((inside >= 1 - near).mean())
        assert 0.2e-3 < share <= 1e-3


@pytest.mark.parametrize(
    "row",
    [
        np.zeros(64),
        np.ones(64),
        np.r_[np.zeros(60), 1, 0, 0, 0],
        np.r_[np.zeros(6), 3.0, 4.0, 9.0, 1.0],
        np.arange(4.0),
    ],
    ids=["zeros", "ones", "one pixel", "few counts", "too short"],
)
def test_what_could_be_anything_is_not_looked_for_and_that_is_said(row: Array) -> None:
    search = Search(wanted(row[None]), 1000)
    assert [one.name for one in search.skipped] == ["0"]
    numbers = np.r_[np.zeros(100), row, np.zeros(100)]
    assert names(search, numbers) == set()


def test_counts_of_many_classes_are_told_from_chance() -> None:
    counts = np.array([12.0, 44, 3, 7, 29, 31, 2, 18, 5, 23])
    search = Search([Wanted("counts", "histogram", counts[None], 0.999)], 3000)
    assert names(search, haystack(3000, counts / counts.sum(), 60, 1.0, 0.0)) == {"counts"}


def test_arrays_without_numbers_or_too_short_are_passed() -> None:
    search = Search(wanted(DRAW.standard_normal((3, 40))), 100)
    for array in (np.zeros((0, 5)), np.array(3.0), np.array(["x"] * 50), np.ones(40, bool)):
        assert search.within(array) == []


def test_parts_of_long_arrays_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "_LONG", 1000)
    monkeypatch.setattr(planted, "_NUMBERS", 3000)
    for length in (50, 400):
        rows = DRAW.standard_normal((4, length))
        search = Search(wanted(rows), 4000)
        for place in range(0, 4000 - length, 97):
            assert names(search, haystack(4000, rows[0], place, 1.0, 0.0)) == {"0"}
