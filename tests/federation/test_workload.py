"""What a round asks of a device: bytes that really travel, and steps that are really taken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.devices.clock import Speed
from fedvtc_edge.devices.recorder import record
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.exchange import RoundStep
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.methods import Method
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.federation.workload import StepCosts, TrainingTask, Workload
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.training.steps import Adam, step

Tiny = Callable[..., Config]
SPEED = Speed(gflops=2.0, gbps=1.0, overhead_us=30.0)


def method_of(config: Config) -> Method:
    data = load_dataset(config.data, public_classes=config.privacy.mode != "none")
    return assemble(config, data, Compute.of(config.engine))


CASES: list[dict[str, Any]] = [
    {},
    {"method": {"moments": "diagonal"}},
    {"transport": {"precision": "float16"}},
    {"transport": {"seal": False}},
    {"transport": {"masking": True}},
    {"privacy": {"mode": "anchored"}},
    {"privacy": {"mode": "anchored"}, "transport": {"masking": True}},
    {"privacy": {"mode": "client"}},
    # One round: the noise of more takes long to calibrate.
    {"privacy": {"mode": "example", "epsilon": 50.0}, "method": {"share": "features", "rounds": 1}},
    {"method": {"share": "features"}},
    {"method": {"share": "features"}, "transport": {"masking": True}},
    {"method": {"share": "features+decoder"}},
    {"method": {"name": "fedproto"}},
    {"method": {"name": "fml"}},
    {"method": {"name": "fedkd"}},
    {"method": {"name": "fedgh"}},
    {"method": {"name": "fedtgp"}},
    {"method": {"name": "fedgen"}},
    {"method": {"name": "ccvr", "rounds": 1}},
    {"method": {"name": "fedmd"}, "data": {"public": "rest"}},
    {"clients": {"architectures": ["extractor-head", "mlp"]}},
    {"method": {"name": "local"}},
    {"method": {"name": "local-matched"}},
    {"method": {"name": "centralised"}},
]


def bytes_of(executor: LocalExecutor) -> dict[str, tuple[int, int]]:
    totals = {name: executor.spent(name) for name in executor.clients}
    return {name: (spent["down"], spent["up"]) for name, spent in totals.items()}


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_bytes_that_travel_are_known_before(tiny: Tiny, changes: dict[str, Any]) -> None:
    with deterministic():
        method = method_of(tiny(**changes))
        clients = list(method.federation.clients)
        expected = [{client.id: Workload(method, 0).of(client)[1:] for client in clients}]
        executor = LocalExecutor(method)
        take_steps(method, executor, 0, executor.clients)
        spent = [bytes_of(executor)]
        expected.append({client.id: Workload(method, 1).of(client)[1:] for client in clients})
        take_steps(method, executor, 1, executor.clients)
        total = bytes_of(executor)
    spent.append(
        {name: (total[name][0] - d, total[name][1] - u) for name, (d, u) in spent[0].items()}
    )
    assert spent == expected
    travels = any(sum(pair) for one in spent for pair in one.values())
    alone = ("local", "local-matched", "centralised")
    assert travels == (method.federation.config.method.name not in alone)


@pytest.mark.parametrize("batch", [8, 32])
@pytest.mark.parametrize("name", METHODS.names())
def test_the_steps_that_are_taken_are_known_before(tiny: Tiny, name: str, batch: int) -> None:
    """Samples seen in phase A; synthesis counts images that are no samples."""
    training = {"batch": batch, "epochs": 3}
    config = tiny(method={"name": name}, training=training, data={"public": "rest"})
    with deterministic():
        method = method_of(config)
        clients, executor = list(method.federation.clients), LocalExecutor(method)
        take_steps(method, executor, 0, executor.clients)
        for client in clients:
            load = Workload(method, 1).of(client)
            tasks = [task for task in load.tasks if task.name in ("train", "steps", "digest")]
            expected = sum(task.size * task.steps for task in tasks)
            if name == "fedvtc":
                client.train(1)
            else:
                take_steps(method, executor, 1, [client.id])
            assert client.samples_seen == expected
            assert (expected > 0) == method.trains


def test_phases_without_steps_are_not_charged(tiny: Tiny) -> None:
    config = tiny(training={"finetune_from": 3, "finetune_steps": 5, "finetune_last": 7})
    with deterministic():
        method = method_of(config)
        clients = list(method.federation.clients)
        assert [task.name for task in Workload(method, 0).of(clients[0]).tasks] == ["measure"]
        take_steps(method, LocalExecutor(method), 0, [client.id for client in clients])
        first, second, last = (
            {task.name: task.steps for task in Workload(method, number).of(clients[0]).tasks}
            for number in (1, 2, 3)
        )
    assert set(first) == set(second) == {"train", "decoder"}
    # The second half has plain images of the client's own, which make its steps longer.
    assert {name: last[name] for name in set(last) - set(first)} == {
        "pool": 12,
        "finetune": 6,
        "finetune, with labels": 6,
    }


class Own(Method):
    """A method with a training loop of its own, and not a word of what it costs."""

    def steps(self, number: int) -> Sequence[RoundStep]:
        """Three steps on all images, and class means."""

        def work(client: Client) -> None:
            adam = Adam(client.model.parameters(), 1e-3)
            for _ in range(3):
                step(client.model(client.images).square().mean(), adam)

        width = self.federation.config.method.latent
        return [
            RoundStep(work, self.federation.exact("features", Client.measure, width, pooled=False))
        ]


def test_a_method_of_ones_own_is_charged_for_what_its_steps_do(tiny: Tiny) -> None:
    with deterministic():
        method = Own(method_of(tiny()).federation)
        client = method.federation.clients[1]
        before = {name: value.clone() for name, value in client.model.state_dict().items()}
        load = Workload(method, 1).of(client)
        assert [task.name for task in load.tasks] == ["step 0", "measure"]
        assert min(load.up, load.down) > 0
        modelled = StepCosts().seconds(client, load.tasks[:1], SPEED)
        assert all(torch.equal(before[name], v) for name, v in client.model.state_dict().items())
        assert method.published == {}
        (work,) = (one.work for one in method.steps(1) if one.work)
        done = record(lambda: work(client)).seconds(SPEED)
    assert modelled == pytest.approx(done, rel=0.1)


# ---------------------------------------------------------------- what a step costs


@pytest.fixture
def client(tiny: Tiny) -> Client:
    config = tiny(training={"batch": 16})
    return assemble(
        config, load_dataset(config.data), Compute.of(config.engine)
    ).federation.clients[1]


def training(size: float, steps: float) -> TrainingTask:
    return TrainingTask("train", size, steps, lambda probe, _: probe.train(0))


def test_steps_add_up_and_setting_up_is_free(client: Client) -> None:
    with deterministic():
        costs = StepCosts()
        one = costs.seconds(client, [training(16, 1)], SPEED)
        assert one > 0
        assert costs.seconds(client, [training(16, 5)], SPEED) == pytest.approx(5 * one)
        assert costs.seconds(client, [training(16, 2)] * 2, SPEED) == pytest.approx(4 * one)
        # The slow check records a whole long phase: per step, setting up fades away.
        other = copy.deepcopy(client)
        other.images, other.labels = other.images[:16], other.labels[:16]
        other.settings = other.settings.model_copy(update={"epochs": 40})
        assert len(other.images) == 16
        whole = record(lambda: other.train(0)).seconds(SPEED)
    assert 40 * one == pytest.approx(whole, rel=0.02)


def test_between_two_sizes_time_is_linear(client: Client) -> None:
    with deterministic():
        costs = StepCosts()
        few, some, full = (costs.seconds(client, [training(size, 1)], SPEED) for size in (2, 9, 16))
        assert some == pytest.approx((few + full) / 2)
        assert few < full
        other = copy.deepcopy(client)
        other.images, other.labels = other.images[:9], other.labels[:9]
        other.settings = other.settings.model_copy(update={"epochs": 40})
        measured = record(lambda: other.train(0)).seconds(SPEED) / 40
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


def test_each_phase_is_tried_once_per_architecture(client: Client) -> None:
    seen: list[int] = []
    task = TrainingTask("train", 4, 7, lambda probe, steps: seen.append(steps))
    costs = StepCosts()
    for _ in range(3):
        costs.seconds(client, [task], SPEED)
    assert seen == [1, 2, 1, 2], "one and two steps, for few images and for a batch"
