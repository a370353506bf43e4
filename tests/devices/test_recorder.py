"""What torch dispatches, counted: bytes that live, arithmetic and traffic."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedvtc_edge.devices.clock import Speed
from fedvtc_edge.devices.footprint import ADAM_SLOTS
from fedvtc_edge.devices.recorder import record
from fedvtc_edge.training.steps import Adam, step


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

    assert record(work).held.tolist() == [400.0, 800.0, 400.0, 400.0, 400.0, 400.0, 400.0]


def test_saved_activations_stay_until_backward_has_used_them() -> None:
    x = torch.zeros(25)

    def work(squares: int) -> None:
        y = x.clone().requires_grad_()
        for _ in range(squares):
            y = y.square()  # keeps its input
        del y

    assert [record(lambda n=n: work(n)).held.max() for n in (1, 5)] == [200.0, 600.0]


def test_gradients_of_the_weights_can_be_left_out_and_the_optimisers_state_not() -> None:
    layer = nn.Linear(100, 100, bias=False)

    def work() -> None:
        adam = Adam(layer.parameters(), 1e-3)
        for _ in range(2):
            step(layer(torch.zeros(1, 100)).sum(), adam)

    weights = 4 * 100 * 100
    everything, without = record(work).held, record(work, layer.parameters()).held
    assert everything.max() == pytest.approx(weights * (1 + ADAM_SLOTS), rel=0.1)
    assert set(everything - without) == {0, weights}
    assert without[-1] == pytest.approx(weights * ADAM_SLOTS, rel=0.1)
    assert layer.weight.grad is None


def test_a_product_by_hand() -> None:
    left, right = torch.rand(3, 5), torch.rand(5, 7)
    work = record(lambda: left @ right)
    assert work.flops.tolist() == [2 * 3 * 5 * 7]
    assert work.traffic.tolist() == [4 * (3 * 5 + 5 * 7 + 3 * 7)]


def test_views_cost_nothing_and_anything_else_its_numbers() -> None:
    x = torch.rand(4, 6)
    assert record(lambda: x.view(-1).view(6, 4).T[1:]).flops.size == 0
    work = record(lambda: torch.relu(x))
    assert (work.flops.tolist(), work.traffic.tolist()) == ([24], [2 * 4 * 24])


def test_forward_and_backward_as_torch_counts_them() -> None:
    """The slow check is torch's own counter, which sees only products."""
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    images = torch.rand(2, 4, 6, 6, requires_grad=True)

    def step() -> None:
        torch.autograd.backward(network(images).sum())

    with FlopCounterMode(display=False) as counter:
        step()
    work = record(step)
    others = work.flops.sum() - counter.get_total_flops()
    assert 0 <= others < 0.2 * work.flops.sum(), "all products, and little beside them"


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_gradients_of_a_grouped_convolution_by_hand(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], groups: int
) -> None:
    layer = kind(8, 8, 4, stride=2, padding=1, groups=groups, bias=False)
    images = torch.rand(3, 8, 6, 6, requires_grad=True)
    painted = layer(images)
    assignments = 36 if kind is nn.ConvTranspose2d else 9
    forward = 2 * 3 * assignments * 16 * 8 * 8 // groups
    assert record(lambda: layer(images.detach())).flops.tolist() == [forward]
    work = record(lambda: torch.autograd.backward(painted, torch.ones_like(painted)))
    assert 2 * forward in work.flops
    assert work.flops.sum() < 2 * forward + 3 * painted.numel() + 3 * images.numel()


def test_optimisers_are_seen() -> None:
    network = nn.Linear(10, 10)
    adam = torch.optim.Adam(network.parameters(), fused=True)
    torch.autograd.backward(network(torch.rand(1, 10)).sum())
    adam.step()
    work = record(adam.step)
    moved = 4 * 110 * 3  # weights and two moments, at the least
    assert work.traffic.sum() >= moved
    assert work.seconds(Speed(1, 1, 0)) > 0
