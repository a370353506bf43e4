"""The study of many clients: what it compares, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedvtc_edge.benchmarks.studies import scale


def test_both_sides_have_as_many_images_each_and_one_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def run(config: dict[str, dict[str, object]]) -> dict[str, float]:
        asked.append(config)
        with np.load(str(config["data"]["name"])) as arrays:
            images = len(arrays["x_train"])
        clients = config["clients"]
        assert images == scale.PER_CLIENT * int(str(clients["count"]))
        assert float(str(clients["cohort"])) * int(str(clients["count"])) == pytest.approx(2)
        figure = float(images + len(asked))
        return {"cpu_s": figure, "rounds_s": figure, "peak_mb": figure, "accuracy_mean": 0.5}

    monkeypatch.setattr(scale, "_run", run)
    words = ["--methods", "local", "--few", "4", "--many", "8", "--cohort", "2", "--repeats", "2"]
    scale.STUDY.main([*words, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert [config["clients"]["count"] for config in asked] == [4, 8, 8, 4]
    (one,) = document["methods"]
    assert one["few"]["cpu_s"] == 24 + 1
    assert one["cpu_ratio"] == one["memory_ratio"] == (48 + 2) / (24 + 1)
    scale.STUDY.main(words)
    assert "local: CPU × " in capsys.readouterr().out


def test_the_digits_are_the_digits_with_noise(tmp_path: Path) -> None:
    with np.load(scale.write_digits(tmp_path / "some.npz", 50)) as arrays:
        assert arrays["x_train"].shape == (50, 8, 8, 1)
        assert arrays["x_train"].dtype == np.uint8
        assert len(np.unique(arrays["y_train"])) > 5
        assert len(arrays["x_test"]) == 500
