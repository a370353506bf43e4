"""The planner's benchmark: what it prints, and one real cell of each kind beside its plan."""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import pytest
import torch

from fedvtc_edge.benchmarks.studies import planner as benchmark
from fedvtc_edge.devices import baselines

AS_MEASURED = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or torch.version.cuda is None,
    reason="the recorded baseline is of another build of torch",
)


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Processes that all peak at 1000 MB, and at 600 before their work."""
    asked = []

    def peak(*words: Any) -> float:
        asked.append(words)
        return 600.0 if str(words[0]).endswith("baseline") else 1000.0

    monkeypatch.setattr(benchmark, "_peak", peak)
    monkeypatch.setattr(benchmark, "_export", lambda *_: None)
    return asked


def test_every_cell_is_measured_once(peaks: list[tuple[Any, ...]]) -> None:
    result = benchmark.measure(["mlp"], [2, 4], [(8, 1)], ["train", "infer"])
    assert [words[0] for words in peaks[:2]] == ["train-baseline", "infer-baseline"]
    assert [(words[0], *words[1:5]) for words in peaks[2:]] == [
        (what, "mlp", 8, 1, batch) for what in ("train", "infer") for batch in (2, 4)
    ]
    for row in result["cells"]:
        assert row["ratio"] == pytest.approx(row["planned_mb"] / 1000, abs=1e-3)
        base = baselines.torch_mb if row["what"] == "train" else baselines.onnxruntime_mb
        working = row["planned_mb"] - base("x86_64").value
        assert row["ratio_working"] == pytest.approx(working / 400, abs=1e-3)
    assert result["summary"]["train"]["ratio_least"] == min(
        row["ratio"] for row in result["cells"] if row["what"] == "train"
    )


def test_people_get_a_table_and_scripts_a_document(
    peaks: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--architecture", "mlp", "--batch", "2", "--size", "8", "--what", "train"]
    benchmark.STUDY.main([*words, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], len(document["cells"])) == (1, 1)
    benchmark.STUDY.main(words)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["train", "mlp", "8x1", "2"]
    assert lines[1].split()[5] == "1000.0"
    assert lines[2].startswith("train: planned is ")
    with pytest.raises(SystemExit):
        benchmark.STUDY.main(["--architecture", "mlpp"])


@pytest.mark.slow
@AS_MEASURED
def test_a_real_process_takes_no_more_than_planned_and_not_much_less() -> None:
    result = benchmark.measure(["mlp"], [8], [(8, 1)], ["train"])
    (row,) = result["cells"]
    assert row["ratio_working"] >= 1.0  # above what torch takes, whatever that is here
    here, recorded = result["baseline_mb"]["train"], baselines.torch_mb("x86_64").value
    if abs(here / recorded - 1) >= 0.1:  # a kernel that maps files in larger pieces, say
        pytest.skip(f"torch alone takes {here:.0f} MB on this machine, {recorded:.0f} as recorded")
    assert 1.0 <= row["ratio"] <= 1.5
