"""``python -m fedvtc_edge.benchmarks.bench.child``: one request, measured in a process of its own.

The request comes on stdin, the reply goes to stdout.

It imports what a device's runner imports and neither torch nor onnx, so that its peak is
a device's. The peak is read from ``/proc/self/status``: ``ru_maxrss`` would report the
bench's own memory, which it inherits.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np

from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import FedVTCError, VerificationError
from fedvtc_edge.export import inputs as noise
from fedvtc_edge.export.codes import Codes
from fedvtc_edge.export.manifest import GraphName, Variant
from fedvtc_edge.export.runtime import Arrays, Session
from fedvtc_edge.export.verification import Verified, verify
from fedvtc_edge.fields import FieldError, Record, between, sized

LEVELS = (*range(0, 100, 5), 99, 100)
"""Percentiles of wall time that a reply holds: enough to draw the distribution."""

MAX_REPLY_BYTES = 65_536

Milliseconds = Annotated[float, between(0, 1e9)]
Megabytes = Annotated[float, between(0, 1e7)]
Seconds = Annotated[float, between(0)]
Positive = Annotated[int, between(1)]
NotNegative = Annotated[int, between(0)]


class _Message(Record):
    @classmethod
    def read(cls, document: Any) -> Self:
        """A message from a JSON object, which has no other keys.

        Raises:
            FieldError: It has, or a value cannot be.
        """
        strange = set(document) - {one.name for one in fields(cls)} if document else set()
        if isinstance(document, Mapping) and strange:
            raise FieldError("no key of it", str(min(strange))[:80])
        return super().read(document)

    @classmethod
    def from_bytes(cls, data: bytes | str) -> Self:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ValueError: It is something else.
        """
        return cls.read(parse_json(data))

    def to_bytes(self) -> bytes:
        """The message as one line of JSON."""
        return json.dumps(self.document(), allow_nan=False).encode("ascii")


@dataclass(frozen=True, kw_only=True)
class MeasurementRequest(_Message):
    """One graph, at one batch, for so long.

    Args:
        extractor: The file that the bundle names and does not hold, if it does.
        graph: None opens the bundle, verifies it and stops.
        sha256: Of the graph's file, as it was verified before; one changed since is refused.
        samples: Inferences to time at least.
        seconds: Time to measure at least,
        longest: and at most; None sets no end.
    """

    bundle: str
    extractor: str | None = None
    graph: GraphName | None = None
    variant: Variant = "fp32"
    sha256: str = ""
    batch: Annotated[int, between(1, 1 << 20)] = 1
    threads: Annotated[int, between(1, 1024)] = 1
    seed: NotNegative = 0
    warm_up: NotNegative = 0
    samples: Positive = 1
    seconds: Seconds = 0.0
    longest: Seconds | None = None


@dataclass(frozen=True, kw_only=True)
class BenchTiming(_Message):
    """Latency of one graph, in milliseconds.

    Args:
        load_ms: Reading the verified file and making the session.
        wall_ms: Percentiles of one inference's wall time, at ``LEVELS``.
        cpu_ms: Median CPU time of one inference, all threads.
    """

    load_ms: Milliseconds
    first_ms: Milliseconds
    wall_ms: Annotated[tuple[Milliseconds, ...], sized(len(LEVELS), len(LEVELS))]
    cpu_ms: Milliseconds
    samples: Positive

    def percentile(self, level: int) -> float:
        """Wall time at one of ``LEVELS``, milliseconds."""
        return self.wall_ms[LEVELS.index(level)]


@dataclass(frozen=True, kw_only=True)
class MeasurementReply(_Message):
    """Result of a measured process.

    Args:
        status: ``failed`` with a reason: an error that the process caught itself.
        peak_mb: Its own ``VmHWM``, in MB of 2^20 bytes.
        file_mb: Of it, at the end, pages of files: libraries above all.
        timing: None if no graph was asked for.
    """

    status: Literal["ok", "failed"]
    reason: Annotated[str, sized(0, 2000)] = ""
    peak_mb: Megabytes
    file_mb: Megabytes
    timing: BenchTiming | None = None


_KEPT = 1 << 14
"""Times kept at most: a minute of short inferences must not fill the memory we measure."""

_HEAVY = ("torch", "onnx")


def work(request: MeasurementRequest) -> MeasurementReply:
    """Measure what is asked; memory that runs out is a reply, too."""
    timing, reason = None, ""
    try:
        verified = verify(request.bundle, extractor=request.extractor)
        timing = None if request.graph is None else _time(verified, request.graph, request)
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
    """Inputs of a graph: random pixels, or every class that can be synthesised in turn.

    The same seed gives the same inputs.
    """
    manifest = verified.manifest
    if graph != "synthesizer":
        form = manifest.image
        shape = (batch, form.size, form.size, form.channels)
        draw = np.random.Generator(np.random.Philox(key=seed))
        return {"images": draw.integers(0, 256, shape, np.uint8)}
    codes = Codes.read(verified)
    return {
        "labels": np.resize(np.flatnonzero(codes.known), batch).astype(np.int64),
        "means": codes.mean,
        "stds": codes.std,
        "noise": noise.draw(seed, batch, manifest.latent),
    }


def _time(verified: Verified, graph: GraphName, request: MeasurementRequest) -> BenchTiming:
    file = verified.manifest.graphs[graph].variants[request.variant]
    if verified.manifest.file(file).sha256 != request.sha256:
        raise VerificationError(f"{file} changed since the bench began", hint="start again")
    external = f"{file}.data" in verified.manifest.files
    begin = time.perf_counter()
    session = Session(
        verified.read(file),
        name=file,
        folder=verified.folder if external else None,
        threads=request.threads,
    )
    loaded = time.perf_counter()
    if external:  # onnxruntime read it by its name, not from bytes that were hashed
        verified.check(f"{file}.data")
    arrays = feed(verified, graph, request.batch, request.seed)
    started = time.perf_counter()
    session(arrays)
    first = time.perf_counter() - started
    for _ in range(request.warm_up):
        session(arrays)
    wall, cpu, count = _repeat(session, arrays, request)
    return BenchTiming(
        load_ms=1e3 * (loaded - begin),
        first_ms=1e3 * first,
        wall_ms=tuple(1e3 * float(value) for value in np.percentile(wall, LEVELS)),
        cpu_ms=1e3 * float(np.median(cpu)),
        samples=count,
    )


def _repeat(
    session: Session, arrays: Arrays, request: MeasurementRequest
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
        enough = count >= request.samples and end - start >= request.seconds
        if enough or (request.longest is not None and end - start >= request.longest):
            return wall, cpu, count


if __name__ == "__main__":
    print(work(MeasurementRequest.from_bytes(sys.stdin.read())).to_bytes().decode("ascii"))
