"""The answer of the planner, and what it comes to in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedvtc_edge.models import ImageShape

from .footprint import MB, Footprint
from .profile import Figure


@dataclass(frozen=True)
class Row:
    """One piece of work on one device.

    Args:
        architecture: A registered name.
        batch: Images in a training step, or asked of the bundle at once.
        what: ``train`` with torch, ``infer`` or ``synthesise`` with the bundle.
        mode: ``alternate`` or ``joint``; of a device without a runtime the type of the
            weights; else empty.
        needs: In bytes.
        fits: Whether that is no more than the device has.
    """

    architecture: str
    batch: int
    what: str
    mode: str
    needs: Footprint
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What fits one device.

    Args:
        device: Name of its profile.
        runtime: ``onnxruntime`` or ``none``.
        memory: What it has for us, in MB of 2^20 bytes.
        shape: Of the images.
        classes: Number C of classes.
        samples: Of the client with most.
        batch: ``training.batch``.
        rows: Every combination, the settings' own architectures first.
        limit: The largest batch with which anything trains, and the architecture.
        note: What the figures leave out; empty if nothing.
    """

    device: str
    runtime: str
    memory: Figure
    shape: ImageShape
    classes: int
    samples: int
    batch: int
    rows: tuple[Row, ...]
    limit: tuple[int, str] | None = None
    note: str = ""

    def filled(self, rows: tuple[Row, ...], limit: tuple[int, str] | None) -> Plan:
        """The same plan with its rows."""
        return replace(self, rows=rows, limit=limit)

    @property
    def largest(self) -> Row | None:
        """The largest architecture whose training in turn fits, with its largest batch."""
        return max(self._training(), key=_extent, default=None)

    @property
    def bundle(self) -> tuple[str, int] | None:
        """The largest architecture whose bundle fits with both its graphs, and its bytes."""
        found = [
            (row.needs.weights, row.architecture, total)
            for row in self._rows("infer")
            if (total := self._both(row)) <= self.memory.value * MB
        ]
        return max(found)[1:] if found else None

    @property
    def verdict(self) -> tuple[str, ...]:
        """What can be done, in one line or a few."""
        memory = f"{self.memory.value:g} MB"
        if self.runtime == "none":
            return (self._bare(memory),)
        if self.largest is None:
            least = min(self._rows("train", "alternate"), key=lambda row: row.needs.total)
            training = f"cannot train with torch (needs {_mb(least.needs.total)} MB of {memory})"
            if self.bundle is None:
                least_ = min(self._both(row) for row in self._rows("infer"))
                return (f"{training}; cannot run the bundle ({_mb(least_)} MB)",)
            name, total = self.bundle
            return (f"{training}; can run the bundle ({name}: {_mb(total)} MB)",)
        row = self.largest
        lines = [
            f"largest that fits: train {row.architecture}, batch {row.batch}, {row.mode} "
            f"({_mb(row.needs.total)} of {memory})"
        ]
        own = [fitting for fitting in self._training() if fitting.batch == self.batch]
        if row.batch < self.batch and own:
            at_own = max(own, key=_extent)
            lines.append(
                f"at training.batch = {self.batch}: train {at_own.architecture} "
                f"({_mb(at_own.needs.total)} of {memory})"
            )
        if self.bundle is not None:
            lines.append(f"can run the bundle ({self.bundle[0]}: {_mb(self.bundle[1])} MB)")
        return tuple(lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """The verdict, and what has to be said beside it."""
        return (*self.verdict, *(line for line in (self.warning, self.note) if line))

    @property
    def warning(self) -> str:
        """That ``training.batch`` fits nothing though a smaller one would; empty if not."""
        if self.limit is None or self.limit[0] >= self.batch:
            return ""
        return (
            f"training.batch = {self.batch} fits no architecture; the largest that does is "
            f"{self.limit[0]} ({self.limit[1]})"
        )

    def document(self) -> dict[str, Any]:
        """For ``--json``; bytes are bytes, ``memory_mb`` is in 2^20 of them."""
        largest = self.largest
        return {
            "schema": 1,
            "device": self.device,
            "runtime": self.runtime,
            "memory_mb": self.memory.value,
            "memory_kind": self.memory.kind,
            "image": {"size": self.shape.size, "channels": self.shape.channels},
            "classes": self.classes,
            "samples": self.samples,
            "training_batch": self.batch,
            "largest_batch": self.limit[0] if self.limit else None,
            "kind": "modelled",
            "rows": [
                {
                    "architecture": row.architecture,
                    "batch": row.batch,
                    "what": row.what,
                    "mode": row.mode or None,
                    **asdict(row.needs),
                    "total": row.needs.total,
                    "fits": row.fits,
                }
                for row in self.rows
            ],
            "largest": None
            if largest is None
            else {"architecture": largest.architecture, "batch": largest.batch},
            "bundle": self.bundle[0] if self.bundle else None,
            "verdict": list(self.lines),
        }

    def _training(self) -> list[Row]:
        return [row for row in self._rows("train", "alternate") if row.fits]

    def _rows(self, what: str, mode: str | None = None) -> list[Row]:
        return [row for row in self.rows if row.what == what and mode in (None, row.mode)]

    def _both(self, row: Row) -> int:
        """Bytes of a bundle that classifies as ``row`` does and paints as well."""
        painting = [
            other.needs.working
            for other in self._rows("synthesise")
            if (other.architecture, other.batch) == (row.architecture, row.batch)
        ]
        return row.needs.total + sum(painting)

    def _bare(self, memory: str) -> str:
        nothing = f"nothing of ours runs on {self.device}"
        fitting = [row for row in self.rows if row.fits]
        if not fitting:
            least = min(row.needs.total for row in self.rows)
            return f"{nothing}; no network would fit (needs {_mb(least)} MB of {memory})"
        row = max(fitting, key=_extent)
        return (
            f"{nothing}; weights and activations would fit of {_names(fitting, 'float32')} "
            f"in float32, of {_names(fitting, 'int8')} with int8 weights "
            f"(largest: {row.architecture}, {_mb(row.needs.total)} of {memory})"
        )


def _names(rows: Iterable[Row], mode: str) -> str:
    return ", ".join(row.architecture for row in rows if row.mode == mode) or "none"


def _extent(row: Row) -> tuple[int, str, int]:
    return row.needs.weights, row.architecture, row.batch


def _mb(size: int) -> str:
    value = size / MB
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"
