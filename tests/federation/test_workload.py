"""What a round asks of a device: bytes that really travel, and steps that are really taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.methods import Method
from fedvtc_edge.federation.rounds import LocalExecutor, take_steps
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.training.compute import Compute, deterministic

Tiny = Callable[..., Config]


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
    {"method": {"name": "local"}},
    {"method": {"name": "local-matched"}},
    {"method": {"name": "centralised"}},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_bytes_that_travel_are_known_before(tiny: Tiny, changes: dict[str, Any]) -> None:
    with deterministic():
        method = method_of(tiny(**changes))
        clients = list(method.federation.clients)
        expected = [{client.id: method.load(client, 0)[1:] for client in clients}]
        executor = LocalExecutor(method)
        take_steps(method, executor, 0, executor.clients)
        spent = [{name: (t["down"], t["up"]) for name, t in executor.account.items()}]
        expected.append({client.id: method.load(client, 1)[1:] for client in clients})
        take_steps(method, executor, 1, executor.clients)
        total = {name: (t["down"], t["up"]) for name, t in executor.account.items()}
    spent.append(
        {name: (total[name][0] - d, total[name][1] - u) for name, (d, u) in spent[0].items()}
    )
    assert spent == expected
    travels = any(sum(pair) for one in spent for pair in one.values())
    assert travels == (changes.get("method", {}).get("name") in (None, "fedproto"))


@pytest.mark.parametrize("batch", [8, 32])
@pytest.mark.parametrize("name", METHODS.names())
def test_the_steps_that_are_taken_are_known_before(tiny: Tiny, name: str, batch: int) -> None:
    """Samples seen in phase A; painting counts images that are no samples."""
    config = tiny(method={"name": name}, training={"batch": batch, "epochs": 3})
    with deterministic():
        method = method_of(config)
        clients, executor = list(method.federation.clients), LocalExecutor(method)
        take_steps(method, executor, 0, executor.clients)
        for client in clients:
            tasks = [t for t in method.load(client, 1).tasks if t.name in ("train", "steps")]
            expected = sum(task.size * task.steps for task in tasks)
            if name == "fedvtc":
                client.train(1)
            else:
                take_steps(method, executor, 1, [client.id])
            assert client.samples_seen == expected > 0


def test_phases_without_steps_are_not_charged(tiny: Tiny) -> None:
    config = tiny(training={"finetune_from": 3, "finetune_steps": 5, "finetune_last": 7})
    with deterministic():
        method = method_of(config)
        clients = list(method.federation.clients)
        assert [task.name for task in method.load(clients[0], 0).tasks] == ["measure"]
        take_steps(method, LocalExecutor(method), 0, [client.id for client in clients])
        steps = [
            {task.name: task.steps for task in method.load(clients[0], number).tasks}.get(
                "finetune"
            )
            for number in (1, 2, 3)
        ]
    assert steps == [None, None, 12]
