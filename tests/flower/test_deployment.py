"""A real deployment: TLS, node keys, sealing, masking; client, SuperLink and server are killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import fedvtc_edge
from fedvtc_edge.wire import published

SCENARIO = Path(__file__).with_name("scenario_deployment.py")
HOME = 'it\'s a "home" \\ 0'
"""Of the client that is killed."""


@pytest.mark.slow
def test_client_superlink_and_server_are_killed_and_nothing_counts_twice(
    offline: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    done = offline(SCENARIO, str(tmp_path), environ={}, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["codes"] == [0, 0, 0, 0]
    assert result["left"] == []
    # Flower itself would take both from a stranger, would they but speak protobuf.
    assert result["past the gate"] == [415, 415, 415]
    assert result["through the gate"] == [404, 404, 401]
    # All the while strangers held more connections than there are places.
    assert result["strangers"]["idle"]["let in"] > 48
    assert result["strangers"]["bodies"]["MB sent"] > 0
    assert result["grown by"] < 64
    assert result["killed"] != 0
    assert result["left of the killed"] == []
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    # Round 2 was closed without the client that was killed; it was back for round 3.
    attendance = [[client["took_part"] for client in record["clients"]] for record in rounds]
    assert attendance == [[True, True, True], [True, True, False], [True, True, True]]
    assert "the run is done" in result["client-02"]
    assert all(client["accuracy"] is not None for client in summary["clients"])
    architectures = [client["architecture"] for client in summary["clients"]]
    assert architectures == ["mlp", "pyramid", "mlp"]

    # It came back with its state: it did not take part in the sum again, nor anew.
    assert "opening" not in result["server"]
    ledger = json.loads((tmp_path / HOME / "ledger.json").read_text("utf-8"))
    assert [entry["kind"] for entry in ledger["releases"]] == ["anchor"]

    # Nobody counts twice, and nobody is missing: it is the sum of one process, bit for bit.
    ledger = json.loads((run / "ledger.json").read_text("utf-8"))
    assert sorted(entry["client"] for entry in ledger["releases"]) == [
        "client-00",
        "client-01",
        "client-02",
    ]
    config = fedvtc_edge.load_config(run / "config.toml").replace(engine={"name": "local"})
    fedvtc_edge.run(config, out=tmp_path / "local")
    there, here = (
        published((folder / "statistics.safetensors").read_bytes())
        for folder in (run, tmp_path / "local")
    )
    assert there.count.tolist() == here.count.tolist()
    assert there.mean.tolist() == here.mean.tolist()
    assert there.covariance is not None
    assert here.covariance is not None
    assert there.covariance.tolist() == here.covariance.tolist()

    # What the server has seen of the sum are masked messages alone.
    seen = {path.name.split(".")[1] for path in (run / "server" / "round-0000").iterdir()}
    assert seen == {f"anchor-mask{message}" for message in "abcde"}
