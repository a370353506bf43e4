"""Rows: keys that are a promise, and figures that are never mixed up."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from fedvtc_edge.benchmarks.bench.child import LEVELS, BenchTiming, MeasurementReply
from fedvtc_edge.benchmarks.bench.launching import Outcome
from fedvtc_edge.benchmarks.bench.rows import KEYS, BenchRow, filled

PROMISED = (
    *("model", "variant", "device", "kind", "batch", "wall_ms_p50", "wall_ms_p90", "wall_ms_p99"),
    *("cpu_ms", "load_ms", "first_ms", "peak_mb", "fits", "min_memory_mb", "size_bytes"),
    *("parity_max_rel", "argmax_agreement", "verdict"),
)

ROW = BenchRow("classifier", "fp32", "host", "measured", 1)


def outcome(p50: float, p90: float) -> Outcome:
    wall = tuple(p50 if level <= 50 else p90 for level in LEVELS)
    timing = BenchTiming(load_ms=2, first_ms=3, wall_ms=wall, cpu_ms=1 / 3, samples=7)
    return Outcome("ok", reply=MeasurementReply(status="ok", peak_mb=70, file_mb=40, timing=timing))


def test_the_promised_keys_come_first() -> None:
    assert KEYS[: len(PROMISED)] == PROMISED
    assert list(ROW.as_document()) == list(KEYS)


@pytest.mark.parametrize(("p90", "verdict"), [(1.0, "ok"), (3.0, "ok"), (3.1, "noisy")])
def test_a_long_tail_is_called_noisy(p90: float, verdict: str) -> None:
    assert filled(ROW, outcome(1.0, p90)).verdict == verdict


def test_a_failure_leaves_figures_out() -> None:
    row = filled(replace(ROW, limit_mb=5.0), Outcome("oom", "killed"))
    assert (row.verdict, row.note, row.wall_ms_p50, row.peak_mb) == ("oom", "killed", None, None)
    assert row.limit_mb == 5.0


def test_figures_have_four_digits_and_counts_all_theirs() -> None:
    row = replace(filled(ROW, outcome(1.23456, 2.0)), size_bytes=1234567, accuracy=0.87654321)
    document: dict[str, Any] = json.loads(json.dumps(row.as_document(), allow_nan=False))
    assert document["wall_ms_p50"] == 1.235
    assert document["cpu_ms"] == 0.3333
    assert (document["size_bytes"], document["accuracy"]) == (1234567, 0.87654321)
    assert document["quantiles_ms"][0] == 1.235
    assert len(document["quantiles_ms"]) == len(LEVELS)
