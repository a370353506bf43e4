"""Figures of a bench in words, for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .rows import NOISY

Record = Mapping[str, Any]

NOTHING = "-"

MEASURED = "Times and memory of this host, without a limit."
ENFORCED = (
    "Whether it fits: run on this host under the device's memory limit, cores and threads. "
    "The times beside it are this host's, for a limited process here is not a slow device; "
    "only the modelled time speaks of the device."
)
NOISE = f"noisy: p90 is above {NOISY:g} times p50, other work disturbed the measurement"


def milliseconds(value: float | None) -> str:
    """Three digits at every size: ``0.0397``, ``1.08``, ``327``."""
    return NOTHING if value is None else _digits(value)


def megabytes(value: float | None) -> str:
    """MB of 2^20 bytes, whole ones where there are many."""
    return NOTHING if value is None else (f"{value:.1f}" if value < 1000 else f"{value:.0f}")


def small(value: float | None) -> str:
    """A relative error."""
    return NOTHING if value is None else f"{value:.1e}"


def yes(value: bool | None) -> str:
    """True if it fits."""
    return {True: "yes", False: "NO", None: NOTHING}[value]


def modelled(row: Record | None) -> str:
    """A modelled time with its band, or why there is none."""
    if row is None:
        return NOTHING
    if row["wall_ms_p50"] is None:
        return str(row["verdict"])
    low, middle, high = (_digits(row[key]) for key in ("low_ms", "wall_ms_p50", "high_ms"))
    return f"~{middle} ({low} to {high})"


def device(told: Record, document: Record) -> str:
    """Limits of a device that were enforced here, in a line."""
    if told["runtime"] == "none":
        return "no onnxruntime for it, so nothing fits and nothing was run"
    cores = min(told["cores"], document["host"]["cores"])
    return (
        f"{told['limit_mb']:g} MB ({told['limit_is']}) enforced here, on {cores} "
        f"core{'' if cores == 1 else 's'} where it has {told['cores']}; "
        "times of the device are modelled"
    )


def model_check(check: Record | None) -> str:
    """Result of the latency model on this host."""
    if check is None:
        return "fewer than five networks: too few to check the latency model here"
    band = check["band"]
    return (
        f"latency model checked here: {check['within']} of {check['graphs']} graphs "
        f"within {1 / band:g} to {band:g} times measured, each left out of the fit"
    )


def enforcement(document: Record) -> str:
    """Means by which limits were enforced, and what they do not count."""
    least = document["baseline_mb"]
    alone = "" if least is None else f"; the runtime alone needs {least:.0f} MB"
    return (
        f"memory limits by {document['enforced_by']}{alone}; library pages that this host has "
        "read before are not counted (file_mb)"
    )


def host(document: Record) -> str:
    """The machine in a line."""
    told = document["host"]
    return (
        f"{told['cpu']}, {told['cores']} cores, {told['memory_mb']} MB, "
        f"onnxruntime {told['onnxruntime']}, load average {told['load_average']:g}"
    )


def measured_rows(document: Record) -> list[Record]:
    """Rows of this host."""
    return [row for row in document["rows"] if row["kind"] == "measured"]


def device_rows(document: Record, device: str) -> list[tuple[Record, Record | None]]:
    """Each enforced row of a device beside the modelled one of the same graph."""
    found: dict[str, list[Record]] = {
        kind: [row for row in document["rows"] if (row["device"], row["kind"]) == (device, kind)]
        for kind in ("enforced", "modelled")
    }
    modelled_by = {_identity(row): row for row in found["modelled"]}
    return [(row, modelled_by.get(_identity(row))) for row in found["enforced"]]


def remarks(rows: Sequence[Record]) -> list[str]:
    """Every note once, in order."""
    return list(dict.fromkeys(row["note"] for row in rows if row["note"]))


def _identity(row: Record) -> tuple[Any, ...]:
    return row["client"], row["model"], row["variant"], row["batch"]


def _digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:#.3g}" if value >= 1e-3 else f"{value:.5f}"
