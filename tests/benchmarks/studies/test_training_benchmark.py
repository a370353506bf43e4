"""The benchmark of the clock: phases are measured, and predicted by other architectures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedvtc_edge.benchmarks.studies import training
from fedvtc_edge.devices import DeviceProfile


@pytest.mark.slow
def test_phases_are_predicted_by_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pi = DeviceProfile.load("rpi5")
    (tmp_path / "mine.toml").write_text(pi.to_toml())
    names = "mlp,lenet,resnet8"  # three at least: each is predicted by the others
    given = ["--architectures", names, "--repeats", "1", "--device", str(tmp_path / "mine.toml")]
    training.STUDY.main([*given, "--json"])
    document = json.loads(capsys.readouterr().out)
    rows = document["phases"]
    assert [row["name"].split()[0] for row in rows] == [
        n for n in names.split(",") for _ in "abcde"
    ]
    for row in rows:
        assert row["measured_ms"] > 0
        assert row["ratio"] == pytest.approx(row["predicted_ms"] / row["measured_ms"])
        assert row["within"] == (0.5 <= row["ratio"] <= 2)
        assert row["device_ratio"] > 0
    assert document["within"] == sum(row["within"] for row in rows)
    assert 0 < document["torch_overhead_us"] < 10_000


def test_unknown_architectures_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        training.STUDY.main(["--architectures", "lenat,mlp"])
    assert caught.value.code == 2
    assert "did you mean lenet?" in capsys.readouterr().err
