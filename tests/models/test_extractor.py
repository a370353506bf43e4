"""The anchor is one public function for ever: against a loop, and against its golden values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor, _averages, _Edges, _edges, _smooth_filters


def picture(size: int, channels: int) -> torch.Tensor:
    """Two smooth images in [0, 1] that need no generator."""
    i = torch.arange(2 * channels * size**2, dtype=torch.float64)
    return (0.5 + 0.5 * torch.sin(0.37 * i + i.sqrt())).view(2, channels, size, size).float()


def convolved(image: Any, filters: Any, *, stride: int, padding: int) -> Any:
    """The slow twin of conv2d: one window after the other."""
    kernel = filters.shape[-1]
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    rows = range(0, image.shape[1] + 2 * padding - kernel + 1, stride)
    columns = range(0, image.shape[2] + 2 * padding - kernel + 1, stride)
    out = np.zeros((len(filters), len(rows), len(columns)))
    for a, top in enumerate(rows):
        for b, left in enumerate(columns):
            window = padded[:, top : top + kernel, left : left + kernel]
            for n, one in enumerate(filters):
                out[n, a, b] = (window * one).sum()
    return out


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (20, 3)])
def test_it_is_what_the_loops_say(size: int, channels: int) -> None:
    width, grid, stride = 6, 4, 1 if size <= 16 else 2
    anchor = Anchor(ImageShape(size, channels), width, seed=3)
    first, second, project = (
        anchor.get_buffer(name).double().numpy() for name in ("first", "second", "project")
    )
    x = picture(size, channels)[:1]
    image = x[0].double().numpy()
    h = np.maximum(convolved(image - image.mean(), first, stride=stride, padding=2), 0)
    h = np.maximum(convolved(h - h.mean(0), second, stride=1, padding=1), 0)
    side = h.shape[-1]
    pooled = np.zeros((len(h), grid, grid))
    for i in range(grid):
        for j in range(grid):
            rows = slice(i * side // grid, -(-(i + 1) * side // grid))
            columns = slice(j * side // grid, -(-(j + 1) * side // grid))
            pooled[:, i, j] = h[:, rows, columns].mean((1, 2))
    a = pooled.reshape(len(h), -1).T.ravel() @ project
    a *= np.sqrt(width) / np.linalg.norm(a)
    np.testing.assert_allclose(anchor(x)[0].numpy(), a, atol=1e-4)


@pytest.mark.parametrize("size", [8, 12, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_row_has_the_norm_that_was_promised(size: int, channels: int) -> None:
    anchor = Anchor(ImageShape(size, channels), 16, seed=0)
    a = anchor(picture(size, channels))
    assert a.shape == (2, 16)
    np.testing.assert_allclose(a.norm(dim=1).numpy(), [4.0, 4.0], rtol=1e-5)
    assert (a[0] - a[1]).norm() > 0.1


def test_an_image_of_one_colour_has_no_features_but_is_finite() -> None:
    anchor = Anchor(ImageShape(8, 1), 16, seed=0)
    assert torch.isfinite(anchor(torch.full((1, 1, 8, 8), 0.5))).all()


def test_brightness_does_not_count() -> None:
    anchor = Anchor(ImageShape(8, 1), 16, seed=0)
    x = picture(8, 1)
    torch.testing.assert_close(anchor(x), anchor(0.5 * x + 0.25), atol=1e-4, rtol=0)


def test_gradients_reach_the_image_and_nothing_is_trained() -> None:
    anchor = Anchor(ImageShape(8, 1), 16, seed=0)
    assert not list(anchor.parameters())
    x = picture(8, 1).requires_grad_()
    torch.autograd.backward(anchor(x)[:, 0].sum())
    assert x.grad is not None
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize(("size", "channels", "stride"), [(8, 1, 1), (9, 1, 2), (18, 3, 2)])
def test_the_first_filters_gradient_is_torchs(size: int, channels: int, stride: int) -> None:
    draw = torch.Generator().manual_seed(1)
    filters = torch.randn(5, channels, 5, 5, generator=draw, dtype=torch.float64)
    x = torch.rand(2, channels, size, size, generator=draw, dtype=torch.float64)
    found = []
    for function in (_edges, _Edges.apply):
        leaf = x.clone().requires_grad_()
        answers = function(leaf, filters, stride)
        torch.autograd.backward(answers.square().sum())
        found.append((answers.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("size", [8, 28, 36])
def test_features_are_the_same_bits_where_a_gradient_is_wanted(size: int) -> None:
    """What a decoder is matched in is the space of what was published."""
    anchor, x = Anchor(ImageShape(size, 1), 16, seed=0), picture(size, 1)
    assert torch.equal(anchor(x), anchor(x.clone().requires_grad_()))


@pytest.mark.parametrize("side", [8, 14, 18])
def test_pooling_is_adaptive_pooling(side: int) -> None:
    anchor = Anchor(ImageShape(2 * side, 1), 16, seed=0)
    h = torch.rand(2, 64, side, side, generator=torch.Generator().manual_seed(1))
    expected = F.adaptive_avg_pool2d(h, 4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(anchor._pooled(h), expected)


def test_the_seed_decides_and_no_global_state_does() -> None:
    shape, x = ImageShape(8, 1), picture(8, 1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = Anchor(shape, 16, seed=5)(x)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(one, Anchor(shape, 16, seed=5)(x))
    assert not torch.allclose(one, Anchor(shape, 16, seed=6)(x), atol=0.1)


GOLDEN = {
    (8, 1): [1.18894, 1.21324, 0.51932, -0.91912, -0.18909, 0.41189, 0.09187, -1.9458],
    (28, 3): [-1.29143, 0.35952, 1.3824, 0.54029, -1.04279, 1.14828, 1.1222, 0.57853],
}


@pytest.mark.parametrize("shape", GOLDEN)
def test_golden_values(shape: tuple[int, int]) -> None:
    """A change here makes every statistic that was ever published meaningless."""
    a = Anchor(ImageShape(*shape), 4, seed=2508)(picture(*shape))
    np.testing.assert_allclose(a.flatten().numpy(), GOLDEN[shape], atol=1e-4)


def test_the_filters_are_smooth_without_mean_and_of_unit_norm() -> None:
    filters = _smooth_filters(np.random.Generator(np.random.Philox(key=0)), 3)
    assert filters.shape == (32, 3, 5, 5)
    np.testing.assert_allclose(filters.mean((2, 3)), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.square(filters).sum((1, 2, 3)), 1.0)
    # Power per cosine, by the sum that defines it: the lowest carries most, the highest least.
    power = np.zeros((5, 5))
    for u in range(5):
        for v in range(5):
            wave = np.array(
                [
                    [np.cos(np.pi * (x + 0.5) * u / 5) * np.cos(np.pi * (y + 0.5) * v / 5)]
                    for x in range(5)
                    for y in range(5)
                ]
            ).reshape(5, 5)
            wave /= np.linalg.norm(wave)
            power[u, v] = np.square((filters * wave).sum((2, 3))).mean()
    assert power[0, 0] < 1e-20
    assert power[0, 1] > 4 * power[0, 4]
    assert power[1, 0] > 4 * power[4, 0]
    assert power[1, 1] > 4 * power[4, 4]


@pytest.mark.parametrize("side", [8, 14, 16, 30, 32])
@pytest.mark.parametrize("grid", [3, 4])
def test_averages_are_adaptive_pooling(side: int, grid: int) -> None:
    matrix = _averages(side, grid)
    assert matrix.shape == (grid, side)
    np.testing.assert_allclose(matrix.sum(1), 1.0)
    rows = np.random.default_rng(0).standard_normal((2, side))
    pooled = F.adaptive_avg_pool1d(torch.from_numpy(rows), grid).numpy()
    np.testing.assert_allclose(rows @ matrix.T, pooled, atol=1e-12)
