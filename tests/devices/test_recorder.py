"""The tape against counts by hand, and rehearsals of few images against the real batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fedvtc_edge.config import MethodSettings
from fedvtc_edge.devices.footprint import (
    ADAM_SLOTS,
    MemoryProfile,
    phases_of,
    probe_copy,
    probe_statistics,
)
from fedvtc_edge.devices.recorder import record
from fedvtc_edge.models import ImageShape
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import deterministic
from fedvtc_edge.training.steps import Adam, step

SHAPE, CLASSES, METHOD = ImageShape(8, 1), 3, MethodSettings(latent=8, anchor=12)


def test_what_dies_is_counted_no_longer_and_views_never() -> None:
    there = torch.zeros(1000)

    def work() -> None:
        first = torch.ones(100)  # 400 bytes
        second = first * 2  # 800 with the one before
        del first
        view = second.view(10, 10)
        view += 1
        there.mul_(0)
        there[:10].add_(1)

    assert record(work).tolist() == [400.0, 800.0, 400.0, 400.0, 400.0, 400.0, 400.0]


def test_saved_activations_stay_until_backward_has_used_them() -> None:
    x = torch.zeros(25)

    def work(squares: int) -> None:
        y = x.clone().requires_grad_()
        for _ in range(squares):
            y = y.square()  # keeps its input
        del y

    assert [record(lambda n=n: work(n)).max() for n in (1, 5)] == [200.0, 600.0]


def test_gradients_of_the_weights_can_be_left_out_and_the_optimisers_state_not() -> None:
    layer = nn.Linear(100, 100, bias=False)

    def work() -> None:
        adam = Adam(layer.parameters(), 1e-3)
        for _ in range(2):
            step(layer(torch.zeros(1, 100)).sum(), adam)

    weights = 4 * 100 * 100
    everything, without = record(work), record(work, layer.parameters())
    assert everything.max() == pytest.approx(weights * (1 + ADAM_SLOTS), rel=0.1)
    assert set(everything - without) == {0, weights}
    assert without[-1] == pytest.approx(weights * ADAM_SLOTS, rel=0.1)
    assert layer.weight.grad is None


def phase_of(name: str, knowledge: object) -> Callable[[Client], object]:
    return {
        "train": lambda probe: probe.train(1, knowledge.codes, kl=1.0),  # type: ignore[attr-defined]
        "paint": lambda probe: probe.fit_decoder(1, knowledge, match=True),
        "finetune": lambda probe: probe.finetune(1, knowledge, steps=2, kl=1.0),
    }[name]


@pytest.mark.parametrize("architecture", ["mlp", "lenet"])
@pytest.mark.parametrize("phase", ["train", "paint", "finetune"])
def test_a_large_batch_is_foretold_to_the_byte(architecture: str, phase: str) -> None:
    """The slow twin: the phase itself with all of its images."""
    batch = 19
    held: MemoryProfile = getattr(phases_of(architecture, SHAPE, CLASSES, METHOD), phase)
    with deterministic():
        knowledge, _ = probe_statistics(SHAPE, CLASSES, METHOD)
        probe = probe_copy(architecture, SHAPE, CLASSES, METHOD, samples=batch)
        probe.settings = probe.settings.model_copy(
            update={"batch": batch, "epochs": 2, "decoder_steps": 2}
        )
        network = probe.decoder if phase == "paint" else probe.model
        assert network is not None
        weights = list(network.parameters())
        live = record(lambda: phase_of(phase, knowledge)(probe), weights)
    state = ADAM_SLOTS * 4 * sum(weight.numel() for weight in weights)
    assert held.peak(batch) == (live - state).max()
    assert np.array_equal(held.few + (batch - 2) * held.slope, live - state)


def test_methods_that_paint_nothing_hold_nothing_for_it() -> None:
    phases = phases_of("mlp", SHAPE, CLASSES, MethodSettings(name="local", latent=8))
    assert (phases.decoder, phases.anchor) == (0, 0)
    assert phases.paint is phases.finetune is phases.synthesise is phases.measure is None
    features = phases_of("mlp", SHAPE, CLASSES, MethodSettings(share="features", latent=8))
    assert features.decoder > 0
    assert features.measure is None


def test_a_rehearsal_leaves_no_trace() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    phases_of.cache_clear()
    phases_of("mlp", SHAPE, CLASSES, METHOD)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
