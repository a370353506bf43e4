"""Warps and pairs: what they keep of an image, and that one stream decides them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedvtc_edge.training.augmentation import borders, paired, warp

SHAPES = st.tuples(st.integers(1, 5), st.sampled_from([1, 3]), st.sampled_from([8, 12, 28]))


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(shape: tuple[int, int, int], seed: int = 1) -> Tensor:
    count, channels, size = shape
    return torch.rand((count, channels, size, size), generator=stream(seed))


def pair(x: Tensor, draw: torch.Generator) -> Tensor:
    return paired(x, x.flip(0), draw)


@pytest.mark.parametrize("change", [warp, pair])
@given(shape=SHAPES, seed=st.integers(0, 2**32))
def test_a_picture_stays_a_picture(
    change: Callable[[Tensor, torch.Generator], Tensor], shape: tuple[int, int, int], seed: int
) -> None:
    x = pictures(shape)
    kept = x.clone()
    made = change(x, stream(seed))
    assert made.shape == x.shape
    assert made.dtype == torch.float32
    assert made.min() >= -1e-5
    assert made.max() <= 1 + 1e-5
    assert torch.equal(made, change(x, stream(seed)))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("change", [warp, pair])
def test_another_stream_makes_another_picture(
    change: Callable[[Tensor, torch.Generator], Tensor],
) -> None:
    x = pictures((6, 3, 8))
    assert not torch.equal(change(x, stream(1)), change(x, stream(2)))


@given(shape=SHAPES)
def test_no_strength_changes_nothing(shape: tuple[int, int, int]) -> None:
    x = pictures(shape)
    torch.testing.assert_close(warp(x, stream(), strength=0.0), x, rtol=0, atol=1e-5)


def test_warps_move_each_image_in_its_own_way() -> None:
    x = pictures((1, 1, 12)).expand(8, 1, 12, 12)
    made = warp(x, stream())
    assert all(not torch.equal(made[0], other) for other in made[1:])


def test_a_plain_surface_has_nothing_to_warp() -> None:
    """Borders repeat the edge: no black corners, which would be a cue."""
    x = torch.full((20, 3, 8, 8), 0.7)
    torch.testing.assert_close(warp(x, stream()), x)


def test_only_colour_images_are_mirrored() -> None:
    """A digit's mirror image is no digit."""
    ramp = torch.linspace(0, 1, 12).expand(12, 12)
    rises = {}
    for channels in (1, 3):
        made = warp(ramp.expand(60, channels, 12, 12), stream())
        rises[channels] = made[:, 0, :, 6:].mean((1, 2)) > made[:, 0, :, :6].mean((1, 2))
    assert rises[1].all()
    assert 15 < rises[3].sum() < 45


@pytest.mark.parametrize("channels", [1, 3])
def test_pairs_are_collages_averages_or_the_first(channels: int) -> None:
    first = torch.full((600, channels, 8, 8), 0.25)
    second = torch.full((600, channels, 8, 8), 0.75)
    made = paired(first, second, stream())
    kinds = {"first": 0, "average": 0, "collage": 0}
    for one in made:
        assert all(torch.equal(one[0], plane) for plane in one)  # one border for all channels
        values = set(one.flatten().tolist())
        assert min(values) >= 0.25
        assert max(values) <= 0.75
        if values <= {0.25, 0.75}:  # a collage may happen to show one of the two alone
            kinds["collage" if 0.75 in values else "first"] += 1
        else:
            assert len(values) == 1
            kinds["average"] += 1
    assert 60 < kinds["average"] < 120
    assert 240 < kinds["collage"] < 400
    assert 150 < kinds["first"] < 250


def test_borders_part_images_in_two() -> None:
    made = borders(300, 8, stream())
    assert made.shape == (300, 1, 8, 8)
    assert set(made.flatten().tolist()) == {0.0, 1.0}
    shares = made.mean((1, 2, 3))
    assert ((shares > 0) & (shares < 1)).sum() > 150
