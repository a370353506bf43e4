"""Calibration measures what it says, leaves out what it cannot know, and writes a profile."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fedvtc_edge.commands.devices import command
from fedvtc_edge.devices import DeviceProfile, calibration
from fedvtc_edge.errors import ConfigError, FedVTCError

MEASURED = {
    "cores",
    "memory_total_mb",
    "memory_usable_mb",
    "fp32_gflops",
    "efficiency",
    "memory_gbps",
    "node_overhead_us",
}


def quick(name: str, *, report: Any) -> DeviceProfile:
    """A profile of this machine, from a handful of runs."""
    return REAL(name, report=report, seconds=0.0)


REAL = calibration.calibrate


@pytest.fixture(scope="module")
def mine() -> tuple[DeviceProfile, list[str]]:
    said: list[str] = []
    return quick("my-box", report=said.append), said


def test_every_figure_is_measured_and_says_how(mine: tuple[DeviceProfile, list[str]]) -> None:
    profile, said = mine
    assert set(profile.figures) == MEASURED
    for figure in profile.figures.values():
        assert figure.kind == "measured"
        assert re.search(r"; onnxruntime \d+\.\d+\.\d+, 20\d\d-\d\d-\d\d$", figure.source)
    assert len(said) == 5
    assert said[0] == "product, 1 thread"


def test_what_a_machine_cannot_know_is_absent(mine: tuple[DeviceProfile, list[str]]) -> None:
    profile, _ = mine
    assert profile.network_up_mbps is profile.network_down_mbps is None
    assert profile.availability is profile.dropout is profile.deadline_s is None
    assert "add them" in profile.note
    assert "network_" not in profile.to_toml()


def test_it_fits_the_machine(mine: tuple[DeviceProfile, list[str]]) -> None:
    profile, _ = mine
    if hasattr(os, "sched_getaffinity"):
        assert profile.cores.value == len(os.sched_getaffinity(0))
    assert profile.efficiency is not None
    assert 0 < profile.efficiency.value <= 1
    assert profile.memory_usable_mb is not None
    assert profile.memory_usable_mb.value <= profile.memory_total_mb.value


def test_figures_follow_from_the_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core of 50 GFLOP/s, two together of 80, convolutions at 20, 5 GB/s, 2 µs a node."""
    product = 2 * calibration.SIDE**3
    seconds = {
        ("product", 1): product / 50e9,
        ("product", 2): product / 80e9,
        ("convolutions", 1): calibration.convolution_flops() / 20e9,
        ("traffic", 1): 12 * calibration.ELEMENTS / 5e9,
        ("calls", 1): calibration.CALLS * 2e-6,
    }
    monkeypatch.setattr(calibration, "available_cores", lambda: 2)
    monkeypatch.setattr(calibration, "_probe", lambda name, threads: (name, threads))
    monkeypatch.setattr(
        calibration,
        "measure",
        lambda key, clock, _: calibration.Timing(seconds[key], seconds[key], seconds[key], 9),
    )
    profile = REAL("my-box", report=lambda _: None)
    found = {key: figure.value for key, figure in profile.figures.items()}
    assert found["fp32_gflops"] == 100
    assert found["efficiency"] == 0.4
    assert found["memory_gbps"] == 5
    assert found["node_overhead_us"] == 2
    assert "2 × 50.0 on one thread and 80.0 on 2" in profile.figures["fp32_gflops"].source


def test_timing_leaves_the_warm_up_out() -> None:
    clock, runs = [0.0], [0]

    def run() -> None:
        runs[0] += 1
        clock[0] += 100.0 if runs[0] <= calibration._WARM_UP else float(runs[0])

    timing = calibration.measure(run, lambda: clock[0], 0.0)
    assert timing == (4, 6, 8, 5)  # the runs after three of warming up
    assert str(timing) == "5 runs, p90/p50 1.33"


def test_the_convolutions_are_counted_as_written_out() -> None:
    side, flops = calibration.IMAGE, 0
    for narrow, wide, stride in calibration.LAYERS:
        side = len(range(0, side, stride))
        flops += sum(2 * 9 * narrow * wide for _ in range(side * side))
    assert calibration.convolution_flops() == flops


def test_a_runtime_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(calibration.onnxruntime, "InferenceSession", stop)
    with pytest.raises(ConfigError, match=r"cannot run the probe product: no such$"):
        quick("my-box", report=lambda _: None)


def test_a_device_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys\n"
        "from fedvtc_edge.devices import calibration\n"
        "profile = calibration.calibrate('my-box', report=lambda _: None, seconds=0.0)\n"
        "assert not {'torch', 'onnx', 'tomli_w'} & set(sys.modules)\n"
        "print(profile.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "my-box\n"


# ---------------------------------------------------------------- the command


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, mine: tuple[DeviceProfile, list[str]]) -> Any:
    profile, _ = mine

    def remembered(name: str, *, report: Any) -> DeviceProfile:
        report("measuring")
        return profile.model_copy(update={"name": name})

    monkeypatch.setattr(calibration, "calibrate", remembered)

    def run(*words: str) -> Result:
        return CliRunner().invoke(command, ["calibrate", *words])

    return run


def test_it_writes_a_profile_that_can_be_given_as_a_device(call: Any, tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    answer = call("--out", str(out), "--name", "gateway-2")
    assert answer.exit_code == 0
    profile = DeviceProfile.load(str(out))
    assert profile.name == "gateway-2"
    assert set(profile.figures) == MEASURED
    assert f"written: {out}" in answer.stdout
    assert "measuring" in answer.stderr
    assert "not measured: network, availability, dropout, deadline" in answer.stderr


def test_without_a_file_the_profile_is_the_output(call: Any, tmp_path: Path) -> None:
    answer = call("--quiet")
    assert answer.stderr == ""
    path = tmp_path / "mine.toml"
    path.write_text(answer.stdout)
    assert DeviceProfile.load(path).name == "this-machine"


def test_json_is_one_document(call: Any, tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    document = json.loads(call("--json", "--out", str(out)).stdout)
    assert (document["schema"], document["file"]) == (1, str(out))
    assert document["fp32_gflops"]["kind"] == "measured"
    assert json.loads(call("--json").stdout)["file"] is None


def test_what_cannot_be_written_is_refused_before_the_time_is_spent(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured first")

    monkeypatch.setattr(calibration, "calibrate", never)
    (tmp_path / "mine.toml").write_text("precious")
    (tmp_path / "link.toml").symlink_to("nowhere")
    for name, message in (
        ("mine.toml", "exists and is not overwritten"),
        ("link.toml", "exists and is not overwritten"),
        ("mine.txt", "ending in .toml"),
        ("none/mine.toml", "is no folder that can be written to"),
    ):
        error = call("--out", str(tmp_path / name)).exception
        assert isinstance(error, FedVTCError)
        assert message in str(error)
        assert error.hint
    assert (tmp_path / "mine.toml").read_text() == "precious"


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", "x" * 64, "-a"])
def test_a_name_that_no_profile_can_have(name: str) -> None:
    with pytest.raises(ConfigError, match="small letters, digits and hyphens"):
        quick(name, report=lambda _: None)
