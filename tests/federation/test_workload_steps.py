"""Phases are charged by what their own code does, on a stand-in that leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.devices.clock import Speed
from fedvtc_edge.devices.recorder import record
from fedvtc_edge.federation.assembly import clients
from fedvtc_edge.federation.workload import StepCosts, TrainingTask
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute, deterministic

Tiny = Callable[..., Config]
SPEED = Speed(gflops=2.0, gbps=1.0, overhead_us=30.0)


@pytest.fixture
def client(tiny: Tiny) -> Client:
    config = tiny(training={"batch": 16})
    return clients(config, load_dataset(config.data), Compute.of(config.engine), decoders=True)[1]


def training(size: float, steps: float) -> TrainingTask:
    return TrainingTask("train", size, steps, lambda probe, _: probe.train(0))


def test_steps_add_up_and_setting_up_is_free(client: Client) -> None:
    with deterministic():
        costs = StepCosts()
        one = costs.seconds(client, [training(16, 1)], SPEED)
        assert one > 0
        assert costs.seconds(client, [training(16, 5)], SPEED) == pytest.approx(5 * one)
        assert costs.seconds(client, [training(16, 2)] * 2, SPEED) == pytest.approx(4 * one)
        # The slow twin records a whole long phase: per step, setting up fades away.
        twin = copy.deepcopy(client)
        twin.images, twin.labels = twin.images[:16], twin.labels[:16]
        twin.settings = twin.settings.model_copy(update={"epochs": 40})
        assert len(twin.images) == 16
        whole = record(lambda: twin.train(0)).seconds(SPEED)
    assert 40 * one == pytest.approx(whole, rel=0.02)


def test_between_two_sizes_time_is_linear(client: Client) -> None:
    with deterministic():
        costs = StepCosts()
        few, some, full = (costs.seconds(client, [training(size, 1)], SPEED) for size in (2, 9, 16))
        assert some == pytest.approx((few + full) / 2)
        assert few < full
        twin = copy.deepcopy(client)
        twin.images, twin.labels = twin.images[:9], twin.labels[:9]
        twin.settings = twin.settings.model_copy(update={"epochs": 40})
        measured = record(lambda: twin.train(0)).seconds(SPEED) / 40
    assert some == pytest.approx(measured, rel=0.1)


def test_a_faster_device_takes_less_time(client: Client) -> None:
    with deterministic():
        costs, task = StepCosts(), training(16, 1)
        slow = costs.seconds(client, [task], SPEED)
        assert costs.seconds(client, [task], Speed(4.0, 2.0, 15.0)) == pytest.approx(slow / 2)


def test_the_client_stays_as_it_was(client: Client) -> None:
    before = {name: value.clone() for name, value in client.model.state_dict().items()}
    with deterministic():
        StepCosts().seconds(client, [training(16, 3)], SPEED)
    assert all(torch.equal(before[name], v) for name, v in client.model.state_dict().items())
    assert client.samples_seen == 0
    assert client.seconds == 0


def test_each_phase_is_rehearsed_once_per_architecture(client: Client) -> None:
    seen: list[int] = []
    task = TrainingTask("train", 4, 7, lambda probe, steps: seen.append(steps))
    costs = StepCosts()
    for _ in range(3):
        costs.seconds(client, [task], SPEED)
    assert seen == [1, 2, 1, 2], "one and two steps, for few images and for a batch"
