"""Streams are decided by their names and by nothing else."""

from __future__ import annotations

import itertools

import torch

from fedvtc_edge.seeding import derive_seed, generator, seed_layers


def test_golden_seed() -> None:
    """A change here changes every result of every seed."""
    assert derive_seed(0, "client-00", 1, "train") == 4716841219628691351


def test_seeds_have_63_bits() -> None:
    seeds = [derive_seed(0, n) for n in range(200)]
    assert len(set(seeds)) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_every_part_of_a_name_counts() -> None:
    names = [
        (0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a", 2), (0, 1, "a"),
        (0, "ab"), (0, "a", "b"), (0, "", "ab"), (0, "a", ""), (0, 11), (0, 1, 1), (1, 1),
    ]  # fmt: skip
    seeds = [derive_seed(*name) for name in names]
    assert len(set(seeds)) == len(names)
    assert seeds == [derive_seed(*name) for name in names]


def test_streams_of_one_name_agree_and_of_different_names_do_not() -> None:
    draws = [torch.randn(8, generator=generator(3, "x", n)) for n in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_streams_leave_the_global_one_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    torch.randn(8, generator=generator(3, "x"))
    assert torch.equal(before, torch.get_rng_state())


def test_neighbouring_streams_are_not_correlated() -> None:
    draws = torch.stack([torch.randn(4000, generator=generator(0, n)) for n in range(6)])
    for a, b in itertools.combinations(draws, 2):
        assert abs(float((a * b).mean())) < 5 / 4000**0.5


def test_layers_follow_the_seed_like_manual_seed() -> None:
    torch.manual_seed(7)
    expected = torch.rand(4)
    seed_layers(7, torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)
