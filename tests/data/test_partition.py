"""Partitions deal out every sample once, and enough to everyone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.config import DataSettings, load_config
from fedvtc_edge.data import hold_out, partition
from fedvtc_edge.errors import DataError

SCHEMES = ("dirichlet", "shards", "iid")


def deal(labels: Any, *, clients: int, classes: int, seed: int = 0, **keys: Any) -> list[Any]:
    settings = DataSettings(**keys)
    return partition(labels, clients=clients, classes=classes, settings=settings, seed=seed)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    classes = draw(st.integers(2, 8))
    clients = draw(st.integers(1, 9))
    least = draw(st.integers(1, 6))
    shards = draw(st.integers(1, 3))
    # From exactly enough upwards: the tight cases are those that need the repair.
    total = draw(st.integers(clients * max(least, shards), clients * 20))
    labels = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=total, max_size=total)))
    return {
        "labels": labels,
        "clients": clients,
        "classes": classes,
        "partition": draw(st.sampled_from(SCHEMES)),
        "alpha": draw(st.sampled_from([5e-324, 1e-3, 0.1, 1.0, 1e6])),
        "shards": shards,
        "min_samples": least,
        "seed": draw(st.integers(0, 2**63 - 1)),
    }


@hypothesis_settings(deadline=None, max_examples=60)
@given(case=cases())
def test_a_partition_is_one(case: dict[str, Any]) -> None:
    parts = deal(**case)
    assert len(parts) == case["clients"]
    joined = np.concatenate(parts)
    assert joined.dtype == np.int64
    np.testing.assert_array_equal(np.sort(joined), np.arange(len(case["labels"])))
    for part in parts:
        assert part.dtype == np.int64
        assert len(part) >= case["min_samples"]
        assert (np.diff(part) > 0).all()
    for part, again in zip(parts, deal(**case), strict=True):
        np.testing.assert_array_equal(part, again)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_seed_decides(scheme: str) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 500)
    first, second = (
        deal(labels, clients=5, classes=10, seed=seed, partition=scheme) for seed in (0, 1)
    )
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_dirichlet_agrees_with_its_slow_twin() -> None:
    labels = np.random.default_rng(3).integers(0, 4, 1000)
    rng = np.random.default_rng(7)
    shares = [rng.dirichlet([5.0] * 3) for _ in range(4)]
    twin: list[set[int]] = [set(), set(), set()]
    for label in range(4):
        members = np.flatnonzero(labels == label)
        mixed = rng.permutation(members)
        edges = [0, *(int(edge * len(members)) for edge in np.cumsum(shares[label])[:-1])]
        for client, (start, end) in enumerate(zip(edges, [*edges[1:], len(members)], strict=True)):
            twin[client] |= {int(index) for index in mixed[start:end]}
    parts = deal(labels, clients=3, classes=4, seed=7, alpha=5.0, min_samples=1)
    assert [set(part.tolist()) for part in parts] == twin


def test_a_smaller_alpha_is_more_skewed() -> None:
    labels = np.repeat(np.arange(10), 200)

    def largest_share(alpha: float) -> float:
        parts = deal(labels, clients=10, classes=10, alpha=alpha)
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    assert largest_share(0.05) > 0.6
    assert largest_share(1e6) < 0.15


def test_shards_give_few_classes_and_even_shares() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))
    parts = deal(labels, clients=10, classes=10, partition="shards", shards=2)
    # 20 shards of 50, and every class holds exactly two of them.
    assert [len(part) for part in parts] == [100] * 10
    assert all(len(np.unique(labels[part])) <= 2 for part in parts)


def test_iid_is_even_and_mixed() -> None:
    labels = np.repeat(np.arange(4), 250)
    parts = deal(labels, clients=3, classes=4, partition="iid")
    assert sorted(len(part) for part in parts) == [333, 333, 334]
    for part in parts:
        assert (np.bincount(labels[part]) > 50).all()


def test_repair_takes_from_the_largest() -> None:
    # One class and a vanishing α: every draw gives all to one client, so all others are repaired.
    parts = deal(np.zeros(100, int), clients=4, classes=2, alpha=1e-9, min_samples=5)
    assert sorted(len(part) for part in parts) == [5, 5, 5, 85]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_too_few_samples(scheme: str) -> None:
    with pytest.raises(DataError, match="79 samples for 10 clients") as caught:
        deal(np.zeros(79, int), clients=10, classes=2, partition=scheme, min_samples=8)
    assert "at most 9 clients" in caught.value.hint


def test_too_many_shards() -> None:
    with pytest.raises(DataError, match="80 samples for 10 clients of 9 shards") as caught:
        deal(np.zeros(80, int), clients=10, classes=2, partition="shards", shards=9)
    assert "at most 8" in caught.value.hint


@pytest.mark.parametrize("labels", [np.array([0, 1, 2] * 20), np.array([-1, 0] * 20), np.zeros(50)])
def test_labels_are_checked(labels: Any) -> None:
    with pytest.raises(DataError, match="labels to partition"):
        deal(labels, clients=2, classes=2)


def test_held_out_is_a_share_of_every_class_and_the_same_again() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    config = load_config({"data": {"holdout": 0.2}})
    kept, held = hold_out(labels, config, "client-00")
    assert np.bincount(labels[held]).tolist() == [20, 10, 2]
    assert sorted([*kept, *held]) == list(range(160))
    again = hold_out(labels, config, "client-00")[1]
    assert again.tolist() == held.tolist()
    assert hold_out(labels, config, "client-01")[1].tolist() != held.tolist()
    assert hold_out(labels, config.replace(seed=1), "client-00")[1].tolist() != held.tolist()


@pytest.mark.parametrize(("count", "share", "held"), [(49, 0.2, 0), (50, 0.2, 10), (500, 0.0, 0)])
def test_too_few_are_not_held_out(count: int, share: float, held: int) -> None:
    labels = np.zeros(count, int)
    config = load_config({"data": {"holdout": share}})
    kept, found = hold_out(labels, config, "client-00")
    assert (len(kept), len(found)) == (count - held, held)
