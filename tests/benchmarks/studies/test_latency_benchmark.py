"""The study of the model's error: each network is predicted by the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedvtc_edge.benchmarks.studies import latency as study
from fedvtc_edge.devices import DeviceProfile, profile_names


@pytest.mark.slow
def test_one_document_with_every_graph(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study.tempfile, "tempdir", str(tmp_path))
    words = "--architectures mlp --sizes 8 --batches 1,2 --repeats 2 --device rpi4 --json"
    study.STUDY.main(words.split())
    document = json.loads(capsys.readouterr().out)
    rows = document["graphs"]
    assert [row["name"] for row in rows] == [
        f"{network} 8px x{batch}"
        for network in ("mlp", "synthesizer", "anchor")
        for batch in (1, 2)
    ]
    for row in rows:
        assert row["measured_ms"] > 0
        assert row["ratio"] == pytest.approx(row["predicted_ms"] / row["measured_ms"])
        assert row["device_ratio"] == pytest.approx(row["device_ms"] / row["measured_ms"])
        assert row["within"] == (0.5 <= row["ratio"] <= 2)
        assert row["nodes"] > 0
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        assert two["mflop"] == pytest.approx(2 * one["mflop"], rel=0.01)
        assert two["nodes"] == one["nodes"]
    assert document["within"] == sum(row["within"] for row in rows)
    assert set(document["fitted"]) == {"gflops", "gbps", "overhead_us"}
    assert document["device"]["gbps"] == 2.2
    assert not list(tmp_path.rglob("*.onnx"))


def test_people_get_a_table() -> None:
    row = {
        "name": "mine 8px x1",
        "nodes": 9,
        "mflop": 1.5,
        "mbyte": 0.25,
        "measured_ms": 2.0,
        "predicted_ms": 3.0,
        "ratio": 1.5,
        "device_ratio": 0.75,
    }
    lines = list(
        study._lines(
            {
                "unit": "milliseconds",
                "repeats": 7,
                "onnxruntime": "1.32.0",
                "band": 2.0,
                "graphs": [row],
                "within": 1,
                "fitted": {"gflops": 70.0, "gbps": 17.0, "overhead_us": 0.9},
                "device": {"gflops": 50.0, "gbps": 20.0, "overhead_us": 1.0, "within": 1},
            }
        )
    )
    assert lines[0].endswith("of device")
    assert lines[1].split()[3:] == ["9", "1.50", "0.25", "2.000", "3.000", "1.50", "0.75"]
    assert "1 of 1 graphs within 0.5 to 2 of measured (100%)" in lines[3]
    assert lines[-2] == "modelled by the device's profile: 1 of 1 (100%)"
    assert lines[-1] == "the profile: 50.0 GFLOP/s, 20.0 GB/s, 1.00 us a node"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "9"], "9: expected a multiple of 4 from 8 to 64"),
        (["--sizes", "128"], "128: expected a multiple of 4"),
        (["--batches", "0"], "0: expected 1 or more"),
        (["--batches", "x"], "invalid"),
        (["--device", "rpi4", "--calibrate"], "not allowed with"),
        (["--anchors", "--calibrate"], "not allowed with"),
        (["--device", "rpi6"], "did you mean rpi5?"),
        (["--device", "stm32h7"], "cannot be modelled without"),
        (["--architectures", "lenett"], "unknown architecture 'lenett'"),
    ],
)
def test_slips_are_named(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        study.STUDY.main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "convolutions", "gflop"),
    [("mobilenet_v2_224", 52, 0.60), ("resnet18_224", 20, 3.63)],
)
def test_networks_are_those_of_the_papers(name: str, convolutions: int, gflop: float) -> None:
    nodes = study.networks()[name]
    assert sum(node.operator == "Conv" for node in nodes) == convolutions
    assert sum(node.flops for node in nodes) / 1e9 == pytest.approx(gflop, rel=0.01)


def test_every_anchor_with_threads_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    study.STUDY.main(["--anchors", "--json"])
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
    study.STUDY.main(["--anchors"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 2
    assert lines[-1].startswith(f"milliseconds; {document['within']} of {len(rows)} within")
