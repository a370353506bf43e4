"""Rounds under ``privacy.mode = client``: what the server sees, keeps and publishes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ServerError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.privacy.claim import UNITS
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.privacy.release import check_norm
from fedvtc_edge.privacy.release_spec import ClientReleaseSpec
from fedvtc_edge.privacy.sampler import GRID
from fedvtc_edge.training.compute import Compute
from fedvtc_edge.wire import decode_release
from fedvtc_edge.workflows.run import run, run_without_trace

Tiny = Callable[..., Config]
IDS = ["client-00", "client-01", "client-02"]


def private(tiny: Tiny, share: str = "anchored", **tables: Any) -> Config:
    privacy = {"mode": "client", "epsilon": 8.0, "population": 200, "delta": 1e-3}
    method = {"share": share} | tables.pop("method", {})
    return tiny(privacy=privacy | tables.pop("privacy", {}), method=method, **tables)


def design_with(config: Config) -> ClientReleaseSpec:
    mechanism = mechanism_of(config, 10)
    assert mechanism is not None
    spec = mechanism.spec
    assert isinstance(spec, ClientReleaseSpec)
    return spec


@pytest.mark.parametrize("share", ["anchored", "features"])
def test_a_run_accounts_for_everything(share: str, tiny: Tiny, tmp_path: Path, quick: None) -> None:
    config, out = private(tiny, share), tmp_path / "run"
    summary = run(config, out=out).summary
    assert 7.99 <= summary["epsilon"] <= 8.0
    assert (summary["delta"], summary["privacy_unit"]) == (1e-3, UNITS["client"])
    assert "it is trusted" in summary["privacy_covers"]
    assert "trusted server" in summary["privacy_mechanism"]
    assert all("trusted server" in text for text in summary["uploads"])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    spent = [{c["epsilon"] for c in line["clients"]} for line in lines]
    assert all(len(values) == 1 for values in spent)
    grows = [values.pop() for values in spent]
    assert grows == sorted(grows)
    assert (len(set(grows)) == 3) == (share == "features")
    assert grows[-1] == summary["epsilon"]
    entries = json.loads((out / "ledger.json").read_text())["releases"]
    rounds = [0] if share == "anchored" else [1, 2, 3]
    assert [(e["round"], e["client"]) for e in entries] == [
        (number, name) for number in rounds for name in [*IDS, "server"]
    ]
    by_server = [entry["epsilon"] for entry in entries if entry["client"] == "server"]
    assert by_server == grows[-len(by_server) :]
    assert {e["epsilon"] for e in entries if e["client"] != "server"} == {None}


@pytest.mark.parametrize("share", ["anchored", "features"])
def test_the_sum_is_noised_once(share: str, tiny: Tiny, tmp_path: Path, quick: None) -> None:
    """The server's files: each upload within the bound, the same length, and one noised sum."""
    config, out = private(tiny, share), tmp_path / "run"
    run(config, out=out)
    spec = design_with(config)
    kind, number = ("anchor", 0) if share == "anchored" else ("features", 1)
    folder = out / "server" / f"round-{number:04d}"
    data = {name: (folder / f"{name}.{kind}.upload").read_bytes() for name in [*IDS, "server"]}
    assert len({len(part) for part in data.values()}) == 1, "no length tells of what is in it"
    read = {name: decode_release(part, size=spec.size) for name, part in data.items()}
    for name in IDS:
        check_norm(spec, read[name])
        assert read[name].any()
    noise = (read["server"] - sum(read[name] for name in IDS)) / float(spec.sigma)
    assert abs(noise.std() - 1) < 6 / (2 * noise.size) ** 0.5
    assert (noise != 0).mean() > 0.99


def test_no_upload_depends_on_the_other_clients(tiny: Tiny, tmp_path: Path, quick: None) -> None:
    """Sensitivity: one client's data changed moves that client's upload alone."""
    config = private(tiny)
    seen: list[dict[str, bytes]] = []
    for change in (False, True):
        heard: dict[str, bytes] = {}

        def recorder(_: int, sender: str, __: str, data: bytes, heard: Any = heard) -> None:
            heard[sender] = data

        method = assemble(config, load_dataset(config.data), Compute.of(config.engine), recorder)
        if change:
            method.federation.clients[1].images = method.federation.clients[1].images.flip(2)
        executor = LocalExecutor(method)
        take_steps(method, executor, 0, executor.clients)
        seen.append(heard)
    assert [seen[0][name] == seen[1][name] for name in IDS] == [True, False, True]


def test_a_client_that_does_not_clip_is_refused(
    tiny: Tiny, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = private(tiny)
    size = design_with(config).size
    monkeypatch.setattr(
        "fedvtc_edge.privacy.mechanism.clipped_upload", lambda *_: np.full(size, GRID, np.int64)
    )
    with pytest.raises(ServerError, match=r"0 uploads, .*clip bound is 1"):
        run(config, out=tmp_path / "run")
    lines = (tmp_path / "run" / "server" / "refusals.jsonl").read_text().splitlines()
    assert [json.loads(line)["client"] for line in lines] == IDS
    entries = json.loads((tmp_path / "run" / "ledger.json").read_text())["releases"]
    assert [entry["client"] for entry in entries] == IDS, "seen, refused, and nothing published"


def test_many_clients_are_nearly_free(tiny: Tiny) -> None:
    """The same ε: the control learns from eighty clients what six hide in noise."""
    accuracies = []
    for count in (6, 80):
        config = private(
            tiny,
            data={"limit": 0, "test_limit": 300, "min_samples": 2, "alpha": 100.0},
            clients={"count": count, "architectures": ["mlp"]},
            method={"rounds": 1, "anchor": 64},
            privacy={"population": 1400},
            training={"finetune_last": 0, "finetune_from": 2},
        )
        accuracies.append(run_without_trace(config, load_dataset(config.data))["accuracy_control"])
    assert accuracies[0] < 0.6 < 0.7 < accuracies[1]
