"""The memory model against a count by hand."""

from __future__ import annotations

import pytest
import torch

from fedvtc_edge.devices.footprint import training_megabytes
from fedvtc_edge.models import ImageShape, build, vtc

SHAPE, LATENT, CLASSES = ImageShape(8, 1), 4, 3


def images(count: int) -> torch.Tensor:
    return torch.zeros(count, 1, 8, 8)


def test_a_perceptron_counted_by_hand() -> None:
    """Weights stay, gradients and two moments come on top, and so does what backward needs."""
    n = 5
    model = build("mlp", SHAPE, latent=LATENT, classes=CLASSES, seed=0)
    layers = [(64, 256), (256, 128), (128, LATENT), (LATENT, CLASSES)]
    weights = sum((rows + 1) * columns for rows, columns in layers)
    # Each linear layer keeps its input; LayerNorm its own, and a mean and a deviation per row.
    kept = n * (64 + 256 + 128 + LATENT + (LATENT + 2))
    expected = 4 * (weights + 3 * weights + 1.7 * kept) / 1e6
    assert training_megabytes(model, None, images(n)) == pytest.approx(expected)


def test_the_larger_phase_rules_and_both_networks_stay() -> None:
    model = build("mlp", SHAPE, latent=LATENT, classes=CLASSES, seed=0)
    decoder = vtc.build(SHAPE, latent=LATENT, seed=0)
    alone, both = (training_megabytes(model, d, images(16)) for d in (None, decoder))
    weights = 4 * sum(p.numel() for p in decoder.parameters()) / 1e6
    assert both >= alone + weights
    assert both < alone + 60 * weights


@pytest.mark.parametrize("name", ["lenet", "resnet8"])
def test_activations_grow_with_the_batch_and_weights_do_not(name: str) -> None:
    model = build(name, SHAPE, latent=LATENT, classes=CLASSES, seed=0)
    one, two, four = (training_megabytes(model, None, images(n)) for n in (8, 16, 32))
    assert four - two == pytest.approx(2 * (two - one))
    assert 2 * one - two > 4 * 4 * sum(p.numel() for p in model.parameters()) / 1e6 - 1e-9


def test_measuring_leaves_no_trace() -> None:
    model, decoder = (
        build("lenet", SHAPE, latent=LATENT, classes=CLASSES, seed=0),
        vtc.build(SHAPE, latent=LATENT, seed=0),
    )
    before = [p.clone() for network in (model, decoder) for p in network.parameters()]
    first = training_megabytes(model, decoder, images(4))
    parameters = [p for network in (model, decoder) for p in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert all(p.grad is None for p in parameters)
    assert training_megabytes(model, decoder, images(4)) == first
