"""``bench.json`` and its page: accuracy against memory, memory against batch, latency."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fedvtc_edge.report.canvas import (
    CALIBRATED,
    CONTROL,
    FULL,
    LOCAL,
    OWN,
    QUIET,
    Chart,
    draw,
    legend,
)
from fedvtc_edge.report.page import fill, write
from fedvtc_edge.report.wording import short
from fedvtc_edge.storage.atomic import write_atomic

from . import wording
from .wording import Record, measured_rows


def render(document: Mapping[str, Any], path: Path) -> Path:
    """Draw ``report.html`` of a bench.

    The page is one file without scripts that loads nothing from anywhere, and the same
    document gives the same bytes.

    Raises:
        RunError: The page cannot be written.
    """
    html = fill(
        "bench.html.j2",
        package=__package__,
        say=wording,
        bench=document,
        measured=wording.measured_rows(document),
        devices=[
            (device, wording.device_rows(document, device["name"]))
            for device in document["devices"]
        ],
        remarks=wording.remarks(document["rows"]),
        front=accuracy_memory(document),
        memory=memory_batch(document),
        latency=latency(document),
    )
    return write(path, html)


def save(document: Mapping[str, Any], folder: Path) -> Path:
    """Write ``bench.json`` and ``report.html``.

    The folder exists; what stood there under these names is replaced. Returns the page's path.

    Raises:
        RunError: The page cannot be written.
    """
    data = json.dumps(document, indent=2, allow_nan=False) + "\n"
    write_atomic(folder / "bench.json", data.encode("ascii"))
    return render(document, folder / "report.html")


_COLOURS = {"classifier": OWN, "synthesizer": CALIBRATED, "anchor": CONTROL}
_LINES = {"fp32": "-", "int8": (0, (4, 1.5))}
_MARKS = {"fp32": "o", "int8": "D"}
_LEAST_SPAN_MB = 10.0
"""A narrower axis would make differences of the last digit look large."""

_LABELLED = 12
"""Points of a front that get a name; more would hide each other."""


def accuracy_memory(document: Record) -> Chart | None:
    """Accuracy of each classifier against the memory that it needs, and the best of both."""
    batch = min((row["batch"] for row in measured_rows(document)), default=1)
    points = [
        (row["min_memory_mb"], 100 * row["accuracy"], row)
        for row in measured_rows(document)
        if row["batch"] == batch
        and row["accuracy"] is not None
        and row["min_memory_mb"] is not None
    ]
    if not points:
        return None
    best = front([(x, y) for x, y, _ in points])

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(*zip(*best, strict=True), color=OWN, linewidth=1.2, alpha=0.6, label="front")
        for variant, mark in _MARKS.items():
            here = [(x, y) for x, y, row in points if row["variant"] == variant]
            if here:
                x, y = zip(*here, strict=True)
                style: dict[str, Any] = {"marker": mark, "label": variant, "alpha": 0.8}
                axes.scatter(x, y, 36, color=OWN, zorder=3, **style)
        if len(points) <= _LABELLED:
            for x, y, row in points:
                name = short(f"{row['client']} {row['architecture']}", 24)
                axes.annotate(
                    name, (x, y), xytext=(6, 3), textcoords="offset points", color=QUIET,
                    fontsize=7,
                )  # fmt: skip
        axes.margins(x=0.25, y=0.15)
        middle, half = sum(axes.get_xlim()) / 2, abs(axes.get_xlim()[1] - axes.get_xlim()[0]) / 2
        half = max(half, _LEAST_SPAN_MB / 2)
        axes.set_xlim(middle - half, middle + half)
        axes.set_xlabel("smallest working memory limit, MB")
        axes.yaxis.set_major_formatter("{x:.0f}%")
        axes.grid()
        legend(figure, axes, columns=3)

    told = "; ".join(
        f"{row['client']} {row['variant']}: {y:.1f}% at {x:.0f} MB" for x, y, row in points
    )
    return draw(
        "front",
        plot,
        label=f"Accuracy against memory. {told}.",
        caption=f"Classifiers at batch {batch}. Limits are found to 1 MB, so points that are "
        "nearer than that are equal.",
    )


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (memory, accuracy) that no other beats in both, least memory first."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def memory_batch(document: Record) -> Chart | None:
    """Memory that each graph needs against its batch, and the lines of the devices."""
    series: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for row in measured_rows(document):
        if row["min_memory_mb"] is not None:
            key = (row["model"], row["variant"], row["client"])
            series.setdefault(key, []).append((row["batch"], row["min_memory_mb"]))
    if not series:
        return None
    limits = [
        (one["name"], one["limit_mb"]) for one in document["devices"] if one["runtime"] != "none"
    ]
    over = [
        (row["batch"], row["limit_mb"])
        for row in document["rows"]
        if row["kind"] == "enforced" and row["verdict"] == "oom"
    ]

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        seen: set[tuple[str, str]] = set()
        for (model, variant, _), values in series.items():
            label = None if (model, variant) in seen else f"{model} {variant}"
            seen.add((model, variant))
            axes.plot(
                *zip(*values, strict=True), color=_COLOURS[model], linestyle=_LINES[variant],
                marker=_MARKS[variant], markersize=4, linewidth=1.5, alpha=0.8, label=label,
            )  # fmt: skip
        for name, limit in limits:
            axes.axhline(limit, color=LOCAL, linestyle=(0, (1.2, 1.5)), linewidth=1.2)
            axes.annotate(
                short(name), (1, limit), xycoords=("axes fraction", "data"), ha="right",
                xytext=(-2, 2), textcoords="offset points", color=QUIET, fontsize=7,
            )  # fmt: skip
        if over:
            x, y = zip(*over, strict=True)
            axes.scatter(x, y, 42, color=LOCAL, marker="x", label="does not fit", zorder=4)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        batches = sorted({batch for values in series.values() for batch, _ in values})
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("batch")
        axes.set_ylabel("MB")
        axes.margins(x=0.08, y=0.1)
        axes.grid(axis="y")
        legend(figure, axes, columns=3)

    told = "; ".join(
        f"{client} {model} {variant}: "
        + ", ".join(f"{memory:.0f} MB at {batch}" for batch, memory in values)
        for (model, variant, client), values in series.items()
    )
    lines = "; ".join(f"{name} has {limit:g} MB" for name, limit in limits)
    return draw(
        "memory",
        plot,
        label=f"Smallest working memory limit against batch. {told}. {lines}",
        caption="The smallest limit under which it runs here; dotted: what a device has.",
    )


def latency(document: Record) -> Chart | None:
    """Share of inferences that are done within a time, on this host."""
    batch = min((row["batch"] for row in measured_rows(document)), default=1)
    rows = [row for row in measured_rows(document) if row["batch"] == batch and row["quantiles_ms"]]
    if not rows:
        return None
    levels = document["quantile_levels"]

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        seen: set[tuple[str, str]] = set()
        for row in rows:
            kind = (row["model"], row["variant"])
            axes.plot(
                row["quantiles_ms"], levels, color=_COLOURS[row["model"]],
                linestyle=_LINES[row["variant"]], linewidth=1.6, alpha=0.8,
                label=None if kind in seen else " ".join(kind),
            )  # fmt: skip
            seen.add(kind)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("milliseconds, one inference")
        axes.set_ylim(0, 102)
        axes.yaxis.set_major_formatter("{x:.0f}%")
        axes.grid()
        legend(figure, axes, columns=5)

    told = "; ".join(
        f"{row['client']} {row['model']} {row['variant']}: p50 {row['wall_ms_p50']:g} ms, "
        f"p99 {row['wall_ms_p99']:g} ms"
        for row in rows
    )
    return draw(
        "latency",
        plot,
        label=f"Distribution of latency on this host. {told}.",
        caption=f"This host, no limit, batch {batch}; one line per graph and client. "
        "Not a device's latency.",
        width=FULL,
        height=320,
    )
