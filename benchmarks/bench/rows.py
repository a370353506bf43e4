"""One row of the bench; what was measured, enforced or modelled is told by ``kind`` alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from .launching import Outcome
from .protocol import BenchTiming
from .subjects import BenchSubject

Kind = Literal["measured", "enforced", "modelled"]

HOST = "host"
NOISY = 3.0
"""Above this ratio of p90 to p50, other work on the host has spoilt the times."""

_DIGITS = 4


@dataclass(frozen=True)
class BenchRow:
    """What is known of one graph at one batch, in one way; None is not known or does not apply.

    Args:
        model: The graph: ``classifier``, ``synthesizer`` or ``anchor``.
        variant: ``fp32`` or ``int8``.
        device: Name of a profile; ``host`` for measured rows.
        kind: ``measured``: this host, no limit. ``enforced``: this host under the device's
            memory limit, cores and threads: its times are this host's and say nothing
            of the device's. ``modelled``: time on the device, by a model.
        batch: Samples of one inference.
        wall_ms_p50: One inference, milliseconds; of a modelled row, the model's figure.
        wall_ms_p90: Nine of ten are faster.
        wall_ms_p99: Of hundred, all but one are faster.
        cpu_ms: Median CPU time of one inference, all threads.
        load_ms: Reading the verified file and making the session.
        first_ms: The first inference.
        peak_mb: ``VmHWM`` of the process, MB of 2^20 bytes.
        fits: Whether it ran under the device's limit.
        min_memory_mb: Smallest limit under which it ran here, MB of 2^20 bytes.
        size_bytes: Of the file, and of weights beside it.
        parity_max_rel: Largest relative error against torch, from the manifest.
        argmax_agreement: Share of equal classes, from the manifest.
        verdict: ``ok``, ``noisy``, ``modelled``, or why there are no figures.
        client: Whose bundle.
        architecture: Of its classifier.
        threads: Of one inference.
        limit_mb: The limit that was enforced.
        enforced_by: How it was enforced.
        file_mb: Part of ``peak_mb`` that is pages of files, which a limit does not count
            once anybody else on this host has read them.
        samples: Inferences that were timed.
        low_ms: Lower end of the model's band.
        high_ms: Upper end of it.
        accuracy: Of the classifier, from the manifest.
        quantiles_ms: Wall times at ``quantile_levels`` of the document.
        note: The reason for a verdict, in a line.
    """

    model: str
    variant: str
    device: str
    kind: Kind
    batch: int
    wall_ms_p50: float | None = None
    wall_ms_p90: float | None = None
    wall_ms_p99: float | None = None
    cpu_ms: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    peak_mb: float | None = None
    fits: bool | None = None
    min_memory_mb: float | None = None
    size_bytes: int | None = None
    parity_max_rel: float | None = None
    argmax_agreement: float | None = None
    verdict: str = ""
    client: str = ""
    architecture: str = ""
    threads: int = 1
    limit_mb: float | None = None
    enforced_by: str | None = None
    file_mb: float | None = None
    samples: int | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    accuracy: float | None = None
    quantiles_ms: tuple[float, ...] | None = None
    note: str = ""

    def as_document(self) -> dict[str, Any]:
        """For JSON, figures to four digits: a clock that is read once gives no more."""
        return {
            key: _rounded(value) if key not in _EXACT else value
            for key, value in asdict(self).items()
        }


_EXACT = {"size_bytes", "batch", "threads", "samples", "accuracy", "argmax_agreement", "fits"}
KEYS = tuple(field.name for field in fields(BenchRow))


def blank(subject: BenchSubject, device: str, kind: Kind, threads: int) -> BenchRow:
    """A row with what the manifest says, and no figure yet."""
    manifest = subject.verified.manifest
    return BenchRow(
        model=subject.graph,
        variant=subject.variant,
        device=device,
        kind=kind,
        batch=subject.batch,
        size_bytes=subject.size_bytes,
        parity_max_rel=subject.parity_max_rel,
        argmax_agreement=subject.argmax_agreement,
        client=manifest.client,
        architecture=manifest.architecture,
        threads=threads,
        accuracy=subject.accuracy,
    )


def filled(row: BenchRow, outcome: Outcome) -> BenchRow:
    """A row with what a process measured, or with how it failed."""
    answer = outcome.answer
    if outcome.verdict != "ok" or answer is None or answer.timing is None:
        return replace(row, verdict=outcome.verdict, note=outcome.reason)
    timing = answer.timing
    return replace(
        row,
        wall_ms_p50=timing.percentile(50),
        wall_ms_p90=timing.percentile(90),
        wall_ms_p99=timing.percentile(99),
        cpu_ms=timing.cpu_ms,
        load_ms=timing.load_ms,
        first_ms=timing.first_ms,
        peak_mb=answer.peak_mb,
        file_mb=answer.file_mb,
        samples=timing.samples,
        quantiles_ms=timing.wall_ms,
        verdict=_steadiness(timing),
    )


def _steadiness(timing: BenchTiming) -> str:
    return "noisy" if timing.percentile(90) > NOISY * timing.percentile(50) else "ok"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, tuple):
        return [_rounded(inner) for inner in value]
    return value
