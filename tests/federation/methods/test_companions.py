"""Small shared networks: who has which weights when, that they are kept, and what is refused."""

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
from fedvtc_edge.attacks.auditing import audit
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.devices.footprint import FLOAT, needs
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.averaging import Average
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.methods.companions import KIND, SharedCompanion
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.models import ImageShape
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.wire import WireError

Tiny = Callable[..., Config]
Quickly = Callable[[], AbstractContextManager[None]]
METHODS = ["fml"]


class CutError(Exception):
    """The end of a process, after a round was kept."""


class CutAfterOne(SilentProgress):
    def advance(self, note: str = "") -> None:
        raise CutError


def made(config: Config) -> SharedCompanion:
    found = assemble(config, load_dataset(config.data), Compute.of(config.engine))
    assert isinstance(found, SharedCompanion)
    return found


def play_round(method: SharedCompanion, number: int) -> None:
    with deterministic():
        executor = LocalExecutor(method)
        take_steps(method, executor, number, executor.clients)


def small_of(client: Client) -> dict[str, np.ndarray]:
    return client.weights(KIND)


@pytest.mark.parametrize("name", METHODS)
def test_all_begin_with_one_network_and_its_average_is_published(tiny: Tiny, name: str) -> None:
    method = made(tiny(method={"name": name}))
    clients = list(method.federation.clients)
    for client in clients:
        for key, value in small_of(client).items():
            np.testing.assert_array_equal(value, method.weights[key])
    before = dict(method.weights)
    play_round(method, 1)
    assert any((before[key] != method.weights[key]).any() for key in before)
    for key, value in method.weights.items():
        expected = np.mean([small_of(client)[key] for client in clients], axis=0, dtype=np.float64)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_round_begins_with_the_averaged_network(tiny: Tiny, name: str) -> None:
    method = made(tiny(method={"name": name}))
    play_round(method, 1)
    client = method.federation.clients[0]
    given: list[dict[str, np.ndarray]] = []
    client.train_by = lambda *_, **__: given.append(small_of(client))  # type: ignore[method-assign]
    method.train(client, 2)
    for key, value in given[0].items():
        np.testing.assert_array_equal(value, method.weights[key])


@pytest.mark.parametrize("name", METHODS)
def test_weights_of_another_network_are_refused_on_both_sides(tiny: Tiny, name: str) -> None:
    method = made(tiny(method={"name": name}))
    other = {**method.weights, "head.bias": np.zeros(3, np.float32)}
    wrong = [wire.encode_weights(other), b"", wire.encode_weights({"a": np.zeros(2)})]
    odd = {key: np.full_like(value, np.nan) for key, value in method.weights.items()}
    for data in [*wrong, wire.encode_weights(odd)]:
        with pytest.raises(WireError):
            method.restore({KIND: data})
        with pytest.raises(WireError):
            method.exchange(1).decode(data, method.federation.context("client-00", 1, KIND))


def test_an_upload_goes_to_the_others_if_it_strays(tiny: Tiny) -> None:
    start = {"a": np.zeros(50, np.float32)}
    rng = np.random.default_rng(0)
    parts = [{"a": rng.standard_normal(50).astype(np.float32)} for _ in range(5)]
    parts[2] = {"a": np.full(50, 1e6, np.float32)}
    doubts = Average(KIND, lambda _: start, start).doubts(parts)
    assert list(doubts) == [2]
    assert KIND in str(doubts[2].why)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "changes",
    [{"transport": {"masking": True}}, {"privacy": {"mode": "anchored"}}],
    ids=["masking", "privacy"],
)
def test_what_cannot_hold_is_refused(tiny: Tiny, name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=name):
        check(tiny(method={"name": name}, **changes))


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_cut_off_resumes_to_the_same_networks(
    tiny: Tiny, tmp_path: Path, quickly: Quickly, name: str
) -> None:
    settings = tiny(method={"name": name, "rounds": 3}, clients={"count": 3, "cohort": 0.7})
    with quickly():
        fedvtc_edge.run(settings, out=tmp_path / "whole")
        with pytest.raises(CutError):
            fedvtc_edge.run(settings, out=tmp_path / "cut", progress=CutAfterOne())
        fedvtc_edge.resume(tmp_path / "cut")
    whole = networks(tmp_path / "whole")
    assert any(path.endswith("companion.safetensors") for path in whole)
    assert networks(tmp_path / "cut") == whole


def test_two_processes_give_the_same_networks(tiny: Tiny, tmp_path: Path, quickly: Quickly) -> None:
    settings = tiny(method={"name": "fml", "rounds": 2})
    with quickly():
        fedvtc_edge.run(settings, out=tmp_path / "one")
        fedvtc_edge.run(settings.replace(engine={"workers": 2}), out=tmp_path / "two")
    assert networks(tmp_path / "one") == networks(tmp_path / "two")


def networks(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.glob("clients/*/*.safetensors")}


def test_the_planner_counts_both_networks(tiny: Tiny) -> None:
    shape, given = ImageShape(8, 1), {"batch": 8}
    alone, both = (
        needs("mlp", tiny(method={"name": name}), shape, 10, **given)  # type: ignore[arg-type]
        for name in ("local", "fml")
    )
    method = made(tiny(method={"name": "fml"}))
    small = FLOAT * sum(value.size for value in method.weights.values())
    assert both.weights - alone.weights == small
    assert both.gradients - alone.gradients == small
    assert both.optimiser - alone.optimiser == 2 * small
    assert both.activations > alone.activations


def test_an_audit_does_not_pass_what_it_cannot_read(
    tiny: Tiny, tmp_path: Path, quickly: Quickly
) -> None:
    with quickly():
        fedvtc_edge.run(tiny(method={"name": "fml", "rounds": 1}), out=tmp_path / "run")
    found = audit(tmp_path / "run", attacks=["averaging"], quick=True).document
    assert found["verdict"] == "inconclusive"
    assert any("no attack here reads" in reason for reason in found["reasons"])
    (server,) = (view for view in found["threat_model"] if view["view"] == "server")
    assert "companion" in server["sees"]


# ---------------------------------------------------------------- FML


def test_fml_is_mutual_learning(tiny: Tiny) -> None:
    """Against the formula, class by class; and neither network is moved by the other's loss."""
    method = made(tiny(method={"name": "fml", "knob": 0.3}))
    client = method.federation.clients[0]
    assert client.companion is not None
    x, labels = client.images[:6], client.labels[:6]
    value = method.objective(client)(x, labels)
    expected = 0.0
    own = client.model(x).double().detach()
    small = client.companion.network(x).double().detach()
    for mine, other in ((own, small), (small, own)):
        for row, (a, b) in enumerate(zip(mine.softmax(1), other.softmax(1), strict=True)):
            absent = ~client.present
            masked = mine[row].masked_fill(absent, float("-inf"))
            cross = F.cross_entropy(masked[None], labels[row : row + 1])
            divergence = sum(q * (q / p).log() for p, q in zip(a, b, strict=True))
            expected += float(0.3 * cross + 0.7 * divergence) / 6
    assert value.item() == pytest.approx(expected, rel=1e-4)
    value.backward()
    both = [p.grad for p in client.companion.network.head.parameters()]
    found = torch.autograd.grad(_one_side(client, 0.3), client.companion.network.head.weight)
    torch.testing.assert_close(both[0], found[0])


def _one_side(client: Client, alpha: float) -> torch.Tensor:
    """Loss of the small network alone, the own one's outputs being constants."""
    assert client.companion is not None
    x, labels = client.images[:6], client.labels[:6]
    small, own = client.companion.network(x), client.model(x).detach()
    kl = F.kl_div(small.log_softmax(1), own.softmax(1), reduction="batchmean")
    masked = small.masked_fill(~client.present, float("-inf"))
    return alpha * F.cross_entropy(masked, labels) + (1 - alpha) * kl
