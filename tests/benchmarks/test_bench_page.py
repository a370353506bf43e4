"""The page of a bench, from a document made by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.benchmarks.bench import wording
from fedvtc_edge.benchmarks.bench.child import LEVELS
from fedvtc_edge.benchmarks.bench.page import front, save
from fedvtc_edge.benchmarks.bench.rows import BenchRow

DEVICE = {
    "name": "rpi4",
    "title": "A <b>board</b>",
    "arch": "aarch64",
    "runtime": "onnxruntime",
    "cores": 4,
    "limit_mb": 1600.0,
    "limit_is": "usable memory",
}
HOST = {
    "cpu": "a CPU",
    "arch": "x86_64",
    "cores": 2,
    "memory_mb": 4000,
    "onnxruntime": "1.32",
    "fedvtc-edge": "0.1.0",
    "load_average": 0.5,
}


def rows() -> list[BenchRow]:
    times = tuple(0.01 * (1 + level) for level in LEVELS)
    measured = BenchRow(
        "classifier", "fp32", "host", "measured", 1,
        wall_ms_p50=0.5, wall_ms_p90=0.6, wall_ms_p99=1.0, cpu_ms=0.5, load_ms=9, first_ms=1,
        peak_mb=77.7, min_memory_mb=36.2, size_bytes=58_000, parity_max_rel=1e-6,
        argmax_agreement=1.0, verdict="ok", client="client-<00>", architecture="mlp", file_mb=42,
        samples=600, accuracy=0.88, quantiles_ms=times,
    )  # fmt: skip
    lost = BenchRow(
        "synthesizer", "int8", "host", "measured", 32, verdict="crash", note="it <fell>"
    )
    enforced = replace(measured, device="rpi4", kind="enforced", fits=True, limit_mb=1600)
    over = replace(
        enforced, batch=32, fits=False, verdict="oom", wall_ms_p50=None, quantiles_ms=None
    )
    blank = BenchRow("classifier", "fp32", "rpi4", "modelled", 1, client="client-<00>")
    told = replace(blank, wall_ms_p50=7.0, low_ms=3.5, high_ms=14.0, verdict="modelled")
    unknown = replace(blank, batch=32, verdict="not modelled", note="no figures")
    return [measured, replace(measured, batch=32), lost, enforced, told, over, unknown]


def document(**changes: Any) -> dict[str, Any]:
    made = {
        "schema": 1,
        "preset": "quick",
        "seed": 0,
        "threads": 1,
        "quantile_levels": list(LEVELS),
        "enforced_by": "cgroup v2",
        "baseline_mb": 32.3,
        "host": HOST,
        "devices": [DEVICE, DEVICE | {"name": "m7", "runtime": "none", "limit_mb": 0.5}],
        "bundles": [{"client": "client-<00>", "architecture": "mlp", "signed_by": None}],
        "model_check": {
            "band": 2.0,
            "graphs": 11,
            "within": 10,
            "held": [{"name": "g", "measured_ms": 1.0, "predicted_ms": 1.5, "ratio": 1.5}],
        },
        "rows": [row.as_document() for row in rows()],
    }
    return made | changes


def test_the_page_says_what_is_what_and_loads_nothing(tmp_path: Path) -> None:
    page = save(document(), tmp_path)
    html = page.read_text("utf-8")
    assert page.name == "report.html"
    assert "10 of 11 graphs within 0.5 to 2 times measured" in html
    assert "~7.00 (3.50 to 14.0)" in html
    assert "p50 ms on the device (modelled)" in html
    assert "p50 ms on this host (enforced)" in html
    assert "no onnxruntime for it" in html
    assert "client-&lt;00&gt;" in html
    assert "it &lt;fell&gt;" in html
    assert not re.search(r"<fell>|<b>|<00>|<script|src=|https?://", html)
    assert html.count("<svg") == 3
    assert html.count("does not fit") == 1
    assert json.loads((tmp_path / "bench.json").read_text()) == document()


def test_the_same_document_gives_the_same_bytes(tmp_path: Path) -> None:
    first = save(document(), tmp_path).read_bytes()
    assert save(document(), tmp_path).read_bytes() == first


def test_a_bench_in_which_all_failed_still_has_its_page(tmp_path: Path) -> None:
    lost = [row.as_document() for row in rows() if row.verdict == "crash"]
    made = document(rows=lost, devices=[], model_check=None, baseline_mb=None)
    html = save(made, tmp_path).read_text("utf-8")
    assert "<svg" not in html
    assert "too few to check the latency model" in html


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_a_front_holds_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    """Slow twin: a point is on it unless another is at least as good in both, better in one."""

    def beaten(point: tuple[int, int]) -> bool:
        x, y = point
        return any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)

    assert front(points) == sorted({point for point in points if not beaten(point)})


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0397, "0.0397"), (1.084, "1.08"), (327.4, "327"), (0.00012, "0.00012")],
)
def test_times_have_three_digits(value: float | None, text: str) -> None:
    assert wording.milliseconds(value) == text


def test_each_enforced_row_stands_beside_its_model() -> None:
    pairs = wording.device_rows(document(), "rpi4")
    assert [(row["batch"], model and model["verdict"]) for row, model in pairs] == [
        (1, "modelled"),
        (32, "not modelled"),
    ]
