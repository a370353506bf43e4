"""Measures bundles: on this calibration, under each device's limits, and by the model."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from fedvtc_edge.devices import DeviceProfile, calibration
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.export.verification import verify
from fedvtc_edge.progress import Progress, SilentProgress

from . import prediction
from .launching import Enforcement, Method, Outcome, start
from .protocol import LEVELS, PRESETS, MeasurementRequest, Preset
from .rows import HOST, BenchRow, blank, filled
from .subjects import BenchSubject, subjects

_RESOLUTION_MB = 1.0
_IDLE_TIMEOUT_S = 60.0


def bench(
    bundles: Sequence[Path],
    devices: Sequence[DeviceProfile] = (),
    *,
    preset: str = "quick",
    batches: Sequence[int] = (),
    threads: int = 1,
    graphs: Collection[str] = (),
    variants: Collection[str] = (),
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
        devices: Whose limits to enforce and whose times to model.
        preset: Name of one of ``PRESETS``: how long to measure.
        batches: Samples of one inference; empty takes the preset's.
        threads: Of one inference, at most the cores of the host and of the device.
        graphs: Only these; empty takes all.
        variants: Only these; empty takes all.
        key: Public key of whoever exported the bundles; None checks hashes alone.
        enforce: How to limit memory; ``auto`` takes a control group where one can be made.
        seed: Of the inputs.
        progress: Where to show it.

    Returns:
        ``bench.json``; docs/bench.md describes it.

    Raises:
        VerificationError: A bundle is not, byte for byte, what was exported.
        BundleError: No such folder, or nothing in it to measure.
        ConfigError: Not Linux, no such preset, or no way to enforce as asked.
    """
    memory = (
        calibration.machine_memory()
    )  # refuses what is not Linux, before anything else is asked of it
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r}", hint=f"expected {' or '.join(PRESETS)}")
    length = PRESETS[preset]
    verified = [verify(bundle, key) for bundle in bundles]
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
            rows.append(prediction.modelled(subject, profile, min(threads, there)))
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
        "model_check": prediction.check(chosen, measured),
        "rows": [row.as_document() for row in rows],
    }


class _Bench:
    """What stays the same from row to row."""

    def __init__(
        self, preset: Preset, enforcement: Enforcement, seed: int, progress: Progress
    ) -> None:
        self.preset = preset
        self.enforcement = enforcement
        self.seed = seed
        self.progress = progress

    def baseline(self, subject: BenchSubject) -> float | None:
        """Smallest limit under which a process can open a bundle and stop, MB of 2^20 bytes."""
        job = MeasurementRequest(bundle=str(subject.verified.folder))
        outcome = start(job, self.enforcement, timeout=_IDLE_TIMEOUT_S)
        found = None
        if outcome.answer is not None and outcome.verdict == "ok":
            found = self._smallest(job, outcome.answer.peak_mb, 0.0, _IDLE_TIMEOUT_S)
        self.progress.advance("the runtime alone")
        return found

    def measure(self, subject: BenchSubject, threads: int, baseline: float | None) -> BenchRow:
        """On this host without a limit, and how far the limit could be lowered."""
        job = self._job(subject, threads)
        outcome = start(job, self.enforcement, timeout=self.preset.timeout)
        row = filled(blank(subject, HOST, "measured", threads), outcome)
        if row.peak_mb is not None and row.first_ms is not None:
            short = job.model_copy(update={"samples": 1, "seconds": 0.0, "warm_up": 0})
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
                self._job(subject, threads),
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

    def _job(self, subject: BenchSubject, threads: int) -> MeasurementRequest:
        return MeasurementRequest(
            bundle=str(subject.verified.folder),
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
        self, job: MeasurementRequest, peak_mb: float, fails: float, timeout: float
    ) -> float | None:
        def works(limit_mb: float) -> bool:
            outcome = start(job, self.enforcement, limit_mb=limit_mb, timeout=timeout)
            return bool(outcome.verdict == "ok")

        resolution = max(_RESOLUTION_MB, peak_mb / 100)
        found = smallest_working(works, fails=fails, start=peak_mb, resolution=resolution)
        return None if found is None else found[1]


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


# ---------------------------------------------------------------- section
# The smallest memory limit under which something still works.

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
