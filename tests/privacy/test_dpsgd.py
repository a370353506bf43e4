"""DP-SGD: the bound, the noise, the sampling, and networks that are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import ImageShape, build, vtc
from fedvtc_edge.privacy.dpsgd import PrivateGradients, SecretStream, check_private
from fedvtc_edge.privacy.schedule import Schedule
from fedvtc_edge.training.compute import deterministic

SHAPE = ImageShape(8, 1)
FIVE = ("lenet", "resnet8", "mobilenet", "shufflenet", "mlp")
PLAN = Schedule(
    epsilon=8.0,
    delta=1e-5,
    clip=0.5,
    batch=4,
    rate=0.25,
    train_steps=2,
    decoder_steps=2,
    rounds=2,
    opening=1,
    repeated=0,
)


class Silent(SecretStream):
    def normal(self, shape: torch.Size) -> Tensor:
        return torch.zeros(shape)


def secret(*names: str | int) -> SecretStream:
    return SecretStream(bytes(32), *names)


def network(name: str = "mlp") -> nn.Module:
    return build(name, SHAPE, latent=8, classes=3, seed=1)


def examples(count: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(7)
    return torch.rand((count, 1, 8, 8), generator=draw), torch.arange(count) % 3


def losses_of(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    def losses(batch: Tensor) -> Tensor:
        output = model(x[batch].clone().requires_grad_())
        return 20.0 * F.cross_entropy(output, y[batch], reduction="sum")

    return losses


def gradients(model: nn.Module, noise: SecretStream) -> PrivateGradients:
    return PrivateGradients(model, PLAN, noise)


def one_at_a_time(model: nn.Module, losses: Any, batch: Tensor, clip: float) -> list[Tensor]:
    """The slow, obvious twin: each example's gradient, clipped, added."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for index in batch:
        grads = torch.autograd.grad(losses(index[None]), list(model.parameters()))
        norm = torch.cat([g.flatten() for g in grads]).norm()
        for sum_, grad in zip(total, grads, strict=True):
            sum_ += grad * min(1.0, clip / float(norm))
    return total


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with deterministic():
        yield


@pytest.mark.parametrize(
    ("name", "count"), [(name, 6) for name in FIVE] + [("lenet", n) for n in (0, 1, 4, 9)]
)
def test_the_sum_before_noise_is_that_of_the_slow_twin(name: str, count: int) -> None:
    """Batches that are empty, short, full and longer than memory is meant for."""
    model, batch = network(name), torch.arange(count)
    losses = losses_of(model, *examples(9))
    expected = one_at_a_time(model, losses, batch, PLAN.clip)
    private = gradients(model, Silent(bytes(32)))
    private.compute(batch, losses)
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad * PLAN.batch, wanted, atol=1e-4, rtol=1e-3)
    private.close()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e18, float("inf"), float("nan")])
def test_no_example_moves_the_sum_beyond_the_clip(scale: float) -> None:
    model, (x, y) = network(), examples(5)
    private = gradients(model, Silent(bytes(32)))

    def with_or_without(batch: Tensor) -> Tensor:
        def losses(part: Tensor) -> Tensor:
            weight = torch.where(part == 4, scale, 1.0)
            output = model(x[part].clone().requires_grad_())
            return (weight * F.cross_entropy(output, y[part], reduction="none")).sum()

        private.compute(batch, losses)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    change = with_or_without(torch.arange(5)) - with_or_without(torch.arange(4))
    assert float(change.norm()) * PLAN.batch <= PLAN.clip
    private.close()


def test_noise_is_z_times_clip_over_the_expected_batch() -> None:
    model = network()
    losses = losses_of(model, *examples(4))
    quiet, loud = gradients(model, Silent(bytes(32))), None
    quiet.compute(torch.arange(4), losses)
    exact = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    quiet.close()
    loud = gradients(model, secret("noise"))
    loud.compute(torch.arange(4), losses)
    noise = torch.cat(
        [
            (p.grad - e).flatten()
            for p, e in zip(model.parameters(), exact, strict=True)
            if p.grad is not None
        ]
    )
    expected = PLAN.noise_multiplier * PLAN.clip / PLAN.batch
    assert float(noise.std()) == pytest.approx(expected, rel=0.02)
    assert abs(float(noise.mean())) < 5 * expected / len(noise) ** 0.5
    loud.close()


def test_an_empty_batch_is_noise_all_the_same() -> None:
    model = network()
    private = gradients(model, secret("noise"))
    private.compute(torch.arange(0), losses_of(model, *examples(1)))
    spread = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).std()
    assert float(spread) == pytest.approx(PLAN.noise_multiplier * PLAN.clip / PLAN.batch, rel=0.02)
    private.close()


def test_public_gradients_are_ordinary_and_the_module_comes_back_bare() -> None:
    model = network()
    private = gradients(model, secret("noise"))
    with private.public():
        x = examples(2)[0].requires_grad_()
        assert len(torch.autograd.grad(model(x).sum(), list(model.parameters())))
    assert all(p.grad_sample is None for p in model.parameters())  # type: ignore[attr-defined]
    private.close()
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    private = gradients(model, secret("noise"))  # and can be taken again
    private.close()


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("size", [8, 28])
def test_built_in_networks_are_taken(name: str, size: int) -> None:
    shape = ImageShape(size, 1)
    model = build(name, shape, latent=8, classes=3, seed=1)
    before = [p.clone() for p in model.parameters()]
    check_private(name, model, torch.zeros(1, 1, size, size))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    check_private("decoder", vtc.build(shape, latent=8, seed=1), torch.zeros(1, 8))


def test_torchvisions_networks_are_refused_by_name() -> None:
    for name in ("mobilenet_v3_small", "shufflenet_v2_x0_5", "resnet18"):
        model = build(name, ImageShape(32, 3), latent=8, classes=3, seed=1)
        with pytest.raises(ConfigError, match=name) as caught:  # torchvision's change in place
            check_private(name, model, torch.zeros(1, 3, 32, 32))
        assert "in-place" in caught.value.hint


class Shared(nn.Module):
    """One layer twice: Opacus adds the two up."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x.flatten(1))))


class Behind(nn.Module):
    """A weight that is used, but not by its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)
        self.other = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) + F.linear(x.flatten(1), self.other.weight)


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.flatten(1))
        return y - y.mean(0)


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.dropout(x.flatten(1), 0.5, training=True))


def lazy() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    module(torch.zeros(1, 1, 8, 8))
    return module


@pytest.mark.parametrize(
    "module",
    [
        Shared(),
        lazy(),
        nn.Sequential(nn.Conv2d(1, 4, 3, groups=1), nn.Conv2d(4, 8, 3, groups=4), nn.Flatten()),
    ],
    ids=["shared", "lazy", "depthwise"],
)
def test_odd_but_sound_networks_are_taken(module: nn.Module) -> None:
    check_private("mine", module, torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("module", "message", "hint"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), "BatchNorm2d", "GroupNorm"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 2)), "Dropout", "leave it out"),
        (Behind(), "'other.weight'", "one plain layer"),
        (Mixing(), "'layer.", "whole batch"),
        (Random(), "'layer.weight'", "random"),
        (nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), "'weight'", "one plain layer"),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True)),
            "no per-example gradients",
            "in-place",
        ),
        (nn.InstanceNorm2d(1, affine=True, track_running_stats=True), "'mine'", "buffers"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_mixes_examples_is_refused_by_name(module: nn.Module, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="'mine'") as caught:
        check_private("mine", module, torch.zeros(1, 1, 8, 8))
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2
    assert not any(m._forward_hooks for m in module.modules())


# ---------------------------------------------------------------- secret streams


def test_streams_repeat_by_key_and_names_alone() -> None:
    shape = torch.Size([3, 5])
    first = secret("a", 1).normal(shape)
    assert torch.equal(first, secret("a", 1).normal(shape))
    for other in (secret("a", 2), secret("a1"), SecretStream(b"\1" * 32, "a", 1)):
        assert not torch.equal(first, other.normal(shape))


def test_normals_are_normal() -> None:
    draws = np.sort(secret("normal").normal(torch.Size([100_001])).double().numpy())
    assert abs(draws.mean()) < 0.015
    assert draws.std() == pytest.approx(1.0, rel=0.01)
    # Kolmogorov's distance from Φ, at p = 0.001
    phi = 0.5 * (1 + torch.erf(torch.from_numpy(draws) / 2**0.5)).numpy()
    assert np.abs(phi - np.arange(len(draws)) / len(draws)).max() < 1.95 / len(draws) ** 0.5


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_every_example_is_sampled_by_itself_at_the_rate(rate: float) -> None:
    stream, size, times = secret("sampling"), 40, 2000
    seen = np.zeros((times, size))
    for row in seen:
        row[stream.sample(size, rate).numpy()] = 1
    spread = (rate * (1 - rate) / times) ** 0.5
    assert np.abs(seen.mean(0) - rate).max() <= 5 * spread
    # Batch sizes vary as a binomial's do: nobody was drawn to fill a batch up
    assert seen.sum(1).var() == pytest.approx(size * rate * (1 - rate), rel=0.15)
