"""The anchors' networks are counted right, and their comparison is whole."""

from __future__ import annotations

import json

import pytest

from fedvtc_edge.benchmarks.latency import anchors
from fedvtc_edge.devices import DeviceProfile, profile_names


@pytest.mark.parametrize(
    ("name", "convolutions", "gflop"),
    [("mobilenet_v2_224", 52, 0.60), ("resnet18_224", 20, 3.63)],
)
def test_networks_are_those_of_the_papers(name: str, convolutions: int, gflop: float) -> None:
    nodes = anchors.networks()[name]
    assert sum(node.operator == "Conv" for node in nodes) == convolutions
    assert sum(node.flops for node in nodes) / 1e9 == pytest.approx(gflop, rel=0.01)


def test_every_anchor_with_threads_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    anchors.main(["--json"])
    document = json.loads(capsys.readouterr().out)
    timed = [
        (name, anchor.model, anchor.ms)
        for name in profile_names()
        for anchor in DeviceProfile.load(name).anchors
        if anchor.threads is not None
    ]
    rows = document["anchors"]
    assert [(row["device"], row["model"], row["anchor_ms"]) for row in rows] == timed
    for row in rows:
        assert row["ratio"] == pytest.approx(row["modelled_ms"] / row["anchor_ms"])
        assert row["within"] == (0.5 <= row["ratio"] <= 2)
    assert document["within"] == sum(row["within"] for row in rows)
    anchors.main([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 2
    assert lines[-1].startswith(f"milliseconds; {document['within']} of {len(rows)} within")
