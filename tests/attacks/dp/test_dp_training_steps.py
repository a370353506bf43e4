"""DP-SGD's steps: honest ones pass, and missing noise or a missing clip is refuted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedvtc_edge.attacks.dp import training_steps
from fedvtc_edge.attacks.dp.game import audit_scores, trials_for
from fedvtc_edge.attacks.dp.training_steps import NoisedSteps, audit_steps, finding_of, steps_of
from fedvtc_edge.privacy import dpsgd
from fedvtc_edge.privacy.schedule import Schedule


class Small(nn.Module):
    """A classifier of 300 weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8))

    def inputs(self, images: Tensor) -> Tensor:
        return images

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def steps(epsilon: float = 8.0, *, clip: float = 1.0) -> NoisedSteps:
    schedule = Schedule(
        epsilon=epsilon,
        delta=1e-5,
        clip=clip,
        batch=16,
        rate=0.05,
        train_steps=40,
        decoder_steps=10,
        rounds=2,
        opening=1,
        repeated=0,
    )
    images = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return steps_of(Small(), images, [0] * 12, schedule, 8)


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_honest_steps_pass(epsilon: float) -> None:
    made = steps(epsilon)
    found = audit_steps(made)
    assert found.verdict == "pass", found
    finding = finding_of(found, made.claim)
    assert (finding.passed, finding.value) == (True, 0.0)
    assert not made.model.layers[1]._forward_hooks  # the network is given back as it was


def test_each_canary_moves_the_gradient_by_all_of_the_clip() -> None:
    game = steps(clip=0.5).many_canaries()
    norms = torch.from_numpy(game.moves).norm(dim=1)
    assert norms.numpy() == pytest.approx(0.5, rel=1e-6)


def test_half_of_the_noise_is_a_leak() -> None:
    made = steps()
    halved = made.halved()
    found = audit_scores(
        halved.many_canaries().scores,
        halved.halved().many_canaries().scores,
        made.claim,
        trials=trials_for(made.claim, confidence=0.99),
        confidence=0.99,
    )
    assert found.verdict == "leak"
    finding = finding_of(found, made.claim)
    assert finding.passed is False
    assert "half of the noise" in finding.note


def test_a_clip_that_is_skipped_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Opacus: gradients clipped at ten times the bound, and noise for the bound."""
    opacus = dpsgd._opacus

    def careless(module: nn.Module) -> Any:
        hooks, make = opacus(module)

        def made(optimiser: Any, schedule: Any, noise: Any) -> Any:
            private = make(optimiser, schedule, noise)
            private.max_grad_norm = 10 * schedule.clip
            return private

        return hooks, made

    monkeypatch.setattr(dpsgd, "_opacus", careless)
    assert audit_steps(steps()).verdict == "leak"


def test_noise_that_is_not_added_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dpsgd.SecretStream, "normal", lambda stream, shape: 1e-3 * torch.ones(shape)
    )
    assert audit_steps(steps()).verdict == "leak"


def test_too_few_steps_are_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_steps, "MOST_STEPS", 3)
    made = steps(1.0)
    found = audit_steps(made)
    assert found.verdict == "inconclusive"
    finding = finding_of(found, made.claim)
    assert (finding.passed, finding.undecided) == (None, True)
