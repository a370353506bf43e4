"""The price of privacy: every ε and none, on the same seeds, in a document and a picture."""

from __future__ import annotations

import json
import xml.dom.minidom
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.benchmarks.studies import privacy as benchmark
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.progress import SilentProgress


def test_every_budget_and_none_with_the_same_seeds(tiny: Any) -> None:
    config = tiny(method={"rounds": 1}, privacy={"population": 200})
    document = benchmark.measure(config, [8.0, 2.0], [0, 1], SilentProgress())
    assert [row["epsilon"] for row in document["rows"]] == [2.0, 8.0, None]
    assert (document["seeds"], document["clients"]) == ([0, 1], 3)
    for row in document["rows"]:
        for name in benchmark.FIGURES:
            first, second = row[name]["per_seed"]
            assert row[name]["mean"] == pytest.approx((first + second) / 2)
            assert 0 <= first <= 1
    alone = [row["local-only"]["per_seed"] for row in document["rows"]]
    assert alone[0] == alone[1] == alone[2]  # privacy changes nothing of who trains alone


@pytest.mark.parametrize("mode", ["anchored", "client"])
def test_the_release_alone_is_what_a_run_reads(
    mode: str, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without noise the control of a full run is the same to the image; no one is trained."""
    config = tiny(method={"rounds": 1}, privacy={"mode": mode, "population": 200, "delta": 1e-4})
    document = benchmark.measure(config, [8.0], [0], SilentProgress(), release_only=True)
    assert document["mode"] == mode
    assert [set(row) for row in document["rows"]] == [{"epsilon", "control"}] * 2
    plain = benchmark.fedvtc_edge.run(config.replace(privacy={"mode": "none"})).summary
    assert document["rows"][1]["control"]["per_seed"] == [plain["accuracy_control"]]
    assert "per client" in benchmark.plot(document) or mode == "anchored"


def test_no_release_no_figure(tiny: Any) -> None:
    config = tiny(method={"share": "features"})
    with pytest.raises(ConfigError, match="without an anchor"):
        benchmark.measure(config, [8.0], [0], SilentProgress(), release_only=True)


def test_the_picture_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = {"mean": 0.5, "per_seed": [0.4, 0.6]}
    rows = [{"epsilon": e, **dict.fromkeys(benchmark.FIGURES, figure)} for e in (1.0, None)]
    document = {"schema": 1, "mode": "anchored", "delta": 1e-5, "rows": rows}
    monkeypatch.setattr(benchmark, "measure", lambda *_, **__: document)
    benchmark.STUDY.main(["--out", str(tmp_path / "new"), "--quiet"])
    assert json.loads((tmp_path / "new" / "privacy.json").read_text()) == document
    drawn = xml.dom.minidom.parse(str(tmp_path / "new" / "privacy.svg"))
    assert drawn.documentElement.tagName == "svg"
    words = (tmp_path / "new" / "privacy.svg").read_text()
    assert "no privacy" in words
    assert "δ = 1e-05" in words
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("epsilon 1.0: combined 50.0 %, own model 50.0 %")


@pytest.mark.parametrize(
    "words", [["--epsilons", "0"], ["--epsilons", "x"], ["--seeds", "-1"], ["--set", "a.b=1"]]
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmark.STUDY.main([*words, "--out", str(tmp_path / "new")])
    assert caught.value.code == 2
    assert not (tmp_path / "new").exists()
