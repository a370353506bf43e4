"""The bundles' benchmark: the sides it compares compute the same, and its document is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.benchmarks.studies import bundles as benchmark
from fedvtc_edge.benchmarks.studies import runner


@pytest.mark.slow
def test_one_document_with_all_that_was_measured(
    tiny_run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported / "client-01", tmp_path / "client-01")
    benchmark.STUDY.main([str(tiny_run), str(tmp_path), "--json", "--repeats", "2"])
    document = json.loads(capsys.readouterr().out)
    (row,) = document["clients"]  # only the client that was exported
    assert (row["client"], row["architecture"]) == ("client-01", "lenet")
    assert document["batch"] == document["threads"] == 1
    for part in ("classifier", "synthesizer"):
        for side in ("torch", "onnxruntime", "bundle", "int8"):
            assert row[part][f"{side}_us"] > 0
            if side != "torch":
                ratio = row[part][f"{side}_us"] / row[part]["torch_us"]
                assert row[part][f"{side}_ratio"] == pytest.approx(ratio, rel=0.05)
    memory = document["memory"]
    # Whole processes: an interpreter with NumPy alone has more than 15 MB.
    assert 15 < memory["device_session_mb"] < memory["import_torch_mb"]
    assert 0 < document["help_cpu_s"] < 60


def test_the_warm_up_is_left_out_and_figures_are_microseconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, turns = [0.0], list[str]()

    def step(name: str, cost: float) -> Any:
        def work() -> None:
            turns.append(name)
            clock[0] += 1.0 if turns.count(name) <= benchmark._WARM_UP else cost

        return work

    monkeypatch.setattr(runner.time, "thread_time", lambda: clock[0])
    row = benchmark._compare({"torch": step("torch", 4e-6), "onnxruntime": step("ort", 1e-6)}, 3)
    assert row == {"torch_us": 4.0, "onnxruntime_us": 1.0, "onnxruntime_ratio": 0.25}
    assert len(turns) == 2 * (3 + benchmark._WARM_UP)


def test_people_get_a_table() -> None:
    figures = {"torch_us": 10.0, "onnxruntime_us": 2.5, "bundle_us": 3.0, "onnxruntime_ratio": 0.25}
    lines = list(
        benchmark._lines(
            {
                "clients": [{"client": "client-00", "architecture": "mine", "classifier": figures}],
                "unit": "microseconds",
                "repeats": 7,
                "memory": {"device_session_mb": 60.0, "import_torch_mb": 500.0, "ratio": 0.12},
                "help_cpu_s": 0.1,
            }
        )
    )
    assert lines[1].split() == [
        "client-00",
        "classifier",
        "(mine)",
        "10.0",
        "2.5",
        "3.0",
        "-",
        "0.250",
    ]
    assert "60.0 MB" in lines[3]
    assert lines[-1] == "fedvtc-edge --help: 0.1 s of CPU"


def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmark.STUDY.main([str(tmp_path), str(tmp_path)])
    assert caught.value.code == 2
    assert "holds no run" in capsys.readouterr().err
