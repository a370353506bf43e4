"""Small shared networks: who has which weights when, that they are kept, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import fedvtc_edge
from fedvtc_edge import wire
from fedvtc_edge.attacks.auditing import audit
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.devices.footprint import FLOAT, needs
from fedvtc_edge.errors import ConfigError, RunError
from fedvtc_edge.export.exporting import export
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.averaging import Average
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.methods.companions import KIND, SharedCompanion
from fedvtc_edge.federation.methods.fedkd import FactoredAverage, FedKD, rank_of
from fedvtc_edge.federation.methods.fedtype import conformal, split, taught, threshold
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.models import ImageShape
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.wire import WireError

Tiny = Callable[..., Config]
Quickly = Callable[[], AbstractContextManager[None]]
METHODS = ["fml", "fedkd", "fedmrl", "fedtype"]


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
    [
        {"transport": {"masking": True}},
        {"privacy": {"mode": "anchored"}},
        {"server": {"trim": 0.2}},
        {"clients": {"architectures": ["extractor-head"]}},
    ],
    ids=str,
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
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["share"] == "companion"
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


# ---------------------------------------------------------------- FedKD


def test_fedkd_teaches_as_much_as_both_know(tiny: Tiny) -> None:
    method = made(tiny(method={"name": "fedkd"}))
    client = method.federation.clients[0]
    assert client.companion is not None
    x, labels = client.images[:6], client.labels[:6]
    value = method.objective(client)(x, labels).item()
    (z, own), (w, small) = client.model.outputs(x), client.companion.network.outputs(x)
    absent = ~client.present
    cross = [F.cross_entropy(n.masked_fill(absent, float("-inf")), labels) for n in (own, small)]
    kl = sum(
        F.kl_div(mine.log_softmax(1), other.softmax(1), reduction="batchmean")
        for mine, other in ((own, small), (small, own))
    )
    expected = sum(cross) + (kl + 2 * F.mse_loss(z, w)) / sum(cross)
    assert value == pytest.approx(float(expected.detach()), rel=1e-4)


@given(energy=st.floats(0.5, 1.0), seed=st.integers(0, 100))
def test_ranks_keep_that_share_of_the_energy_and_no_fewer_do(energy: float, seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal((5, 8)) * np.arange(1, 9) ** 2
    rank, size = rank_of(matrix, energy), np.linalg.svd(matrix, compute_uv=False)
    whole = np.square(matrix).sum()
    assert np.square(size[:rank]).sum() >= energy * whole * (1 - 1e-9)
    assert rank == 1 or np.square(size[: rank - 1]).sum() < energy * whole * (1 + 1e-9)


def test_updates_are_the_best_of_their_rank_and_lengths_are_agreed_on(tiny: Tiny) -> None:
    rng = np.random.default_rng(0)
    start = {"kernel": np.ones((6, 4, 3, 3), np.float32), "bias": np.ones(6, np.float32)}
    trained = [
        {
            name: value + rng.standard_normal(value.shape).astype(np.float32)
            for name, value in start.items()
        }
        for _ in range(3)
    ]
    context = made(tiny(method={"name": "fedkd"})).federation.context("client-00", 2, KIND)
    for rank, shorter in ((None, False), (2, True), (6, False)):
        ranks = {} if rank is None else {"kernel": rank}
        lengths = set()
        for weights in trained:
            exchange = FactoredAverage(KIND, lambda _, w=weights: w, start, ranks=ranks)
            upload = exchange.encode(None, context)  # type: ignore[arg-type]
            lengths.add(len(upload))
            found = exchange.decode(upload, context)
            np.testing.assert_allclose(found["bias"], weights["bias"], rtol=1e-6)
            size = np.linalg.svd(
                (weights["kernel"] - start["kernel"]).reshape(6, -1), compute_uv=False
            )
            lost = np.square(found["kernel"] - weights["kernel"]).sum()
            expected = np.square(size[rank:]).sum() if shorter else 0.0
            assert lost == pytest.approx(expected, rel=1e-4, abs=1e-9)
        whole = len(wire.encode_weights(start, context=context))
        assert len(lengths) == 1
        assert (lengths.pop() < whole) == shorter


def test_factors_whose_product_is_too_large_are_refused() -> None:
    start = {"a": np.zeros((8, 8), np.float32)}
    exchange = FactoredAverage(KIND, lambda _: start, start, ranks={"a": 1})
    huge = {"a.left": np.full((8, 1), 3e38), "a.right": np.full((1, 8), 3e38)}
    with pytest.raises(WireError, match="not finite"):
        exchange.decode(wire.encode_weights(huge), None)  # type: ignore[arg-type]


def test_the_second_round_sends_less_and_odd_ranks_are_refused(tiny: Tiny) -> None:
    method = made(tiny(method={"name": "fedkd", "latent": 64}))
    assert isinstance(method, FedKD)
    assert method.energy(1) < method.energy(2) < method.energy(3) == 0.98
    play_round(method, 1)
    sizes = [
        sum(value.size for value in exchange.form.values())
        for exchange in (
            made(tiny(method={"name": "fedkd", "latent": 64})).exchange(1),
            method.exchange(2),
        )
        if isinstance(exchange, FactoredAverage)
    ]
    assert sizes[1] < sizes[0]
    play_round(method, 2)
    ranks = np.array(list(method.ranks.values()), np.float32)
    for odd in (0, 1.5, 1e9):
        data = wire.encode_weights(
            {**method.weights, "ranks": np.where(ranks == ranks[0], odd, ranks)}
        )
        with pytest.raises(WireError, match="ranks"):
            method.restore({KIND: data})


# ---------------------------------------------------------------- FedMRL


def test_fedmrl_fuses_features_and_nests_heads(tiny: Tiny) -> None:
    method = made(tiny(method={"name": "fedmrl", "knob": 0.5}))
    client = method.federation.clients[1]
    small = client.companion
    assert small is not None
    x, labels = client.images[:6], client.labels[:6]
    fused = small.own(torch.cat([small.network.features(x), client.model.features(x)], 1))
    assert fused.shape == (6, 8)
    heads = client.model.head(fused), small.network.head(fused[:, :4])
    expected = sum(
        F.cross_entropy(logits.masked_fill(~client.present, float("-inf")), labels)
        for logits in heads
    )
    assert method.objective(client)(x, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(method.scores(client, x), heads[0].log_softmax(1).detach())
    assert not any("own" in name for name in small_of(client))  # the projection stays


def test_two_networks_together_are_in_no_bundle(
    tiny: Tiny, tmp_path: Path, quickly: Quickly
) -> None:
    with quickly():
        fedvtc_edge.run(tiny(method={"name": "fedmrl", "rounds": 1}), out=tmp_path / "run")
    with pytest.raises(RunError, match="two networks together"):
        export(tmp_path / "run", tmp_path / "bundle")


# ---------------------------------------------------------------- FedType


@given(coverage=st.floats(0.5, 0.99), seed=st.integers(0, 50))
def test_sets_hold_the_true_class_of_that_share_of_images(coverage: float, seed: int) -> None:
    """On the calibration set itself, which is one image more conservative than new ones."""
    draw = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(60, 5, generator=draw), torch.randint(5, (60,), generator=draw)
    least = threshold(logits.softmax(1), labels, coverage)
    inside = conformal(logits, least)[torch.arange(60), labels]
    assert inside.float().mean() >= coverage
    assert conformal(logits, 2.0).sum(1).tolist() == [1] * 60  # the likeliest, if none is sure
    assert threshold(logits[:1].softmax(1), labels[:1], 0.9) == 0.0


def test_what_is_taught_is_the_divergence_within_a_set() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(4, 5, generator=draw), torch.randn(4, 5, generator=draw)
    fixed = student.clone()
    classes = torch.rand(4, 5, generator=draw) > 0.5
    classes[:, 0] = True
    student.requires_grad_()
    for row, value in enumerate(taught(student, teacher, classes)):
        kept = teacher[row][classes[row]].softmax(0)
        other = fixed[row].log_softmax(0)[classes[row]]
        assert value.item() == pytest.approx(float((kept * (kept.log() - other)).sum()), rel=1e-5)
    taught(student, teacher, classes).sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_what_calibrates_is_not_trained_on(tiny: Tiny) -> None:
    method = made(tiny(method={"name": "fedtype"}))
    client = method.federation.clients[0]
    held, rest = split(client)
    assert sorted([*held.tolist(), *rest.tolist()]) == list(range(len(client.images)))
    seen: list[int] = []
    client.train_by = lambda *_, examples, **__: seen.append(len(examples[0]))  # type: ignore[method-assign]
    method.train(client, 1)
    assert seen == [len(rest)]
