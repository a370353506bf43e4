"""Phases by noised gradients: what depends on a client's size, and what on its images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedvtc_edge.config import EngineSettings, TrainingSettings
from fedvtc_edge.models import ImageShape, build, vtc
from fedvtc_edge.models.classifier import Classifier
from fedvtc_edge.privacy.dpsgd import PrivateGradients, SecretStream
from fedvtc_edge.privacy.schedule import Schedule
from fedvtc_edge.training import supervised
from fedvtc_edge.training.compute import Compute
from fedvtc_edge.training.decoder_training import train_decoder
from fedvtc_edge.training.finetuning import finetune
from fedvtc_edge.training.knowledge import GlobalKnowledge
from fedvtc_edge.training.losses import ClassMoments
from fedvtc_edge.training.steps import NoisedGradients

PLAN = Schedule(
    epsilon=8.0,
    delta=1e-5,
    clip=0.5,
    batch=8,
    rate=0.25,
    train_steps=5,
    decoder_steps=3,
    rounds=2,
    opening=0,
    repeated=1,
)
SETTINGS = TrainingSettings(batch=8)
COMPUTE = Compute.of(EngineSettings(device="cpu"))
WORLD = GlobalKnowledge(
    ClassMoments(torch.randn(3, 8), torch.full((3, 8), 0.5)), torch.ones(3).bool()
)


def secrets(purpose: str) -> SecretStream:
    return SecretStream(bytes(32), purpose)


def networks() -> tuple[Classifier, vtc.VTC]:
    shape = ImageShape(8, 1)
    return build("mlp", shape, latent=8, classes=3, seed=1), vtc.build(shape, latent=8, seed=2)


def weights(*modules: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


def images(count: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.rand((count, 1, 8, 8), generator=draw), torch.arange(count) % 3


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    real = PrivateGradients.compute

    def spy(self: PrivateGradients, batch: Tensor, losses: Any) -> None:
        sizes.append(len(batch))
        assert self._private.expected_batch_size == PLAN.batch
        assert self._private.loss_reduction == "mean"
        real(self, batch, losses)

    monkeypatch.setattr(PrivateGradients, "compute", spy)
    return sizes


def phase_a(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    plan: Schedule = PLAN,
    secret: Callable[[str], SecretStream] = secrets,
    **prior: Any,
) -> int:
    gradients = NoisedGradients(plan, plan.train_steps, secret)
    return supervised.train(model, x, y, None, SETTINGS, COMPUTE, gradients, [], **prior)


def phase_b(model: Classifier, decoder: vtc.VTC, x: Tensor, y: Tensor, *, match: bool) -> int:
    gradients = NoisedGradients(PLAN, PLAN.decoder_steps, secrets)
    stream = torch.Generator().manual_seed(1)
    return train_decoder(
        model, decoder, x, y, WORLD, SETTINGS, COMPUTE, gradients, stream, match=match
    )


def both(x: Tensor, y: Tensor) -> tuple[Classifier, vtc.VTC]:
    model, decoder = networks()
    phase_a(model, x, y, prior=WORLD.codes, kl=0.1)
    phase_b(model, decoder, x, y, match=True)
    return model, decoder


@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_the_number_of_steps_does_not_tell_a_clients_size(batches: list[int], count: int) -> None:
    model, decoder = both(*images(count))
    assert len(batches) == PLAN.train_steps + PLAN.decoder_steps
    assert abs(sum(batches) - PLAN.rate * count * len(batches)) <= 6 * (count * len(batches)) ** 0.5
    assert torch.isfinite(weights(model, decoder)).all()
    assert model.training is False
    assert all(p.requires_grad for m in (model, decoder) for p in m.parameters())


def test_phases_repeat_bit_for_bit_and_differ_by_key() -> None:
    first = weights(*both(*images(30)))
    assert torch.equal(first, weights(*both(*images(30))))
    model, _ = networks()
    phase_a(model, *images(30), secret=lambda purpose: SecretStream(b"x" * 32, purpose))
    other, _ = networks()
    phase_a(other, *images(30))
    assert not torch.equal(weights(model), weights(other))


def test_without_noise_phase_a_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = images(90)
    x = 0.2 * x + y[:, None, None, None] / 3
    plan = Schedule(
        epsilon=900.0,
        delta=1e-5,
        clip=10.0,
        batch=32,
        rate=0.4,
        train_steps=60,
        decoder_steps=1,
        rounds=1,
        opening=0,
        repeated=1,
    )
    monkeypatch.setattr(Schedule, "noise_multiplier", 1e-6)
    model, _ = networks()
    phase_a(model, x, y, plan)
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.9


def test_matching_adds_its_gradient_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing sampled and noise off, ψ moves by matching alone."""
    monkeypatch.setattr(Schedule, "noise_multiplier", 0.0)
    x, y = images(0)
    moved = {}
    for match in (False, True):
        model, decoder = networks()
        before = weights(decoder)
        phase_b(model, decoder, x, y, match=match)
        moved[match] = not torch.equal(before, weights(decoder))
    assert moved == {False: False, True: True}


def test_fine_tuning_takes_no_real_image() -> None:
    model, decoder = networks()
    before = weights(model)
    stream = torch.Generator().manual_seed(1)
    x, y = images(0)
    seen = finetune(
        model,
        decoder,
        x,
        y,
        torch.ones(3).bool(),
        WORLD,
        SETTINGS,
        COMPUTE,
        stream,
        steps=3,
        kl=0.1,
        decay=True,
    )
    assert seen == 3 * SETTINGS.batch
    assert not torch.equal(before, weights(model))
