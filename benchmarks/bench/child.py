"""``python -m fedvtc_edge.benchmarks.bench.child``: one job, measured in a process of its own.

It imports what a device's runner imports and neither torch nor onnx, so that its peak is
a device's. The peak is read from ``/proc/self/status``: ``ru_maxrss`` would report the
bench's own memory, which it inherits.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from fedvtc_edge.errors import FedVTCError, VerificationError
from fedvtc_edge.export import inputs as noise
from fedvtc_edge.export.codes import Codes
from fedvtc_edge.export.manifest import STATISTICS, GraphName
from fedvtc_edge.export.runtime import Arrays, Session
from fedvtc_edge.export.verification import Verified, verify

from .protocol import LEVELS, BenchTiming, MeasurementReply, MeasurementRequest

_KEPT = 1 << 14
"""Times kept at most: a minute of short inferences must not fill the memory we measure."""

_HEAVY = ("torch", "onnx")


def work(job: MeasurementRequest) -> MeasurementReply:
    """Do a job and say how it went; memory that runs out is an answer, too."""
    timing, reason = None, ""
    try:
        verified = verify(job.bundle)
        timing = None if job.graph is None else _time(verified, job.graph, job)
    except MemoryError:
        reason = "MemoryError"
    except FedVTCError as error:
        reason = str(error)[:2000]
    heavy = [name for name in _HEAVY if name in sys.modules]
    if heavy:
        reason = f"{', '.join(heavy)} imported, which no device has: report this"
    return MeasurementReply(
        status="failed" if reason else "ok",
        reason=reason,
        peak_mb=memory_mb("VmHWM"),
        file_mb=memory_mb("RssFile"),
        timing=timing,
    )


def memory_mb(key: str) -> float:
    """One figure of this process from ``/proc/self/status``, in MB of 2^20 bytes."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def feed(verified: Verified, graph: GraphName, batch: int, seed: int) -> Arrays:
    """Inputs of a graph: random pixels, or every class that can be painted in turn.

    Args:
        verified: The bundle.
        graph: Which of its graphs.
        batch: Samples.
        seed: The same gives the same inputs.
    """
    manifest = verified.manifest
    if graph != "synthesizer":
        form = manifest.image
        shape = (batch, form.size, form.size, form.channels)
        draw = np.random.Generator(np.random.Philox(key=seed))
        return {"images": draw.integers(0, 256, shape, np.uint8)}
    codes = Codes.from_bytes(
        verified.read(STATISTICS),
        classes=len(manifest.classes),
        latent=manifest.latent,
        anchor=manifest.anchor,
    )
    return {
        "labels": np.resize(np.flatnonzero(codes.known), batch).astype(np.int64),
        "means": codes.mean,
        "stds": codes.std,
        "noise": noise.draw(seed, batch, manifest.latent),
    }


def _time(verified: Verified, graph: GraphName, job: MeasurementRequest) -> BenchTiming:
    file = verified.manifest.graphs[graph].variants[job.variant]
    if verified.manifest.files[file].sha256 != job.sha256:
        raise VerificationError(f"{file} changed since the bench began", hint="start again")
    external = f"{file}.data" in verified.manifest.files
    begin = time.perf_counter()
    session = Session(
        verified.read(file),
        name=file,
        folder=verified.folder if external else None,
        threads=job.threads,
    )
    loaded = time.perf_counter()
    if external:  # onnxruntime read it by its name, not from bytes that were hashed
        verified.check(f"{file}.data")
    arrays = feed(verified, graph, job.batch, job.seed)
    started = time.perf_counter()
    session(arrays)
    first = time.perf_counter() - started
    for _ in range(job.warm_up):
        session(arrays)
    wall, cpu, count = _repeat(session, arrays, job)
    return BenchTiming(
        load_ms=1e3 * (loaded - begin),
        first_ms=1e3 * first,
        wall_ms=tuple(1e3 * float(value) for value in np.percentile(wall, LEVELS)),
        cpu_ms=1e3 * float(np.median(cpu)),
        samples=count,
    )


def _repeat(
    session: Session, arrays: Arrays, job: MeasurementRequest
) -> tuple[list[float], list[float], int]:
    """Seconds of wall and CPU time, thinned evenly where there are many, and how many ran."""
    wall: list[float] = []
    cpu: list[float] = []
    count, stride, start = 0, 1, time.perf_counter()
    while True:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        session(arrays)
        spent_cpu, end = time.process_time() - begin_cpu, time.perf_counter()
        if count % stride == 0:
            wall.append(end - begin)
            cpu.append(spent_cpu)
        count += 1
        if len(wall) > _KEPT:
            del wall[1::2], cpu[1::2]
            stride *= 2
        enough = count >= job.samples and end - start >= job.seconds
        if enough or (job.longest is not None and end - start >= job.longest):
            return wall, cpu, count


if __name__ == "__main__":
    print(work(MeasurementRequest.model_validate_json(sys.stdin.read())).model_dump_json())
