"""FedMD: scores of public images, their average, and what no client has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fedvtc_edge
from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ConfigError, DataError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.averaging import LEAST_LOG, SCORES, ScoreAverage
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.methods.fedmd import FedMD, _imitation
from fedvtc_edge.federation.methods.supervised import matched_steps
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.wire import WireError

Tiny = Callable[..., Config]


@pytest.fixture
def config(tiny: Tiny) -> Config:
    return tiny(method={"name": "fedmd"}, data={"public": "rest"})


def made(config: Config) -> FedMD:
    found = assemble(config, load_dataset(config.data), Compute.of(config.engine))
    assert isinstance(found, FedMD)
    return found


def play_round(method: FedMD, number: int) -> None:
    with deterministic():
        executor = LocalExecutor(method)
        take_steps(method, executor, number, executor.clients)


def exchange_of(method: FedMD, number: int = 1) -> ScoreAverage:
    exchange = method.steps(number)[0].exchange
    assert isinstance(exchange, ScoreAverage)
    return exchange


def test_scores_are_averaged_as_logarithms(config: Config) -> None:
    method = made(config)
    public, exchange = method.federation.public, exchange_of(method)
    assert public is not None
    contexts = [method.federation.context(c.id, 1, SCORES) for c in method.federation.clients]
    uploads = [
        exchange.encode(client, context)
        for client, context in zip(method.federation.clients, contexts, strict=True)
    ]
    parts = [exchange.decode(u, c) for u, c in zip(uploads, contexts, strict=True)]
    assert len({len(upload) for upload in uploads}) == 1
    expected = np.mean(
        [
            client.model(public).log_softmax(1).clamp(min=LEAST_LOG).detach().double().numpy()
            for client in method.federation.clients
        ],
        axis=0,
    )
    method.restore({SCORES: exchange.aggregate(parts, contexts[0])})
    assert method._consensus is not None
    torch.testing.assert_close(
        method._consensus.double(), torch.from_numpy(expected).log_softmax(1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("number", [1, 2])
def test_all_steps_of_a_round_are_the_matched_ones(config: Config, number: int) -> None:
    method = made(config.replace(method={"knob": 0.3}))
    play_round(method, 1)
    client, taken = method.federation.clients[0], list[int]()
    client.train_on = lambda *given, **_: taken.append(given[-1])  # type: ignore[method-assign]
    client.train_by = lambda _, steps, *__, **___: taken.append(steps)  # type: ignore[method-assign]
    for step in method.steps(number):
        if step.work is not None:
            step.work(client)
    assert sum(taken) == matched_steps(method.federation, client, number)
    assert len(taken) == (3 if number == 1 else 2)


def test_clients_digest_what_all_say(config: Config) -> None:
    client = made(config).federation.clients[0]
    x, scores = client.images[:5], torch.randn(5, 10).log_softmax(1)
    value = _imitation(client)(x, scores)
    expected = F.kl_div(client.model(x).log_softmax(1), scores.exp(), reduction="batchmean")
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_scores_that_no_network_gives_are_refused(config: Config) -> None:
    method = made(config)
    exchange, shape = exchange_of(method), exchange_of(method).like[SCORES].shape
    context = method.federation.context("client-00", 1, SCORES)
    fair = np.full(shape, -np.log(shape[1]))
    exchange.decode(wire.encode_weights({SCORES: fair}, context=context), context)
    sure, low, loud, lame = (fair.copy() for _ in range(4))
    sure[0, 0], low[3, 2], loud[1], lame[2] = 0.5, -21.0, -0.1, -5.0
    for odd in (sure, low, loud, lame, fair[:-1], fair * np.nan):
        with pytest.raises(WireError):
            exchange.decode(wire.encode_weights({SCORES: odd}, context=context), context)
    for odd in (sure, low, fair[:, :-1]):
        with pytest.raises(WireError):
            method.restore({SCORES: wire.encode_weights({SCORES: odd})})


def test_public_images_are_asked_for(tiny: Tiny, config: Config) -> None:
    with pytest.raises(ConfigError, match="teaches by public images") as raised:
        check(tiny(method={"name": "fedmd"}))
    assert "rest" in str(raised.value.hint)
    data = load_dataset(config.replace(data={"public": ""}).data)
    with pytest.raises(DataError, match="no public images"):
        assemble(config, data, Compute.of(config.engine))


@pytest.mark.parametrize(
    "changes",
    [
        {"transport": {"masking": True}},
        {"privacy": {"mode": "client"}},
        {"server": {"trim": 0.2}},
        {"clients": {"architectures": ["extractor-head"]}},
    ],
    ids=str,
)
def test_what_cannot_hold_is_refused(config: Config, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="fedmd"):
        check(config.replace(**changes))


def test_two_processes_and_a_run_give_the_same_networks(
    config: Config, tmp_path: Path, quickly: Callable[[], AbstractContextManager[None]]
) -> None:
    found = []
    with quickly():
        for workers in (1, 2):
            run = fedvtc_edge.run(
                config.replace(engine={"workers": workers}, method={"rounds": 1}),
                out=tmp_path / str(workers),
            )
            assert run.summary["uploads"][0].endswith("public images")
            paths = sorted((tmp_path / str(workers)).glob("clients/*/*.safetensors"))
            found.append([path.read_bytes() for path in paths])
    assert found[0] == found[1]
    assert found[0]
