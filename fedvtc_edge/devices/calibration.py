"""Profile of this machine: its cores, its memory and its speed in the runtime of a bundle.

Four probe graphs run in onnxruntime; neither torch nor the onnx package is needed.
``benchmarks/latency/probes.py`` made them, from the sizes that are named here.

The figures are those of the latency model, t = Σ max(FLOP / G, bytes / BW) + t0, so
each is what kernels reach on one thread, as a median of its CPU time: other processes
slow it down little. What one machine cannot know of itself (its network, how often it
is reached) is left out, not guessed.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from fedvtc_edge.errors import ConfigError

from .profile import DeviceProfile, check_name

SIDE = 1024
"""Of the square matrices whose product gives the peak: 2 · SIDE³ FLOP, 12 MB."""

IMAGE = 16
LAYERS = ((16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
"""Channels in, channels out and stride of the 3 × 3 convolutions on IMAGE² pixels: those of
a small network, whose kernels do not reach the peak."""

ELEMENTS = 1 << 22
"""Of each of the three arrays of an addition: 48 MB, beyond most caches."""

CALLS = 294
"""Nodes of a chain that computes nearly nothing."""

_SECONDS, _WARM_UP, _LEAST = 1.5, 3, 5
_DIGITS = 4
_ERRORS_ONLY = 3

onnxruntime.disable_telemetry_events()  # whoever imported onnxruntime before us left it on

Clock = Callable[[], float]
Report = Callable[[str], None]


class Timing(NamedTuple):
    """Seconds of one run: the best, the median, the 90th percentile, and of how many."""

    best: float
    median: float
    p90: float
    runs: int

    def __str__(self) -> str:
        return f"{self.runs} runs, p90/p50 {self.p90 / self.median:.2f}"


def calibrate(name: str, *, report: Report, seconds: float = _SECONDS) -> DeviceProfile:
    """The profile of the machine that this runs on.

    Args:
        name: Of the profile.
        report: Told what is being measured, in a few words.
        seconds: Time for each of five measurements.

    Raises:
        ConfigError: A name that no profile can have, not a Linux system, or an
            onnxruntime that does not run the probes.
    """
    check_name(name)
    cores, memory = available_cores(), machine_memory()
    runs = {}
    for key, probe, threads in (
        ("one", "product", 1),
        ("all", "product", cores),
        ("convolutions", "convolutions", 1),
        ("traffic", "traffic", 1),
        ("calls", "calls", 1),
    ):
        report(f"{probe}, {threads} {'thread' if threads == 1 else 'threads'}")
        # CPU time of our thread says nothing of the others': there only the wall clock does.
        clock = time.thread_time if threads == 1 else time.perf_counter
        runs[key] = measure(_probe(probe, threads), clock, seconds)
    product = 2e-9 * SIDE**3
    single, together = product / runs["one"].best, product / runs["all"].best
    peak = max(cores * single, together)
    reached = convolution_flops() / runs["convolutions"].median / 1e9
    traffic, calls = runs["traffic"], runs["calls"]
    stamp = f"onnxruntime {onnxruntime.__version__}, {date.today().isoformat()}"
    limit = "the control group's limit" if memory.limited else "MemTotal"
    return DeviceProfile.model_validate(
        {
            "name": name,
            "title": f"{platform.machine()}, {cores} cores, {platform.system()}, calibrated",
            "arch": platform.machine() or "unknown",
            "runtime": "onnxruntime",
            "note": "Measured by fedvtc-edge devices calibrate. Network, availability, dropout "
            "and deadline are not known to a machine alone: add them.",
            "cores": _figure(cores, "cores that the process may run on", stamp),
            "memory_total_mb": _figure(memory.total, limit, stamp),
            "memory_usable_mb": _figure(memory.usable, "MemAvailable, limits counted", stamp),
            "fp32_gflops": _figure(
                peak,
                f"product of {SIDE}² matrices, best of {runs['one'].runs} and {runs['all'].runs} "
                f"runs: the larger of {cores} × {single:.1f} on one thread and {together:.1f} "
                f"on {cores}",
                stamp,
            ),
            "efficiency": _figure(
                min(1.0, reached / (peak / cores)),
                f"3 × 3 convolutions of a small network, {reached:.1f} GFLOP/s on one thread "
                f"against a core's share of the peak; median of {runs['convolutions']}",
                stamp,
            ),
            "memory_gbps": _figure(
                3 * 4 * ELEMENTS / traffic.median / 1e9,
                f"read and written in an addition of arrays of {4 * ELEMENTS >> 20} MB on one "
                f"thread; median of {traffic}",
                stamp,
            ),
            "node_overhead_us": _figure(
                1e6 * calls.median / CALLS,
                f"chain of {CALLS} nodes on 32 numbers; median of {calls}",
                stamp,
            ),
        }
    )


def convolution_flops() -> int:
    """Operations of one run of the convolutions, a multiply-add counted as two."""
    side, total = IMAGE, 0
    for narrow, wide, stride in LAYERS:
        side //= stride
        total += 2 * 9 * narrow * wide * side**2
    return total


def measure(run: Callable[[], object], clock: Clock, seconds: float) -> Timing:
    """Time ``run`` over and over for so many seconds, and a few times at least."""
    for _ in range(_WARM_UP):
        run()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < _LEAST or time.perf_counter() < end:
        begin = clock()
        run()
        taken.append(clock() - begin)
    taken.sort()
    return Timing(taken[0], statistics.median(taken), taken[9 * len(taken) // 10], len(taken))


def _probe(name: str, threads: int) -> Callable[[], object]:
    """A probe graph with its inputs, ready to run."""
    model = (resources.files(__package__) / "probes" / f"{name}.onnx").read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as bundles run
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = {port.name: np.full(port.shape, 0.5, np.float32) for port in session.get_inputs()}
        session.run(None, feed)
    except Exception as error:  # onnxruntime has a class of its own for each status
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"onnxruntime {onnxruntime.__version__} cannot run the probe {name}: {reason:.200}",
            hint="install onnxruntime 1.20 or later, or free some memory",
        ) from error
    return lambda: session.run(None, feed)


def _figure(value: float, what: str, stamp: str) -> dict[str, Any]:
    digits = _DIGITS - 1 - math.floor(math.log10(value))
    return {"value": round(float(value), digits), "kind": "measured", "source": f"{what}; {stamp}"}


MEGABYTE = 1 << 20

_ROOT = Path("/")


class MachineMemory(NamedTuple):
    """In MB of 2^20 bytes.

    Args:
        total: What there is, or the control group's limit where that is lower.
        usable: What is not in use now; at most ``total``.
        limited: Whether a control group's limit is the lower one.
    """

    total: float
    usable: float
    limited: bool


def available_cores() -> int:
    """Those that this process may run on, which in a container may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine_memory(root: Path = _ROOT) -> MachineMemory:
    """Memory of this machine, from ``/proc/meminfo`` and the control groups, v1 or v2.

    Args:
        root: Where ``proc`` and ``sys`` lie.

    Raises:
        ConfigError: Not a Linux system.
    """
    try:
        lines = (root / "proc/meminfo").read_text("ascii").splitlines()
    except OSError as error:
        raise ConfigError(
            f"cannot read /proc/meminfo: {error.strerror}; memory is found on Linux only",
            hint="write a profile by hand: docs/devices.md",
        ) from None
    fields = {key: rest.split() for key, _, rest in (line.partition(":") for line in lines)}
    try:
        total, available = (int(fields[key][0]) / 1024 for key in ("MemTotal", "MemAvailable"))
    except (KeyError, IndexError, ValueError):
        raise ConfigError(
            "/proc/meminfo: expected MemTotal and MemAvailable in kB",
            hint="write a profile by hand: docs/devices.md",
        ) from None
    limits = [limit / MEGABYTE for limit in _limits(root)]
    lowest = min([total, *limits])
    return MachineMemory(lowest, min(available, lowest), lowest < total)


def _limits(root: Path) -> list[int]:
    """Limits in bytes of our control group and of all that it lies in."""
    try:
        groups = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:  # a system without control groups limits nothing
        return []
    found = []
    for line in groups:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            folder, name = "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        place = PurePosixPath(path.lstrip("/"))
        for group in (place, *place.parents):
            # In a container the path may be the host's, and its files not there.
            try:
                text = (root / folder / group / name).read_text("ascii").strip()
            except OSError:
                continue
            if text.isdigit():  # v2 writes "max" for no limit
                found.append(int(text))
    return found
