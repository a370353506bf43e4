"""The decoder paints images of every size that the settings allow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedvtc_edge.models import ImageShape, vtc

SIZES = (8, 12, 28, 32, 60, 64, 68, 224)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_range(size: int, channels: int) -> None:
    decoder = vtc.build(ImageShape(size, channels), latent=16, seed=0)
    v = 4.0 * torch.randn((3, 16), generator=torch.Generator().manual_seed(0))
    painted = decoder(v)
    assert painted.shape == (3, channels, size, size)
    assert painted.min() > 0
    assert painted.max() < 1
    assert (painted[0] - painted[1]).abs().max() > 0
    torch.autograd.backward(painted.sum())
    assert all(p.grad is not None and p.grad.any() for p in decoder.parameters())


@pytest.mark.parametrize("size", range(8, 65, 4))
def test_every_multiple_of_four_starts_from_a_small_square(size: int) -> None:
    decoder = vtc.VTC(ImageShape(size, 1), latent=2, width=16)
    doublings = sum(isinstance(layer, nn.ConvTranspose2d) for layer in decoder.paint)
    assert decoder.base * 2**doublings == size
    assert 2 <= decoder.base <= 15


def test_larger_images_are_the_largest_enlarged() -> None:
    small, large = (vtc.build(ImageShape(size, 3), latent=4, seed=1) for size in (64, 224))
    assert small.state_dict().keys() == large.state_dict().keys()
    large.load_state_dict(small.state_dict())
    v = torch.randn((2, 4), generator=torch.Generator().manual_seed(0))
    expected = nn.functional.interpolate(small(v), size=224, mode="bilinear")
    torch.testing.assert_close(large(v), expected, atol=1e-6, rtol=0)


def test_no_batch_statistics() -> None:
    decoder = vtc.build(ImageShape(28, 3), latent=16, seed=0)
    assert not any("BatchNorm" in type(module).__name__ for module in decoder.modules())
    v = torch.randn((4, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decoder.train()(v)[:1], decoder.eval()(v[:1]))


def test_the_seed_decides_and_the_global_stream_stands_still() -> None:
    shape = ImageShape(8, 1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other = (vtc.build(shape, latent=4, seed=seed).state_dict() for seed in (5, 6))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again = vtc.build(shape, latent=4, seed=5).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["spread.weight"], other["spread.weight"])
