"""Subjects of a bench (every graph, variant and batch) and their rows of figures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from fedvtc_edge.errors import BundleError
from fedvtc_edge.export.manifest import GraphName, Variant
from fedvtc_edge.export.verification import Verified

from .child import BenchTiming
from .launching import Outcome

Kind = Literal["measured", "enforced", "modelled"]

HOST = "host"
NOISY = 3.0
"""Above this ratio of p90 to p50, other work on the host has spoilt the times."""

_DIGITS = 4


@dataclass(frozen=True)
class BenchSubject:
    """One graph file of a bundle at one batch, and what the manifest says of it."""

    verified: Verified
    graph: GraphName
    variant: Variant
    batch: int

    @property
    def name(self) -> str:
        """Label in progress and plots."""
        manifest = self.verified.manifest
        return f"{manifest.client} {self.graph} {self.variant} x{self.batch}"

    @property
    def file(self) -> str:
        """Name of the ONNX file in the bundle."""
        name: str = self.verified.manifest.graphs[self.graph].variants[self.variant]
        return name

    @property
    def sha256(self) -> str:
        """SHA-256 of the ONNX file."""
        digest: str = self.verified.manifest.file(self.file).sha256
        return digest

    @property
    def size_bytes(self) -> int:
        """Bytes of the ONNX file and of weights that lie beside it."""
        size: int = self.verified.manifest.size_of(self.file)
        return size

    @cached_property
    def parity_max_rel(self) -> float | None:
        """Largest relative error against torch; None for pixels, and for int8."""
        errors = [report.get("max_relative_error") for report in self._reports]
        return max((e for e in errors if isinstance(e, float | int)), default=None)

    @cached_property
    def argmax_agreement(self) -> float | None:
        """Share of samples in the same class: fp32 against torch, int8 against fp32."""
        if self.variant == "int8":
            share: float | None = self.verified.manifest.int8.get(self.graph, {}).get("agreement")
            return share
        shares = [report.get("argmax_agreement") for report in self._reports]
        return min((s for s in shares if isinstance(s, float | int)), default=None)

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the classifier on the run's evaluation images, as export measured it."""
        if self.graph != "classifier":
            return None
        key = "classifier_int8" if self.variant == "int8" else "classifier"
        value = self.verified.manifest.accuracy.get(key)
        return float(value) if isinstance(value, float | int) else None

    @property
    def _reports(self) -> list[dict[str, object]]:
        """The manifest's parity reports of the graph: one, or one per kind of input."""
        found = self.verified.manifest.parity.get(self.graph)
        if self.variant == "int8" or not isinstance(found, dict):
            return []
        nested = [report for report in found.values() if isinstance(report, dict)]
        return nested or [found]


def subjects(
    bundles: Sequence[Verified],
    batches: Sequence[int],
    *,
    graphs: Collection[str] = (),
    variants: Collection[str] = (),
) -> list[BenchSubject]:
    """Every graph, variant and batch of the bundles; empty ``graphs`` or ``variants`` take all.

    Raises:
        BundleError: Nothing is left.
    """
    found = [
        BenchSubject(verified, name, variant, batch)
        for verified in bundles
        for name, graph in verified.manifest.graphs.items()
        if not graphs or name in graphs
        for variant in graph.variants
        if not variants or variant in variants
        for batch in batches
    ]
    if not found:
        wanted = " ".join([*graphs, *variants])
        raise BundleError(
            f"no bundle holds a graph of {wanted}", hint="leave --graph or --variant out"
        )
    return found


@dataclass(frozen=True)
class BenchRow:
    """Figures of one graph at one batch, found in one way; None: unknown or not applicable.

    Args:
        model: The graph: ``classifier``, ``synthesizer`` or ``anchor``.
        variant: ``fp32`` or ``int8``.
        device: Name of a device profile; ``host`` for measured rows.
        kind: ``measured``: this host, no limit. ``enforced``: this host under the device's
            memory limit, cores and threads: its times are this host's and say nothing
            of the device's. ``modelled``: time on the device, by a model.
        wall_ms_p50: One inference, milliseconds; of a modelled row, the model's figure.
        wall_ms_p99: Of hundred, all but one are faster.
        cpu_ms: Median CPU time of one inference, all threads.
        load_ms: Reading the verified file and making the session.
        peak_mb: ``VmHWM`` of the process, MB of 2^20 bytes.
        fits: Whether it ran under the device's limit.
        min_memory_mb: Smallest limit under which it ran here, MB of 2^20 bytes.
        size_bytes: Of the file, and of weights beside it.
        parity_max_rel: Largest relative error against torch, from the manifest.
        argmax_agreement: Share of equal classes, from the manifest.
        verdict: ``ok``, ``noisy``, ``modelled``, or why there are no figures.
        limit_mb: The limit that was enforced, MB of 2^20 bytes.
        enforced_by: ``cgroup v1``, ``cgroup v2`` or ``RLIMIT_DATA``.
        file_mb: Part of ``peak_mb`` that is pages of files, which a limit does not count
            once anybody else on this host has read them.
        low_ms: Lower end of the model's band; ``high_ms`` is the upper one.
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
        """Row for JSON, figures to four digits: a clock that is read once gives no more."""
        return {
            key: _rounded(value) if key not in _EXACT else value
            for key, value in asdict(self).items()
        }


_EXACT = {"size_bytes", "batch", "threads", "samples", "accuracy", "argmax_agreement", "fits"}
KEYS = tuple(field.name for field in fields(BenchRow))


def blank(subject: BenchSubject, device: str, kind: Kind, threads: int) -> BenchRow:
    """Row with what the manifest says, and no figure yet."""
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
    """Row with what a process measured, or with how it failed."""
    reply = outcome.reply
    if outcome.verdict != "ok" or reply is None or reply.timing is None:
        return replace(row, verdict=outcome.verdict, note=outcome.reason)
    timing = reply.timing
    return replace(
        row,
        wall_ms_p50=timing.percentile(50),
        wall_ms_p90=timing.percentile(90),
        wall_ms_p99=timing.percentile(99),
        cpu_ms=timing.cpu_ms,
        load_ms=timing.load_ms,
        first_ms=timing.first_ms,
        peak_mb=reply.peak_mb,
        file_mb=reply.file_mb,
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
