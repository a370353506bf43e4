"""What is measured: every graph of every bundle, in every variant, at every batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedvtc_edge.errors import BundleError
from fedvtc_edge.export.manifest import File, GraphName, Variant
from fedvtc_edge.export.verification import Verified


@dataclass(frozen=True)
class BenchSubject:
    """One file of a bundle at one batch, and what its manifest says of it.

    Args:
        verified: The bundle.
        graph: Its graph.
        variant: Which of the graph's files.
        batch: Samples of one inference.
    """

    verified: Verified
    graph: GraphName
    variant: Variant
    batch: int

    @property
    def name(self) -> str:
        """For progress and plots."""
        manifest = self.verified.manifest
        return f"{manifest.client} {self.graph} {self.variant} x{self.batch}"

    @property
    def file(self) -> str:
        """Name of the ONNX file."""
        name: str = self.verified.manifest.graphs[self.graph].variants[self.variant]
        return name

    @property
    def sha256(self) -> str:
        """Of the ONNX file."""
        digest: str = self.verified.manifest.files[self.file].sha256
        return digest

    @property
    def size_bytes(self) -> int:
        """Of the ONNX file and of weights that lie beside it."""
        files: dict[str, File] = self.verified.manifest.files
        return sum(files[name].size for name in (self.file, f"{self.file}.data") if name in files)

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
        """Of the classifier on the run's evaluation images, as export measured it."""
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
    """All that is to be measured, bundle by bundle.

    Args:
        bundles: Verified ones.
        batches: Samples of one inference.
        graphs: Only these; empty takes all.
        variants: Only these; empty takes all.

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
