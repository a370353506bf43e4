"""The networks between pixels and pixels, against loops over single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedvtc_edge.export.graphs import AnchorGraph, ClassifierGraph, Nearest, SynthesizerGraph
from fedvtc_edge.models import ImageShape, build, vtc
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.statistics.class_statistics import GlobalStatistics


def pixels(count: int, size: int, channels: int) -> Tensor:
    draw = np.random.default_rng(3)
    return torch.from_numpy(draw.integers(0, 256, (count, size, size, channels), np.uint8))


def as_trained(images: Tensor) -> Tensor:
    """As a client holds them: [N, channels, H, W] in [0, 1], moved pixel by pixel."""
    count, size, _, channels = images.shape
    moved = torch.empty(count, channels, size, size)
    for channel in range(channels):
        moved[:, channel] = images[..., channel].float() / 255
    return moved


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_reach_a_classifier_as_in_training(channels: int) -> None:
    shape, images = ImageShape(8, channels), pixels(5, 8, channels)
    model = build("lenet", shape, latent=4, classes=3, seed=1).eval()
    anchor = Anchor(shape, 6, 2).eval()
    # Equal but for the order of sums: the pixels lie otherwise in memory.
    torch.testing.assert_close(ClassifierGraph(model)(images), model(as_trained(images)))
    torch.testing.assert_close(AnchorGraph(anchor)(images), anchor(as_trained(images)))


@torch.no_grad()
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (12, 3)])
def test_painting_is_the_decoder_on_latents_of_the_label(size: int, channels: int) -> None:
    decoder = vtc.build(ImageShape(size, channels), latent=4, seed=1).eval()
    stream = torch.Generator().manual_seed(2)
    means, noise = (torch.randn(n, 4, generator=stream) for n in (3, 6))
    stds = torch.rand(3, 4, generator=stream)
    labels = torch.tensor([2, 0, 1, 1, 0, 2])
    graph = SynthesizerGraph(decoder)
    levels, painted = (run(labels, means, stds, noise) for run in (graph.levels, graph))
    assert painted.shape == (6, size, size, channels)
    assert painted.dtype == torch.uint8
    for index, label in enumerate(labels.tolist()):
        latent = means[label] + stds[label] * noise[index]
        image = decoder(latent[None])[0] * 255
        for channel in range(channels):
            torch.testing.assert_close(levels[index, ..., channel], image[channel])
    assert np.array_equal(painted.numpy(), np.rint(levels.numpy()).astype(np.uint8))
    assert len(torch.unique(painted)) > 2


@torch.no_grad()
def test_fedproto_takes_the_nearest_prototype() -> None:
    images, shape = pixels(9, 8, 1), ImageShape(8, 1)
    model = build("mlp", shape, latent=4, classes=3, seed=1).eval()
    draw = np.random.default_rng(1)
    mean = draw.standard_normal((3, 4))
    mean[1] = 0  # of no sample, and near everything
    knowledge = GlobalStatistics(np.array([2.0, 0, 1]), mean, np.ones((3, 4)))
    scores = ClassifierGraph(Nearest(model, knowledge).eval())(images).numpy()
    features = model.features(as_trained(images)).numpy()
    for row, feature in zip(scores, features, strict=True):
        apart = [float(((feature - prototype) ** 2).sum()) for prototype in mean]
        assert row[[0, 2]] == pytest.approx([-apart[0], -apart[2]], rel=1e-4)
        assert row[1] < -max(apart)
    assert set(scores.argmax(1)) <= {0, 2}


class Constant(nn.Module):
    """Paints the latent itself."""

    def forward(self, v: Tensor) -> Tensor:
        return v[:, :, None, None] / 255


@pytest.mark.parametrize(
    ("level", "pixel"), [(0, 0), (0.49, 0), (0.51, 1), (1.49, 1), (254.51, 255), (255, 255)]
)
def test_pixels_are_rounded_to_the_nearest(level: float, pixel: int) -> None:
    graph = SynthesizerGraph(Constant())  # type: ignore[arg-type]
    painted = graph(torch.tensor([0]), torch.tensor([[level]]), torch.ones(1, 1), torch.zeros(1, 1))
    assert painted.tolist() == [[[[pixel]]]]


def test_a_label_outside_the_classes_is_an_error_in_torch() -> None:
    """The ONNX graph wraps it silently, which is why a bundle checks labels."""
    graph = SynthesizerGraph(Constant())  # type: ignore[arg-type]
    with pytest.raises((IndexError, RuntimeError)):
        graph(torch.tensor([-1]), torch.ones(2, 1), torch.ones(2, 1), torch.zeros(1, 1))
