"""The log of refusals: one line each, whole, and no longer than it must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge import run
from fedvtc_edge.errors import FedVTCError, ServerError
from fedvtc_edge.federation.server import MAX_REASON, Refusals
from fedvtc_edge.runs.directory import number_of, public_name
from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.training import client as clients
from fedvtc_edge.wire import context_of
from fedvtc_edge.wire.context import Context

Tiny = Callable[..., Any]
CONTEXT = Context("0" * 32, 3, "client-07", "anchor")


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text("utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_one_line_for_each(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    log = Refusals(tmp_path)
    log.note(CONTEXT, FedVTCError("bad\nbytes", hint="-"))
    log.note(CONTEXT, FedVTCError("é" * 5000, hint="-"), "SHA256:abc")
    first, second = lines(log.path)
    assert first == {
        "round": 3,
        "client": "client-07",
        "kind": "anchor",
        "fingerprint": None,
        "error": "FedVTCError",
        "reason": "bad\nbytes",
    }
    assert (second["fingerprint"], second["reason"]) == ("SHA256:abc", "é" * MAX_REASON)
    assert all(len(line) < 3000 for line in log.path.read_bytes().splitlines())


def liar(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second client scales its features by a hundred."""
    honest = clients.Client.measure_anchor

    def measure(self: Any, anchor: Any, *, pooled: bool) -> ClassStatistics:
        one = honest(self, anchor, pooled=pooled)
        if self.id != "client-01":
            return one
        return ClassStatistics(one.count, one.total * 1e2, one.square * 1e4, pooled)

    monkeypatch.setattr(clients.Client, "measure_anchor", measure)


@pytest.mark.usefixtures("quick")
def test_a_run_goes_on_without_a_liar(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar(monkeypatch)
    config = tiny(server={"quorum": 0.6}, method={"rounds": 1})
    summary = run(config, out=tmp_path / "run").summary
    assert summary["rounds"] == 1
    (line,) = lines(tmp_path / "run" / "server" / "refusals.jsonl")
    assert (line["client"], line["kind"], line["round"]) == ("client-01", "anchor", 0)
    assert line["error"] == "CheckError"
    sent = sorted((tmp_path / "run" / "server" / "round-0000").iterdir())
    assert [path.name for path in sent] == [f"client-0{k}.anchor.upload" for k in range(3)]
    number = number_of(tmp_path / "run")
    for path in sent:
        sender = path.name.partition(".")[0]
        context = Context(public_name(config, number), 0, sender, "anchor")
        assert context_of(path.read_bytes()) == context


@pytest.mark.usefixtures("quick")
def test_without_the_quorum_it_ends_and_says_why(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar(monkeypatch)
    with pytest.raises(ServerError, match="2 uploads, the quorum is 3; refused client-01: a class"):
        run(tiny(method={"rounds": 1}), out=tmp_path / "run")
    assert len(lines(tmp_path / "run" / "server" / "refusals.jsonl")) == 1


@pytest.mark.usefixtures("quick")
def test_half_the_bytes_say_nearly_the_same(tiny: Tiny, tmp_path: Path) -> None:
    sizes, means = [], []
    for precision in ("float32", "float16"):
        out = tmp_path / precision
        config = tiny(transport={"precision": precision}, method={"rounds": 1, "share": "features"})
        sizes.append(run(config, out=out).summary["upload_bytes_total"])
        from fedvtc_edge.wire import published

        means.append(published((out / "statistics.safetensors").read_bytes()).mean)
    assert sizes[1] < sizes[0]
    np.testing.assert_allclose(means[1], means[0], atol=4 * 2.0**-11)
