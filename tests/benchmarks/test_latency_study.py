"""The study of the model's error: each network is predicted by the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.benchmarks.latency import __main__ as study


@pytest.mark.slow
def test_one_document_with_every_graph(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study.tempfile, "tempdir", str(tmp_path))
    words = "--architectures mlp --sizes 8 --batches 1,2 --repeats 2 --device rpi4 --json"
    study.main(words.split())
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


def test_graphs_take_turns_and_the_warm_up_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, turns = [0.0], []

    def session(name: str, cost: float) -> Any:
        def work(_: object) -> None:
            turns.append(name)
            clock[0] += cost if len(turns) % (study._WARM_UP + 1) == 0 else 1.0

        return work

    monkeypatch.setattr(study.time, "thread_time", lambda: clock[0])
    steps: Any = {"a": (session("a", 0.25), {}), "b": (session("b", 0.5), {})}
    assert study._medians(steps, 3) == {"a": 250.0, "b": 500.0}
    assert turns == (["a"] * 5 + ["b"] * 5) * 3


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
    lines = study._lines(
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
        (["--device", "rpi6"], "did you mean rpi5?"),
        (["--device", "stm32h7"], "cannot be modelled without"),
        (["--architectures", "lenett"], "unknown architecture 'lenett'"),
    ],
)
def test_slips_are_named(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        study.main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
