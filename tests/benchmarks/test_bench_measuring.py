"""Real processes under real limits, on a bundle made by hand: one layer that can grow hungry."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fedvtc_edge.benchmarks.bench import child, limits, measuring
from fedvtc_edge.benchmarks.bench.child import (
    LEVELS,
    BenchTiming,
    MeasurementReply,
    MeasurementRequest,
)
from fedvtc_edge.benchmarks.bench.launching import Outcome, start
from fedvtc_edge.benchmarks.bench.limits import Enforcement
from fedvtc_edge.benchmarks.bench.rows import BenchSubject, subjects
from fedvtc_edge.devices import DeviceProfile
from fedvtc_edge.errors import BundleError, ConfigError, MissingExtra, VerificationError
from fedvtc_edge.export.manifest import Image, Manifest, ports
from fedvtc_edge.export.verification import verify

WIDE = 4096
"""Width of the hidden layer: 16 kB of a sample's memory, twice."""


def model(bias: float = 0.0) -> bytes:
    rng = np.random.default_rng(0)
    weights = {
        "first": rng.standard_normal((64, WIDE)).astype(np.float32),
        "second": rng.standard_normal((WIDE, 3)).astype(np.float32) + np.float32(bias),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["real"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def write(folder: Path, files: dict[str, bytes], client: str = "client-00") -> Path:
    image = Image(
        size=8, channels=1, colour="grey", resize="bilinear, antialiased, stretched to the square"
    )
    inputs, outputs = ports("classifier", image, classes=3, latent=2, anchor=None)
    names = {"fp32": "classifier.onnx", "int8": "classifier.int8.onnx"}
    manifest = {
        "schema": 1,
        "kind": "fedvtc-edge bundle",
        "client": client,
        "architecture": "mlp",
        "run": "5a" * 32,
        "source": {},
        "method": "local",
        "share": None,
        "classes": ["a", "b", "c"],
        "latent": 2,
        "image": image.document(),
        "noise": None,
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in files.items()
        },
        "graphs": {
            "classifier": {
                "variants": {kind: file for kind, file in names.items() if file in files},
                "opset": 17,
                "ir": 8,
                "inputs": {key: port.document() for key, port in inputs.items()},
                "outputs": {key: port.document() for key, port in outputs.items()},
            }
        },
        "privacy": {"mode": "none", "epsilon": None, "delta": None, "unit": None},
        "accuracy": {"images": 60, "classifier": 0.5, "classifier_int8": 0.4},
        "parity": {
            "classifier": {
                "random": {"max_relative_error": 4e-07, "argmax_agreement": 1.0},
                "evaluation": {"max_relative_error": 6e-07, "argmax_agreement": 0.99},
            }
        },
        "int8": {"classifier": {"agreement": 0.9}},
        "tools": {},
    }
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_bytes(Manifest.read(manifest).to_bytes())
    return folder


@pytest.fixture(scope="module")
def hungry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {"classifier.onnx": model(), "classifier.int8.onnx": model(0.5)}
    return write(tmp_path_factory.mktemp("bench") / "hungry", files)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Verifies, and cannot be loaded."""
    files = {"classifier.onnx": b"no graph"}
    return write(tmp_path_factory.mktemp("bench") / "broken", files, client="client-01")


@pytest.fixture
def device(tmp_path: Path) -> Callable[..., DeviceProfile]:
    def load(name: str, megabytes: float, **more: float) -> DeviceProfile:
        figures = {"cores": 1, "memory_total_mb": megabytes, **more}
        lines = [
            f'{key} = {{ value = {value}, kind = "assumed", source = "a test" }}'
            for key, value in figures.items()
        ]
        head = [f'name = "{name}"', 'title = "a test"', 'arch = "any"', 'runtime = "onnxruntime"']
        path = tmp_path / f"{name}.toml"
        path.write_text("\n".join([*head, *lines]))
        return DeviceProfile.load(path)

    return load


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bisect to 32 MB and time three inferences: fewer processes, and short ones."""
    monkeypatch.setattr(measuring, "_RESOLUTION_MB", 32.0)
    short = replace(measuring.PRESETS["quick"], samples=3, seconds=0.0, warm_up=0)
    monkeypatch.setitem(measuring.PRESETS, "quick", short)


def job(folder: Path, **changes: Any) -> MeasurementRequest:
    (subject,) = subjects([verify(folder)], [1], variants=["fp32"])
    asked = {"bundle": str(folder), "graph": "classifier", "sha256": subject.sha256, **changes}
    return MeasurementRequest.read(asked)


def mine(document: dict[str, Any], **keys: Any) -> dict[str, Any]:
    (row,) = [row for row in document["rows"] if all(row[key] == keys[key] for key in keys)]
    found: dict[str, Any] = row
    return found


# ---------------------------------------------------------------- the whole way


@pytest.mark.slow
@pytest.mark.parametrize("enforce", ["cgroup", "rlimit"])
def test_three_kinds_of_row_and_none_is_mixed_up(
    enforce: Any, hungry: Path, broken: Path, device: Callable[..., DeviceProfile], coarse: None
) -> None:
    if enforce == "cgroup" and limits.find_parent() is None:
        pytest.skip("no control group can be made here: not root, or mounted read-only")
    devices = [
        device("roomy", 1000, fp32_gflops=8, efficiency=0.5, memory_gbps=2, node_overhead_us=40),
        device("tight", 120),
        device("tiny", 12),
        DeviceProfile.load("stm32h7"),
    ]
    document = measuring.bench(
        [hungry, broken], devices, batches=[4096, 1], variants=["fp32"], enforce=enforce
    )
    assert len(document["rows"]) == 2 * 2 * (1 + 2 * len(devices))
    name = "RLIMIT_DATA" if enforce == "rlimit" else "cgroup v"
    assert document["enforced_by"].startswith(name)

    small = mine(document, client="client-00", batch=1, kind="measured")
    large = mine(document, client="client-00", batch=4096, kind="measured")
    assert {small["verdict"], large["verdict"]} <= {"ok", "noisy"}
    assert small["fits"] is None
    assert small["limit_mb"] is None
    assert (small["device"], small["size_bytes"]) == ("host", len(model()))
    assert (small["parity_max_rel"], small["argmax_agreement"]) == (6e-07, 0.99)
    assert small["wall_ms_p50"] <= small["wall_ms_p90"] <= small["wall_ms_p99"]
    assert 0 < small["file_mb"] < small["peak_mb"] < 200
    # 4096 samples of a hidden layer of 16 kB.
    assert large["peak_mb"] > small["peak_mb"] + 60
    assert large["min_memory_mb"] > small["min_memory_mb"] + 40
    assert 15 < document["baseline_mb"] <= small["min_memory_mb"] + 32

    fits = mine(document, client="client-00", batch=1, kind="enforced", device="roomy")
    assert fits["fits"] is True
    assert (fits["limit_mb"], fits["enforced_by"]) == (1000, document["enforced_by"])
    assert fits["min_memory_mb"] == small["min_memory_mb"]
    assert fits["peak_mb"] > 0
    oom = mine(document, client="client-00", batch=4096, kind="enforced", device="tight")
    assert (oom["verdict"], oom["fits"], oom["wall_ms_p50"]) == ("oom", False, None)
    assert oom["note"]
    below = mine(document, client="client-00", batch=1, kind="enforced", device="tiny")
    assert below["verdict"].startswith("below the interpreter's baseline of ")
    assert below["fits"] is False
    none = mine(document, client="client-00", batch=1, kind="enforced", device="stm32h7")
    assert (none["verdict"], none["fits"], none["enforced_by"]) == ("no runtime", False, None)

    told = mine(document, client="client-00", batch=1, kind="modelled", device="roomy")
    assert told["verdict"] == "modelled"
    assert told["low_ms"] == pytest.approx(told["wall_ms_p50"] / 2, rel=1e-3)
    assert told["high_ms"] == pytest.approx(told["wall_ms_p50"] * 2, rel=1e-3)
    # A modelled row holds no figure of this host.
    for key in ("wall_ms_p90", "cpu_ms", "load_ms", "first_ms", "peak_mb", "fits", "samples"):
        assert told[key] is None
    unknown = mine(document, client="client-00", batch=1, kind="modelled", device="tight")
    assert (unknown["verdict"], unknown["wall_ms_p50"]) == ("not modelled", None)
    assert "fp32_gflops" in unknown["note"]

    for kind, where in (("measured", "host"), ("enforced", "roomy")):
        crash = mine(document, client="client-01", batch=1, kind=kind, device=where)
        assert (crash["verdict"], crash["fits"]) == ("crash", None)
        assert "classifier.onnx is refused: no ONNX model" in crash["note"]
    assert document["model_check"] is None  # one graph determines nothing


@pytest.mark.slow
def test_a_child_of_a_large_parent_reports_its_own_peak(hungry: Path) -> None:
    program = (
        "import sys; import numpy as np; big = np.empty(100 << 20); big[::512] = 1;"
        "from fedvtc_edge.benchmarks.bench.launching import start;"
        "from fedvtc_edge.benchmarks.bench.limits import Enforcement;"
        "from fedvtc_edge.benchmarks.bench.child import MeasurementRequest, memory_mb;"
        "request = MeasurementRequest.from_bytes(sys.argv[1]);"
        "reply = start(request, Enforcement(None), timeout=60).reply;"
        "print(memory_mb('VmHWM'), reply.peak_mb)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, job(hungry).to_bytes()],
        capture_output=True,
        text=True,
        check=True,
    )
    parent, peak = map(float, done.stdout.split())
    assert parent > 800
    assert 30 < peak < 200


def test_the_child_imports_neither_torch_nor_onnx_nor_plots(hungry: Path) -> None:
    program = (
        "import sys; from fedvtc_edge.benchmarks.bench.child import MeasurementRequest, work;"
        "print(work(MeasurementRequest.from_bytes(sys.argv[1])).status,"
        "*sorted({'torch', 'onnx', 'matplotlib', 'jinja2', 'click', 'cryptography', 'pydantic'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, job(hungry).to_bytes()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["ok"]


def test_ctrl_c_leaves_no_group_and_no_process(hungry: Path) -> None:
    parent = limits.find_parent()
    program = (
        "import sys; from pathlib import Path;"
        "from fedvtc_edge.benchmarks.bench import bench;"
        "from fedvtc_edge.devices import DeviceProfile;"
        "bench([Path(sys.argv[1])], [DeviceProfile.load('rpi4')], preset='mlperf')"
    )
    bench = subprocess.Popen(
        [sys.executable, "-c", program, str(hungry)], stderr=subprocess.DEVNULL
    )
    left = f"fedvtc-edge-bench-{bench.pid}-*"
    end = time.monotonic() + 300
    # Inside the bisection where there are groups, else after what it takes to start.
    while parent is not None and not list(parent.folder.glob(left)) and time.monotonic() < end:
        time.sleep(0.02)
    if parent is None:
        time.sleep(3)
    bench.send_signal(signal.SIGINT)
    assert bench.wait(300) in (-signal.SIGINT, 130, 1)
    assert parent is None or not list(parent.folder.glob(left))
    children = [path for path in Path("/proc").glob("[0-9]*/stat") if _parent(path) == bench.pid]
    assert children == []


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:  # it ended while we looked
        return 0


# ---------------------------------------------------------------- refusals


def test_what_does_not_verify_is_refused(hungry: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "changed", {"classifier.onnx": model()})
    (folder / "classifier.onnx").write_bytes(model(1.0))
    with pytest.raises(VerificationError, match=r"classifier\.onnx"):
        measuring.bench([hungry, folder])


def test_odd_wishes_are_refused(hungry: Path) -> None:
    with pytest.raises(ConfigError, match="preset 'slow'"):
        measuring.bench([hungry], preset="slow")
    with pytest.raises(BundleError, match="no bundle holds a graph of synthesizer"):
        measuring.bench([hungry], graphs=["synthesizer"])


def test_only_linux_can_be_measured(hungry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere() -> None:
        raise ConfigError("not Linux", hint="none")

    monkeypatch.setattr(measuring.calibration, "machine_memory", elsewhere)
    with pytest.raises(ConfigError, match="not Linux"):
        measuring.bench([hungry])


# ---------------------------------------------------------------- orchestration, without processes


def test_a_crash_only_under_the_limit_is_one_of_memory(
    hungry: Path, device: Callable[..., DeviceProfile], monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = BenchTiming(load_ms=1, first_ms=1, wall_ms=(1.0,) * len(LEVELS), cpu_ms=1, samples=1)
    well = Outcome("ok", reply=MeasurementReply(status="ok", peak_mb=60, file_mb=1, timing=timing))
    asked: list[tuple[MeasurementRequest, float | None]] = []

    def fake(
        job: MeasurementRequest, _: Enforcement, *, limit_mb: float | None = None, **__: Any
    ) -> Outcome:
        asked.append((job, limit_mb))
        return Outcome("crash", "ended by SIGABRT") if limit_mb == 100 else well

    monkeypatch.setattr(measuring, "start", fake)
    document = measuring.bench(
        [hungry], [device("roomy", 500), device("tight", 100)], batches=[1], enforce="rlimit"
    )
    for variant in ("fp32", "int8"):
        crash = mine(document, kind="enforced", device="tight", variant=variant)
        assert (crash["verdict"], crash["fits"]) == ("oom", False)
        assert crash["note"] == "only under the limit: ended by SIGABRT"
        assert mine(document, kind="enforced", device="roomy", variant=variant)["fits"] is True
    assert {job.threads for job, _ in asked} == {1}
    int8 = mine(document, kind="measured", variant="int8")
    assert (int8["accuracy"], int8["argmax_agreement"], int8["parity_max_rel"]) == (0.4, 0.9, None)


def test_a_hung_process_says_nothing_of_the_fit(
    hungry: Path, device: Callable[..., DeviceProfile], monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = BenchTiming(load_ms=1, first_ms=1, wall_ms=(1.0,) * len(LEVELS), cpu_ms=1, samples=1)
    well = Outcome("ok", reply=MeasurementReply(status="ok", peak_mb=60, file_mb=1, timing=timing))
    monkeypatch.setattr(
        measuring,
        "start",
        lambda *_, cpus=None, **__: well if cpus is None else Outcome("timeout", "too long"),
    )
    document = measuring.bench(
        [hungry], [device("roomy", 500)], batches=[1], variants=["fp32"], enforce="rlimit"
    )
    row = mine(document, kind="enforced")
    assert (row["verdict"], row["fits"]) == ("timeout", None)


def test_threads_are_at_most_the_cores_of_host_and_device(
    hungry: Path, device: Callable[..., DeviceProfile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring.calibration, "available_cores", lambda: 4)
    monkeypatch.setattr(measuring, "start", lambda *_, **__: Outcome("crash", "never started"))
    document = measuring.bench(
        [hungry], [device("one", 500)], batches=[1], variants=["fp32"], threads=64
    )
    assert mine(document, kind="measured")["threads"] == 4
    assert mine(document, kind="enforced")["threads"] == 1
    assert mine(document, kind="modelled")["threads"] == 1


# ---------------------------------------------------------------- the child


def test_the_child_times_what_it_was_asked_to(
    hungry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_HEAVY", ())  # the tests have imported both
    answer = child.work(job(hungry, batch=3, samples=5, warm_up=1))
    assert answer.status == "ok"
    assert answer.timing is not None
    assert answer.timing.samples == 5
    assert list(answer.timing.wall_ms) == sorted(answer.timing.wall_ms)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"sha256": "0" * 64}, "changed since"), ({"bundle": "nowhere"}, "no such folder")],
)
def test_the_childs_own_refusals_are_answers(
    hungry: Path, changes: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_HEAVY", ())  # the tests have imported both
    answer = child.work(replace(job(hungry), **changes))
    assert answer.status == "failed"
    assert reason in answer.reason
    assert answer.peak_mb > 0


def test_memory_that_runs_out_is_an_answer(hungry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(child, "_HEAVY", ())
    monkeypatch.setattr(child, "_time", exhausted)
    assert child.work(job(hungry)).reason == "MemoryError"


def test_torch_in_a_child_is_refused(hungry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_HEAVY", ("sys",))
    assert "sys imported" in child.work(job(hungry)).reason


def test_times_are_thinned_evenly(hungry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_KEPT", 8)
    ticks = iter(range(10_000))
    monkeypatch.setattr(child.time, "perf_counter", lambda: float(next(ticks)))
    calls: list[int] = []
    session: Any = lambda _: calls.append(1)  # noqa: E731
    wall, cpu, count = child._repeat(session, {}, job(hungry, samples=100))
    assert count == len(calls) == 100
    assert 4 <= len(wall) == len(cpu) <= 8


def test_a_slow_graph_ends_before_its_samples(hungry: Path) -> None:
    def slow(_: Any) -> Any:
        time.sleep(0.02)

    _, _, count = child._repeat(slow, {}, job(hungry, samples=10_000, longest=0.1))  # type: ignore[arg-type]
    assert 1 <= count <= 6


def test_the_synthesiser_gets_every_known_class(
    hungry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fake:
        known, mean, std = np.array([True, False, True]), np.zeros((3, 2)), np.ones((3, 2))

    verified = verify(hungry)
    monkeypatch.setattr(child.Codes, "from_bytes", lambda *_, **__: Fake)
    monkeypatch.setattr(type(verified), "read", lambda *_: b"")
    arrays = child.feed(verified, "synthesizer", 5, 0)
    assert arrays["labels"].tolist() == [0, 2, 0, 2, 0]
    assert arrays["labels"].dtype == np.int64
    assert arrays["noise"].shape == (5, 2)
    pixels = child.feed(verified, "classifier", 5, 0)["images"]
    assert (pixels.shape, pixels.dtype) == ((5, 8, 8, 1), np.uint8)
    assert (pixels == child.feed(verified, "classifier", 5, 0)["images"]).all()


# ---------------------------------------------------------------- the model


def test_without_onnx_nothing_is_modelled(
    hungry: Path, device: Callable[..., DeviceProfile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: bytes, *, batch: int) -> None:
        raise MissingExtra("this needs onnx", hint="install it")

    measuring._costs.cache_clear()
    monkeypatch.setattr(measuring, "node_costs", missing)
    profile = device("x", 1, fp32_gflops=8, efficiency=0.5, memory_gbps=2, node_overhead_us=40)
    row = measuring.modelled(_subject(hungry), profile, 1)
    assert (row.verdict, row.note, row.wall_ms_p50) == ("not modelled", "this needs onnx", None)
    assert measuring.model_check([_subject(hungry)], [row]) is None


def test_networks_are_left_out_whole_and_counted_once(
    hungry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five networks at two batches, two clients each: ten graphs, predicted by the others."""
    cost = measuring.NodeCost
    chosen: list[Any] = []
    rows: list[Any] = []
    for _client in range(2):
        for number in range(5):
            for batch in (1, 4):
                nodes = tuple(cost(f"op{number}", 1e6 * batch * n, 1e4 * batch) for n in (1, 2, 9))
                chosen.append(_Costed(f"{number} x{batch}", nodes))
                model = measuring.LatencyModel(10, 5, 3)
                rows.append(_Timed(model.milliseconds(nodes)))
    chosen.append(_Costed("int8", (), variant="int8"))
    rows.append(_Timed(5.0))
    monkeypatch.setattr(measuring, "_nodes", lambda subject: subject.nodes)
    found = measuring.model_check(chosen, rows)
    assert found is not None
    assert (found["graphs"], found["within"], found["band"]) == (10, 10, 2.0)
    assert [one["name"] for one in found["held"]][:2] == ["0 x1", "0 x4"]
    four = [n for n, one in enumerate(chosen) if one.name[0] in "0123"]
    assert measuring.model_check([chosen[n] for n in four], [rows[n] for n in four]) is None


class _Costed:
    def __init__(self, name: str, nodes: Sequence[Any], variant: str = "fp32") -> None:
        self.name, self.nodes, self.variant = name, nodes, variant


class _Timed:
    def __init__(self, ms: float) -> None:
        self.wall_ms_p50 = ms


def _subject(folder: Path) -> BenchSubject:
    return subjects([verify(folder)], [1], variants=["fp32"])[0]


# ---------------------------------------------------------------- as a nobody


@pytest.mark.slow
def test_a_process_without_rights_is_limited_by_rlimit(hungry: Path) -> None:
    """The job that fits 400 MB fails 75 MB cleanly, without any control group."""
    large = job(hungry, batch=4096)
    free = Enforcement(None)
    assert start(large, free, limit_mb=400, timeout=60).verdict == "ok"
    outcome = start(large, free, limit_mb=80, timeout=60)
    assert outcome.verdict in ("oom", "crash")
    assert outcome.reason
