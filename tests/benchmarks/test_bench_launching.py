"""How a measured process's end is judged, and what the launcher is told."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedvtc_edge.benchmarks.bench import launching, limits
from fedvtc_edge.benchmarks.bench.child import (
    LEVELS,
    MAX_REPLY_BYTES,
    BenchTiming,
    MeasurementReply,
    MeasurementRequest,
)
from fedvtc_edge.benchmarks.bench.launching import judge, start
from fedvtc_edge.benchmarks.bench.limits import Enforcement
from fedvtc_edge.errors import ConfigError

ANSWER = MeasurementReply(status="ok", peak_mb=61.5, file_mb=40.0)
FREE = Enforcement(parent=None)


def said(reason: str) -> bytes:
    return replace(ANSWER, status="failed", reason=reason).to_bytes()


@pytest.mark.parametrize(
    ("code", "out", "err", "verdict", "reason"),
    [
        (0, ANSWER.to_bytes() + b"\n", "a warning", "ok", ""),
        (-signal.SIGKILL, b"", "", "oom", "killed by the kernel"),
        (-signal.SIGSEGV, b"", "", "crash", "ended by SIGSEGV"),
        (-signal.SIGABRT, b"", "terminate called: std::bad_alloc", "oom", "SIGABRT: terminate"),
        (-99, b"", "", "crash", "ended by signal 99"),
        (1, b"", "MemoryError", "oom", "exit code 1: MemoryError"),
        (1, b"", "ImportError: no such thing", "crash", "exit code 1: ImportError"),
        (0, b"", "", "crash", "no reply"),
        (0, b"{not json", "", "crash", "no reply"),
        (0, b"\xff\xfe\x00", "", "crash", "no reply"),
        (0, b'{"status": "ok"}', "", "crash", "no reply"),
        (0, b'{"status": "ok", "peak_mb": -1, "file_mb": 1}', "", "crash", "no reply"),
        (0, b'{"status": "ok", "peak_mb": 1, "file_mb": 1, "x": 1}', "", "crash", "no reply"),
        (0, b'{"status": "ok", "peak_mb": NaN, "file_mb": 1}', "", "crash", "no reply"),
        (0, b"[" * (MAX_REPLY_BYTES + 1), "", "crash", "more than"),
        (0, said("onnxruntime 1 cannot run x: Failed to allocate memory"), "", "oom", "onnx"),
        (0, said("MemoryError"), "", "oom", "MemoryError"),
        (0, said("x.onnx: SHA-256 1, expected 2"), "", "crash", "x.onnx"),
    ],
)
def test_every_end_has_its_verdict(
    code: int, out: bytes, err: str, verdict: str, reason: str
) -> None:
    outcome = judge(code, out, err)
    assert outcome.verdict == verdict
    assert reason in outcome.reason
    assert "\n" not in outcome.reason


def test_percentiles_are_those_that_were_sent() -> None:
    wall = tuple(float(level) for level in LEVELS)
    timing = BenchTiming(load_ms=1, first_ms=1, wall_ms=wall, cpu_ms=1, samples=5)
    assert [timing.percentile(level) for level in (50, 90, 99)] == [50, 90, 99]


def test_no_limit_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "limited", None)  # a call would fail
    with Enforcement(limits.GroupParent(Path("/nowhere"), 2)).settings(None, None) as settings:
        assert json.loads(settings) == {"group": None, "data": None, "cpus": None}


def test_without_a_home_the_limit_is_rlimit_data() -> None:
    with FREE.settings(2.0, 1) as settings:
        told = json.loads(settings)
    assert told == {"group": None, "data": 2 << 20, "cpus": [min(os.sched_getaffinity(0))]}
    assert FREE.name == "RLIMIT_DATA"


def test_never_more_processors_than_there_are() -> None:
    with FREE.settings(None, 4096) as settings:
        assert json.loads(settings)["cpus"] == sorted(os.sched_getaffinity(0))


def test_a_group_can_be_insisted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "find_parent", lambda: None)
    assert Enforcement.find("auto").parent is None
    with pytest.raises(ConfigError, match="no control group") as caught:
        Enforcement.find("cgroup")
    assert "rlimit" in caught.value.hint
    monkeypatch.setattr(limits, "find_parent", lambda: limits.GroupParent(Path("/a"), 2))
    assert Enforcement.find("rlimit").parent is None
    assert Enforcement.find("cgroup").name == "cgroup v2"


def test_the_launcher_limits_what_it_becomes() -> None:
    settings = {"group": None, "data": 512 << 20, "cpus": [min(os.sched_getaffinity(0))]}
    # Another program in the child's place says what it got.
    program = f"""
import sys
from fedvtc_edge.benchmarks.bench import limits as launch
launch.CHILD = "site"
launch.os.execv = lambda path, words: print(
    launch.resource.getrlimit(launch.resource.RLIMIT_DATA)[0],
    launch.resource.getrlimit(launch.resource.RLIMIT_CORE)[0],
    len(launch.os.sched_getaffinity(0)),
    open("/proc/self/oom_score_adj").read().strip(),
    words[1:],
)
launch.main({json.dumps(settings)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == [str(512 << 20), "0", "1", "1000", "['-m',", "'site']"]


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launching, "LAUNCHER", "hangs")
    outcome = start(MeasurementRequest(bundle="x"), FREE, timeout=0.3)
    assert outcome.verdict == "timeout"
    assert "0.3 s" in outcome.reason


def test_a_flood_and_a_crash_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launching, "LAUNCHER", "odd")
    (tmp_path / "odd.py").write_text("print('x' * 300_000)")
    assert start(MeasurementRequest(bundle="x"), FREE, timeout=60).verdict == "crash"
    (tmp_path / "odd.py").write_text("raise ValueError('first\\x1b[2J\\nsecond \\x07line')")
    outcome = start(MeasurementRequest(bundle="x"), FREE, timeout=60)
    assert (outcome.verdict, outcome.reason) == ("crash", "exit code 1: second ?line")
    (tmp_path / "odd.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        assert start(MeasurementRequest(bundle="x"), FREE, timeout=60).reason == "ended by SIGSEGV"
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
