"""Rows of a bench: measured on this host, enforced under a device's limits, and modelled."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from fedvtc_edge.devices import DeviceProfile, calibration
from fedvtc_edge.errors import ConfigError, FedVTCError
from fedvtc_edge.export.verification import verify
from fedvtc_edge.progress import Progress, SilentProgress

from ..latency import BAND, LatencyModel, NodeCost, Sample, leave_one_out, node_costs
from .child import LEVELS, MeasurementRequest
from .launching import Outcome, start
from .limits import Enforcement, Method
from .rows import HOST, BenchRow, BenchSubject, blank, filled, subjects

LEAST_NETWORKS = 5
"""Fewer different networks leave too little to fit three figures to: with one of three left
out the fit itself is at fault, and the check would say so of the model."""

_RESOLUTION_MB = 1.0
_IDLE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Preset:
    """Length of one row's measurement; see :class:`~.child.MeasurementRequest`.

    Args:
        timeout: Seconds after which a process is taken to hang.
        batches: Measured if none are asked for.
    """

    samples: int
    seconds: float
    longest: float | None
    warm_up: int
    timeout: float
    batches: tuple[int, ...]


PRESETS = {
    "quick": Preset(100, 0.3, 3.0, 10, 120.0, (1, 32)),
    # MLPerf Inference's single-stream scenario: Reddi et al. 2020, arXiv 1911.02549.
    "mlperf": Preset(1024, 60.0, None, 100, 7200.0, (1, 8, 32)),
}


def bench(
    bundles: Sequence[Path],
    devices: Sequence[DeviceProfile] = (),
    *,
    preset: str = "quick",
    batches: Sequence[int] = (),
    threads: int = 1,
    graphs: Collection[str] = (),
    variants: Collection[str] = (),
    extractor: Path | None = None,
    key: Path | None = None,
    enforce: Method = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every graph of every bundle, each time in a fresh process.

    Per graph, variant and batch there is one ``measured`` row, and per device one
    ``enforced`` and one ``modelled`` row; :class:`~.rows.BenchRow` says what each holds. A
    process that runs out of memory, crashes or hangs becomes a row and ends nothing.

    Args:
        bundles: Folders that export wrote.
        devices: Profiles whose limits are enforced and whose times are modelled.
        preset: Name of one of ``PRESETS``: how long to measure.
        batches: Samples of one inference; empty takes the preset's.
        threads: Of one inference, at most the cores of the host and of the device.
        graphs: Only these; empty takes all.
        variants: Only these; empty takes all.
        extractor: The extractor's file, for bundles that name it and do not hold it.
        key: Public key of whoever exported the bundles; None checks hashes alone.
        enforce: How to limit memory; ``auto`` takes a control group where one can be made.
        progress: Told of each row; None is silent.

    Returns:
        ``bench.json``; docs/bench.md describes it.

    Raises:
        VerificationError: A bundle is not, byte for byte, what was exported.
        BundleError: No such folder, or nothing in it to measure.
        ConfigError: Not Linux, no such preset, or no way to enforce as asked.
    """
    memory = calibration.machine_memory()  # refuses what is not Linux, before anything else
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r}", hint=f"expected {' or '.join(PRESETS)}")
    length = PRESETS[preset]
    verified = [verify(bundle, key, extractor=extractor) for bundle in bundles]
    chosen = subjects(
        verified,
        sorted(set(batches or length.batches)),
        graphs=graphs,
        variants=variants,
    )
    run = _Bench(length, Enforcement.find(enforce), seed, progress or SilentProgress())
    run.progress.start(1 + len(chosen) * (1 + len(devices)), "bench")
    baseline = run.baseline(chosen[0])
    here = min(threads, calibration.available_cores())
    measured, rows = [], []
    for subject in chosen:
        first = run.measure(subject, here, baseline)
        measured.append(first)
        rows.append(first)
        for profile in devices:
            there = min(here, int(profile.cores.value))
            rows.append(run.enforce(subject, profile, there, baseline, first))
            rows.append(modelled(subject, profile, min(threads, there)))
    return {
        "schema": 1,
        "preset": preset,
        "seed": seed,
        "threads": here,
        "quantile_levels": list(LEVELS),
        "enforced_by": run.enforcement.name,
        "baseline_mb": baseline,
        "host": _host(memory),
        "devices": [_device(profile) for profile in devices],
        "bundles": [
            {
                "client": one.manifest.client,
                "architecture": one.manifest.architecture,
                "signed_by": one.signer,
            }
            for one in verified
        ],
        "model_check": model_check(chosen, measured),
        "rows": [row.as_document() for row in rows],
    }


class _Bench:
    """Settings that are the same for every row."""

    def __init__(
        self, preset: Preset, enforcement: Enforcement, seed: int, progress: Progress
    ) -> None:
        self.preset = preset
        self.enforcement = enforcement
        self.seed = seed
        self.progress = progress

    def baseline(self, subject: BenchSubject) -> float | None:
        """Smallest limit under which a process can open a bundle and stop, MB of 2^20 bytes."""
        request = MeasurementRequest(
            bundle=str(subject.verified.folder), extractor=_path(subject.verified.extractor)
        )
        outcome = start(request, self.enforcement, timeout=_IDLE_TIMEOUT_S)
        found = None
        if outcome.reply is not None and outcome.verdict == "ok":
            found = self._smallest(request, outcome.reply.peak_mb, 0.0, _IDLE_TIMEOUT_S)
        self.progress.advance("the runtime alone")
        return found

    def measure(self, subject: BenchSubject, threads: int, baseline: float | None) -> BenchRow:
        """On this host without a limit, and how far the limit could be lowered."""
        request = self._request(subject, threads)
        outcome = start(request, self.enforcement, timeout=self.preset.timeout)
        row = filled(blank(subject, HOST, "measured", threads), outcome)
        if row.peak_mb is not None and row.first_ms is not None:
            short = replace(request, samples=1, seconds=0.0, warm_up=0)
            timeout = _IDLE_TIMEOUT_S + row.first_ms / 10  # 100 times as long as it took
            # What is not enough for the runtime alone is not enough for it and a graph.
            fails = max(0.0, (baseline or 0.0) - _RESOLUTION_MB)
            least = self._smallest(short, row.peak_mb, fails, timeout)
            by = None if least is None else self.enforcement.name
            row = replace(row, min_memory_mb=least, enforced_by=by)
        self.progress.advance(f"{subject.name}: {row.verdict}")
        return row

    def enforce(
        self,
        subject: BenchSubject,
        profile: DeviceProfile,
        threads: int,
        baseline: float | None,
        measured: BenchRow,
    ) -> BenchRow:
        """On this host under a device's memory limit, cores and threads."""
        limit = (profile.memory_usable_mb or profile.memory_total_mb).value
        row = blank(subject, profile.name, "enforced", threads)
        row = replace(row, limit_mb=limit, enforced_by=self.enforcement.name)
        if profile.runtime == "none":
            row = replace(row, enforced_by=None, fits=False, verdict="no runtime")
        elif baseline is not None and limit < baseline:
            verdict = f"below the interpreter's baseline of {baseline:.0f} MB"
            row = replace(row, fits=False, verdict=verdict)
        elif measured.peak_mb is None:  # a fault that no limit of ours has caused
            row = replace(row, verdict=measured.verdict, note=f"without a limit: {measured.note}")
        else:
            outcome = start(
                self._request(subject, threads),
                self.enforcement,
                limit_mb=limit,
                cpus=int(profile.cores.value),
                timeout=self.preset.timeout,
            )
            row = filled(row, _by_the_limit(outcome))
            fits = None if outcome.verdict == "timeout" else row.peak_mb is not None
            row = replace(row, fits=fits, min_memory_mb=measured.min_memory_mb)
        self.progress.advance(f"{subject.name} as {profile.name}: {row.verdict}")
        return row

    def _request(self, subject: BenchSubject, threads: int) -> MeasurementRequest:
        return MeasurementRequest(
            bundle=str(subject.verified.folder),
            extractor=_path(subject.verified.extractor),
            graph=subject.graph,
            variant=subject.variant,
            sha256=subject.sha256,
            batch=subject.batch,
            threads=threads,
            seed=self.seed,
            warm_up=self.preset.warm_up,
            samples=self.preset.samples,
            seconds=self.preset.seconds,
            longest=self.preset.longest,
        )

    def _smallest(
        self, request: MeasurementRequest, peak_mb: float, fails: float, timeout: float
    ) -> float | None:
        def works(limit_mb: float) -> bool:
            outcome = start(request, self.enforcement, limit_mb=limit_mb, timeout=timeout)
            return bool(outcome.verdict == "ok")

        resolution = max(_RESOLUTION_MB, peak_mb / 100)
        found = smallest_working(works, fails=fails, start=peak_mb, resolution=resolution)
        return None if found is None else found[1]


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _by_the_limit(outcome: Outcome) -> Outcome:
    """A crash under a limit, of a job that runs without it, is one of memory.

    Under ``RLIMIT_DATA`` an allocation fails, and not every library says so in the end.
    """
    if outcome.verdict != "crash":
        return outcome
    return replace(outcome, verdict="oom", reason=f"only under the limit: {outcome.reason}")


def _device(profile: DeviceProfile) -> dict[str, Any]:
    usable = profile.memory_usable_mb
    return {
        "name": profile.name,
        "title": profile.title,
        "arch": profile.arch,
        "runtime": profile.runtime,
        "cores": int(profile.cores.value),
        "limit_mb": (usable or profile.memory_total_mb).value,
        "limit_is": "total memory: usable is not known" if usable is None else "usable memory",
    }


def _host(memory: calibration.MachineMemory) -> dict[str, Any]:
    """What must be known of this machine to repeat its figures; not its name."""
    lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": next(names, platform.machine()),
        "arch": platform.machine(),
        "cores": calibration.available_cores(),
        "memory_mb": round(memory.total),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("fedvtc-edge", "numpy", "onnxruntime")},
        "load_average": round(os.getloadavg()[0], 2),
    }


def modelled(subject: BenchSubject, profile: DeviceProfile, threads: int) -> BenchRow:
    """Time on a device with its band, or why there is none; int8 is not modelled.

    Args:
        threads: Of one inference, at most the device's cores.
    """
    row = blank(subject, profile.name, "modelled", threads)
    if profile.runtime == "none":
        return replace(row, verdict="no runtime")
    try:
        ms = LatencyModel.of(profile, threads).milliseconds(_nodes(subject))
    except FedVTCError as error:  # figures of the device, the onnx package, or the graph
        return replace(row, verdict="not modelled", note=str(error))
    return replace(row, wall_ms_p50=ms, low_ms=ms / BAND, high_ms=ms * BAND, verdict="modelled")


def model_check(
    subjects: Sequence[BenchSubject], rows: Sequence[BenchRow]
) -> dict[str, Any] | None:
    """Fit the model to this host's measured fp32 graphs, each left out in turn.

    A network that is there twice, at another batch or in another client's bundle, would
    tell of itself: it is left out as a whole, and counted once per batch.

    Args:
        rows: Its measured rows, in the same order.

    Returns:
        ``band``, ``graphs``, ``within`` and each graph's figures; None: too few networks.
    """
    samples: dict[tuple[NodeCost, ...], Sample] = {}
    for subject, row in zip(subjects, rows, strict=True):
        if subject.variant != "fp32" or not row.wall_ms_p50:
            continue
        try:
            nodes = _nodes(subject)
        except FedVTCError:  # its modelled rows say why
            continue
        network = " ".join(node.operator for node in nodes)
        samples.setdefault(nodes, Sample(subject.name, nodes, row.wall_ms_p50, group=network))
    if len({sample.group for sample in samples.values()}) < LEAST_NETWORKS:
        return None
    held = leave_one_out(list(samples.values()))
    return {
        "band": BAND,
        "graphs": len(held),
        "within": sum(one.within for one in held),
        "held": [asdict(one) for one in held],
    }


def _nodes(subject: BenchSubject) -> tuple[NodeCost, ...]:
    return _costs(subject.verified.read(subject.file), subject.batch)


@cache
def _costs(model: bytes, batch: int) -> tuple[NodeCost, ...]:
    nodes: tuple[NodeCost, ...] = node_costs(model, batch=batch)
    return nodes


DOUBLINGS = 3


def smallest_working(
    works: Callable[[float], bool], *, fails: float, start: float, resolution: float
) -> tuple[float, float] | None:
    """Bisect between a limit that fails and one that works.

    What a process takes when nobody stops it is no answer: under a limit its allocator
    gives memory back and gets by with less, while ``RLIMIT_DATA`` also counts what is
    reserved and never used, so that the smallest limit may lie above the peak.

    Args:
        works: Whether a limit is enough; taken to stay so for every larger one.
        fails: A limit that is not enough; it is not tried.
        start: Where to look first for one that is enough.
        resolution: How near the two must come.

    Returns:
        The largest limit found to fail and the smallest found to work, ``resolution``
        apart at most; None if not even ``start`` · 2^``DOUBLINGS`` works.
    """
    enough = max(start, fails + resolution)
    for _ in range(DOUBLINGS):
        if works(enough):
            break
        fails, enough = enough, 2 * enough
    else:
        if not works(enough):
            return None
    while enough - fails > resolution:
        middle = (fails + enough) / 2
        if works(middle):
            enough = middle
        else:
            fails = middle
    return fails, enough
