"""``fedvtc-edge bench`` as its user meets it; nothing is measured here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedvtc_edge.benchmarks.bench.measuring
from fedvtc_edge.benchmarks.bench.child import LEVELS
from fedvtc_edge.benchmarks.bench.rows import BenchRow

Call = Callable[..., Any]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks for; a document made by hand comes back."""
    given: dict[str, Any] = {}

    def fake(bundles: Any, devices: Any, **options: Any) -> dict[str, Any]:
        given.update(options, bundles=bundles, devices=devices)
        row = BenchRow(
            "classifier", "fp32", "host", "measured", 1, client="client-00", verdict="noisy"
        )
        limited = BenchRow(
            "classifier", "fp32", "rpi4", "enforced", 1, client="client-00", fits=True
        )
        return {
            "schema": 1,
            "preset": options["preset"],
            "seed": 0,
            "threads": 1,
            "quantile_levels": list(LEVELS),
            "enforced_by": "RLIMIT_DATA",
            "baseline_mb": None,
            "host": {
                "cpu": "a CPU",
                "arch": "x86_64",
                "cores": 2,
                "memory_mb": 4000,
                "onnxruntime": "1.32",
                "fedvtc-edge": "0.1.0",
                "load_average": 0.5,
            },
            "devices": [
                {
                    "name": device.name,
                    "title": device.title,
                    "arch": device.arch,
                    "runtime": device.runtime,
                    "cores": 4,
                    "limit_mb": 1600.0,
                    "limit_is": "usable memory",
                }
                for device in devices
            ],
            "bundles": [{"client": "client-00", "architecture": "mlp", "signed_by": None}],
            "model_check": None,
            "rows": [row.as_document(), limited.as_document()],
        }

    monkeypatch.setattr(fedvtc_edge.benchmarks.bench.measuring, "bench", fake)
    return given


def test_a_table_per_device(call: Call, asked: dict[str, Any]) -> None:
    answer = call("bench", "b", "c", "--device", "rpi4", "--device", "stm32h7", "--quiet")
    assert answer.code == 0
    assert "measured on this host, no limit (a CPU" in answer.out
    assert "rpi4: 1600 MB (usable memory) enforced here, on 2 cores where it has 4" in answer.out
    assert "stm32h7: no onnxruntime for it" in answer.out
    assert "fewer than five networks: too few to check the latency model here" in answer.out
    assert "noisy: p90" in answer.out
    assert asked["bundles"] == (Path("b"), Path("c"))
    assert (asked["preset"], asked["threads"], asked["batches"]) == ("quick", 1, ())


def test_all_devices_once_each(call: Call, asked: dict[str, Any]) -> None:
    assert call("bench", "b", "--device", "rpi4", "--device", "all", "--json").code == 0
    names = [profile.name for profile in asked["devices"]]
    assert names[0] == "rpi4"
    assert len(names) == len(set(names)) >= 8


def test_json_and_nothing_else(call: Call, asked: dict[str, Any], strict_json: Any) -> None:
    answer = call(
        "bench", "b", "--json", "--quiet", "--batch", "1,8", "--preset", "mlperf", "--out", "o"
    )
    document = strict_json(answer.out)
    assert document["preset"] == "mlperf"
    assert asked["batches"] == (1, 8)
    assert json.loads(Path("o/bench.json").read_text()) == document
    assert "<svg" not in Path("o/report.html").read_text("utf-8")  # no figure to draw


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("--device", "rpi5x"), "unknown device 'rpi5x'", "did you mean rpi5?"),
        (("--batch", "0"), "expected each from 1", ""),
        (("--batch", "many"), "expected numbers such as 1,8,32", ""),
        (("--preset", "slow"), "slow", ""),
        (("--graph", "decoder"), "decoder", ""),
        ((), "nowhere: no such folder", "give a folder that export wrote"),
    ],
)
def test_wrong_words_are_exit_2(call: Call, words: Any, message: str, hint: str) -> None:
    call("bench", "nowhere", *words).refuses(message, hint)


def test_an_out_that_is_a_file_is_found_out_first(
    call: Call, asked: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    call("bench", "b", "--out", "file").refuses("file is not a folder", "another --out")
    call("bench", "b", "--out", "file/inside").refuses("is not a folder", "another --out")
    assert asked == {}


def test_no_bundle_is_exit_1(call: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    call("bench", "empty").refuses("manifest.json is missing", code=1)
