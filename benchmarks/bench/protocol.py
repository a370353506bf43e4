"""What the bench and its fresh processes tell each other: a job on stdin, an answer on stdout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedvtc_edge.export.manifest import GraphName, Variant

LEVELS = (*range(0, 100, 5), 99, 100)
"""Percentiles of wall time that an answer holds: enough to draw the distribution."""

MAX_ANSWER_BYTES = 65_536

Milliseconds = Annotated[float, Field(ge=0, le=1e9)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MeasurementRequest(_Message):
    """One graph, at one batch, for so long.

    Args:
        bundle: The bundle's folder.
        graph: Which graph; None opens the bundle, verifies it and stops.
        variant: Which of its files.
        sha256: Of the file, as it was verified before; a file changed since is refused.
        batch: Samples of one inference.
        threads: Of one inference.
        seed: Of the inputs.
        warm_up: Inferences before the first that counts.
        samples: Time at least so many inferences ...
        seconds: ... and for at least so long,
        longest: but no longer than so many seconds; None sets no end.
    """

    bundle: str
    graph: GraphName | None = None
    variant: Variant = "fp32"
    sha256: str = ""
    batch: int = Field(default=1, ge=1, le=1 << 20)
    threads: int = Field(default=1, ge=1, le=1024)
    seed: int = Field(default=0, ge=0)
    warm_up: int = Field(default=0, ge=0)
    samples: int = Field(default=1, ge=1)
    seconds: float = Field(default=0.0, ge=0)
    longest: float | None = Field(default=None, gt=0)


class BenchTiming(_Message):
    """How long one graph took, in milliseconds.

    Args:
        load_ms: Reading the verified file and making the session.
        first_ms: The first inference.
        wall_ms: Percentiles of one inference's wall time, at ``LEVELS``.
        cpu_ms: Median CPU time of one inference, all threads.
        samples: How many inferences were timed.
    """

    load_ms: Milliseconds
    first_ms: Milliseconds
    wall_ms: Annotated[
        tuple[Milliseconds, ...], Field(min_length=len(LEVELS), max_length=len(LEVELS))
    ]
    cpu_ms: Milliseconds
    samples: int = Field(ge=1)

    def percentile(self, level: int) -> float:
        """Wall time at one of ``LEVELS``, milliseconds."""
        return self.wall_ms[LEVELS.index(level)]


class MeasurementReply(_Message):
    """What a process says at its end.

    Args:
        status: ``failed`` with a reason: an error that the process caught itself.
        reason: One line.
        peak_mb: Its own ``VmHWM``, in MB of 2^20 bytes.
        file_mb: Of it, at the end, pages of files: libraries above all.
        timing: None if no graph was asked for.
    """

    status: Literal["ok", "failed"]
    reason: str = Field(default="", max_length=2000)
    peak_mb: float = Field(ge=0, le=1e7)
    file_mb: float = Field(ge=0, le=1e7)
    timing: BenchTiming | None = None


# ---------------------------------------------------------------- section
# How long to measure.


@dataclass(frozen=True)
class Preset:
    """When one row's measurement ends.

    Args:
        samples: Time at least so many inferences ...
        seconds: ... and for at least so long,
        longest: but no longer than so many seconds; None sets no end.
        warm_up: Inferences before the first that counts.
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
