"""Runs under ``privacy.mode = example``, from settings to files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ConfigError, PrivacyError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.methods import Method
from fedvtc_edge.federation.methods.example import ExampleFedVTC
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.federation.workload import Workload
from fedvtc_edge.models import ImageShape
from fedvtc_edge.plugins import ARCHITECTURES
from fedvtc_edge.privacy.claim import UNITS
from fedvtc_edge.privacy.ledger import Ledger
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.privacy.release_store import ReleaseStore
from fedvtc_edge.runs.directory import RunDirectory
from fedvtc_edge.training import finetuning, supervised
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.workflows.run import resume, run

Tiny = Callable[..., Config]
SHARES = ("anchored", "features", "features+decoder")


def private(tiny: Tiny, share: str = "anchored", **tables: Any) -> Config:
    privacy = {"mode": "example", "epsilon": 8.0, "population": 200}
    return tiny(method={"share": share}, privacy=privacy, training={"batch": 16}).replace(**tables)


def method_of(config: Config) -> ExampleFedVTC:
    method = assemble(config, load_dataset(config.data), Compute.of(config.engine), lambda *_: None)
    assert isinstance(method, ExampleFedVTC)
    return method


def play_round(method: Method, number: int) -> None:
    """One round, or the opening, with everybody."""
    executor = LocalExecutor(method)
    take_steps(method, executor, number, executor.clients)


@pytest.mark.parametrize("share", SHARES)
def test_a_run_accounts_for_everything(share: str, tiny: Tiny, tmp_path: Path, quick: None) -> None:
    config, out = private(tiny, share), tmp_path / "run"
    summary = run(config, out=out).summary
    mechanism = mechanism_of(config)
    assert mechanism is not None
    assert 7.7 <= summary["epsilon"] <= 8.0
    assert (summary["delta"], summary["privacy_unit"]) == (1e-5, UNITS["example"])
    assert "models and bundle" in summary["privacy_covers"]
    assert summary["privacy_mechanism"].startswith("DP-SGD, noise multiplier ")
    assert all("noised" in text or "DP-SGD" in text for text in summary["uploads"])
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for number, record in enumerate(records, 1):
        assert {c["epsilon"] for c in record["clients"]} == {mechanism.epsilon_after(number)}
    assert summary["epsilon"] == mechanism.epsilon_after(3)
    entries = json.loads((out / "ledger.json").read_text())["releases"]
    per_client = {"anchored": 1, "features": 3, "features+decoder": 6}[share]
    assert len(entries) == 3 * per_client
    for entry in entries:
        assert entry["epsilon"] == mechanism.epsilon_at(entry["round"], entry["kind"])
        assert "DP-SGD" in entry["mechanism"]
    assert len({c["upload_bytes"] for c in summary["clients"]}) == 1
    assert not list(out.glob("clients/*/noise.key")), "nobody takes the noise off again"


@pytest.mark.parametrize("share", SHARES)
def test_a_round_repeated_after_a_kill_is_the_same_round(
    share: str, tiny: Tiny, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when round 2 was heard but not saved; done again, and once more in a copy."""
    out, copy = tmp_path / "run", tmp_path / "copy"
    save = RunDirectory.save

    def killed(self: RunDirectory, state: Any) -> None:
        if state.round == 2:
            raise KeyboardInterrupt
        save(self, state)

    monkeypatch.setattr(RunDirectory, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(private(tiny, share), out=out)
    monkeypatch.undo()
    heard = {p.relative_to(out): p.read_bytes() for p in out.glob("server/**/*.safetensors")}
    spent = json.loads((out / "ledger.json").read_text())["releases"]
    keys = sorted(out.glob("clients/*/noise.key"))
    assert {len(path.read_bytes()) for path in keys} == {32}
    assert len({path.read_bytes() for path in keys}) == 3
    assert all(path.stat().st_mode & 0o077 == 0 for path in keys)
    shutil.copytree(out, copy)
    monkeypatch.setattr("fedvtc_edge.report.render", lambda directory: directory)
    first = resume(out).summary
    assert {p: (out / p).read_bytes() for p in heard} == heard
    after = json.loads((out / "ledger.json").read_text())["releases"]
    assert after[: len(spent)] == spent
    assert len(after) == 3 * {"anchored": 1, "features": 3, "features+decoder": 6}[share]
    second = resume(copy).summary
    assert first["epsilon"] == second["epsilon"] <= 8.0
    if share == "anchored":  # the others release anew in round 3, from fresh entropy
        for path in out.glob("clients/*/*.safetensors"):
            assert path.read_bytes() == (copy / path.relative_to(out)).read_bytes()


def test_other_data_never_meet_the_same_noise(tiny: Tiny) -> None:
    method = method_of(private(tiny))
    client = method.federation.clients[0]
    first = method._secret(client, 1, "train", "noise").uniform(4)
    assert (first == method._secret(client, 1, "train", "noise").uniform(4)).all()
    client.images = client.images[:-1]
    client.labels = client.labels[:-1]
    method._data.clear(), method._keys.clear()
    assert not (first == method._secret(client, 1, "train", "noise").uniform(4)).any()


def test_which_classes_a_client_has_plays_no_part(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unmasked(logits: Tensor, labels: Tensor, present: object, reduction: str) -> Tensor:
        assert present is None, "the presence mask was read"
        return F.cross_entropy(logits, labels, reduction=reduction)

    def never(*args: object) -> None:
        raise AssertionError("the presence mask was read")

    monkeypatch.setattr(supervised, "masked_cross_entropy", unmasked)
    monkeypatch.setattr(finetuning, "masked_cross_entropy", never)
    with deterministic():
        method = method_of(private(tiny))
        for client in method.federation.clients:
            client.present = client.counts = None  # type: ignore[assignment]
        play_round(method, 0)
        for number in (1, 2, 3):
            play_round(method, number)


def test_phase_c_never_sees_a_real_image(tiny: Tiny) -> None:
    results = []
    for poisoned in (False, True):
        with deterministic():
            method = method_of(private(tiny))
            method.federation.releases = Fixed()
            client = method.federation.clients[0]
            play_round(method, 0)
            knowledge = method.knowledge()
            assert knowledge is not None
            if poisoned:
                client.images = torch.full_like(client.images, float("nan"))
                client.labels = torch.zeros_like(client.labels)
            method._finetune(client, 3, knowledge, 4)
            results.append(torch.cat([p.detach().flatten() for p in client.model.parameters()]))
    assert torch.isfinite(results[1]).all()
    assert torch.equal(*results)


class Fixed(ReleaseStore):
    """A release that says nothing, so that two federations know the same."""

    def __init__(self) -> None:
        super().__init__(None)

    def once(self, sender: str, kind: str, draw: Callable[[], bytes]) -> bytes:
        header, drawn = draw()[:128], load(draw()[128:])["release"]
        made = np.random.default_rng(1).integers(0, 2**22, drawn.shape)
        return header + save({"release": made})


def test_a_release_beyond_the_plan_is_refused_before_it_is_written(
    tiny: Tiny, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger.json", mechanism_of(private(tiny, "features+decoder")))
    ledger.begin()
    for number in (1, 2, 3):
        for kind in ("features", "decoder"):
            for _ in range(2):  # a retry is no second release
                ledger.record(number, "client-00", kind, b"%d" % number)
    before = ledger.path.read_bytes()
    with pytest.raises(PrivacyError, match="released 3 times") as caught:
        ledger.record(4, "client-00", "features", b"4")
    assert "3 rounds fit the budget" in caught.value.hint
    assert ledger.path.read_bytes() == before
    ledger.record(1, "client-01", "features", b"1")


@pytest.mark.parametrize(
    ("layer", "hint"), [(nn.BatchNorm1d(4), "GroupNorm"), (nn.Dropout(), "leave it out")]
)
def test_a_network_that_cannot_be_private_is_refused_before_anything_is_written(
    layer: nn.Module,
    hint: str,
    tiny: Tiny,
    tmp_path: Path,
) -> None:
    def body(shape: ImageShape) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(shape.size**2, 4), layer).eval()

    config = private(tiny, clients={"architectures": ["mlp", "mine"]})
    with (
        ARCHITECTURES.lent({"mine": body}),
        pytest.raises(ConfigError, match="'mine'") as caught,
    ):
        run(config, out=tmp_path / "run")
    assert hint in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_all_built_in_architectures_train(tiny: Tiny) -> None:
    names = ["lenet", "resnet8", "mobilenet", "shufflenet", "mlp"]
    config = private(tiny, clients={"count": 5, "architectures": names}, method={"rounds": 1})
    with deterministic():
        method = method_of(config)
        before = [c.model.projection.weight.clone() for c in method.federation.clients]
        play_round(method, 0)
        play_round(method, 1)
    for client, old in zip(method.federation.clients, before, strict=True):
        weights = torch.cat([p.detach().flatten() for p in client.model.parameters()])
        assert torch.isfinite(weights).all()
        assert not torch.equal(old, client.model.projection.weight)


def test_a_device_is_charged_for_the_scheduled_steps_whatever_it_has(tiny: Tiny) -> None:
    method = method_of(private(tiny))
    schedule = method.schedule
    for client in method.federation.clients:
        load = Workload(method, 1).of(client)
        (training,) = (task for task in load.tasks if task.name == "train")
        assert training.steps == schedule.train_steps
        assert training.size == schedule.rate * len(client.images)
