"""Charts of runs and comparisons: accuracy over rounds, per client, on unseen classes, cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvtc_edge.runs.records import ClientRecord, Summary, mean

from . import crowd
from .canvas import (
    CALIBRATED,
    CONTROL,
    DASHED,
    FULL,
    GRID,
    LOCAL,
    OWN,
    QUIET,
    Chart,
    draw,
    legend,
)
from .reading import Run
from .wording import NOTHING, duration, megabytes, percent, short, size

_DOTTED = (0, (1.2, 1.5))


def accuracy_per_round(run: Run) -> Chart | None:
    """Mean accuracy over rounds, clients as thin lines or a band, against both baselines."""
    summary = run.summary
    many = len(summary.clients) > crowd.MANY
    own = [(r.round, 100 * r.accuracy_mean) for r in run.rounds if r.accuracy_mean is not None]
    if not own:
        return None
    calibrated = [
        (r.round, 100 * r.accuracy_calibrated_mean)
        for r in run.rounds
        if r.accuracy_calibrated_mean is not None
    ]
    single: dict[str, list[tuple[int, float]]] = {}
    for record in run.rounds:
        for client in () if many else record.clients:
            if client.accuracy is not None:
                single.setdefault(client.id, []).append((record.round, 100 * client.accuracy))
    local = summary.accuracy_local_only_mean
    if local is None:
        local = mean(r.accuracy_local_only_mean for r in run.rounds)
    control = summary.accuracy_control

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        if many:
            crowd.band(axes, run.rounds)
        for line in single.values():
            axes.plot(*zip(*line, strict=True), color=OWN, alpha=0.28, linewidth=0.9)
        every = max(1, len(own) // 10)
        axes.plot(
            *zip(*own, strict=True), "o-", color=OWN, linewidth=2.4, markersize=4.5,
            markevery=every, label="own model, mean",
        )  # fmt: skip
        if calibrated:
            axes.plot(
                *zip(*calibrated, strict=True), "D-", color=CALIBRATED, linewidth=1.6,
                markersize=4, markevery=every, label="combined, mean",
            )  # fmt: skip
        if control is not None:
            axes.axhline(
                100 * control, color=CONTROL, linestyle=DASHED, linewidth=1.6,
                label="statistics only (no training)",
            )  # fmt: skip
        if local is not None:
            axes.axhline(
                100 * local, color=LOCAL, linestyle=_DOTTED, linewidth=1.8,
                label="local only, mean",
            )  # fmt: skip
        axes.set_ylim(0, 102)
        axes.yaxis.set_major_formatter("{x:.0f}%")
        axes.grid(axis="y")
        axes.set_xlabel("round")
        axes.locator_params(axis="x", integer=True)
        axes.margins(x=0.02)
        legend(figure, axes, columns=4)

    return draw(
        "rounds",
        plot,
        label=f"Accuracy per round. The mean over clients goes from {own[0][1]:.1f}% in round "
        f"{own[0][0]} to {own[-1][1]:.1f}% in round {own[-1][0]}; local only {percent(local)}, "
        f"statistics only (no training) {percent(control)}.",
        caption="Bands: the middle 50 % and 90 % of the clients that a round measured."
        if many
        else "Each thin line is one client.",
        width=FULL,
        height=330,
    )


def accuracy_per_client(summary: Summary) -> Chart | None:
    """Accuracy of each client, local only, own model and combined, as bars; or of a crowd."""
    if len(summary.clients) > crowd.MANY:
        return crowd.accuracies(summary)
    clients = summary.clients
    series = [
        ("local only", LOCAL, [c.accuracy_local_only for c in clients]),
        ("own model", OWN, [c.accuracy for c in clients]),
        ("combined", CALIBRATED, [c.accuracy_calibrated for c in clients]),
    ]
    series = [one for one in series if any(value is not None for value in one[2])]
    if not series:
        return None
    bar = 0.84 / len(series)
    inside: dict[str, Any] = {"color": "white", "fontsize": 7}

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (label, color, values) in enumerate(series):
            places = [row + (index - (len(series) - 1) / 2) * bar for row in range(len(clients))]
            widths = [100 * (value or 0.0) for value in values]
            axes.barh(places, widths, bar * 0.9, color=color, label=label)
            for place, value, width in zip(places, values, widths, strict=True):
                note = NOTHING if value is None else f"{width:.0f}"
                if width > 12:  # inside the bar: a line crosses the outside
                    axes.text(width - 1, place, note, va="center", ha="right", **inside)
                else:
                    axes.text(width + 1, place, note, va="center", color=QUIET, fontsize=7)
        if summary.accuracy_control is not None:
            axes.axvline(
                100 * summary.accuracy_control, color=CONTROL, linestyle=DASHED, linewidth=1.4,
                label="statistics only (no training)",
            )  # fmt: skip
        _percent_rows(axes, clients)
        legend(figure, axes, columns=2)

    told = "; ".join(
        f"{c.id}: local only {percent(c.accuracy_local_only)}, own model {percent(c.accuracy)}, "
        f"combined {percent(c.accuracy_calibrated)}"
        for c in clients
    )
    return draw(
        "clients",
        plot,
        label=f"Accuracy per client. {told}.",
        height=80 + len(clients) * 14 * len(series),
    )


def absent_classes(summary: Summary) -> Chart | None:
    """Accuracy on classes of which a client holds no image: local only, and its own model."""
    if len(summary.clients) > crowd.MANY:
        return crowd.absent_classes_histogram(summary)
    clients = [c for c in summary.clients if c.accuracy_absent_classes is not None]
    if not clients:
        return None

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = range(len(clients))
        after = [100 * (c.accuracy_absent_classes or 0.0) for c in clients]
        known = [
            (row, 100 * c.accuracy_absent_classes_local_only)
            for row, c in enumerate(clients)
            if c.accuracy_absent_classes_local_only is not None
        ]
        for row, before in known:
            axes.plot([before, after[row]], [row, row], color="#A9C6DD", linewidth=3, zorder=1)
        if known:
            axes.scatter(
                [x for _, x in known], [y for y, _ in known], 42, color=LOCAL,
                label="unseen classes, local only", zorder=2,
            )  # fmt: skip
        overall = [(y, 100 * c.accuracy) for y, c in enumerate(clients) if c.accuracy is not None]
        if overall:
            axes.scatter(
                [x for _, x in overall], [y for y, _ in overall], 90, color=OWN, marker="|",
                label="all classes, own model", zorder=2,
            )  # fmt: skip
        axes.scatter(after, rows, 42, color=OWN, label="unseen classes, own model", zorder=3)
        _percent_rows(axes, clients)
        axes.grid(axis="y", color=GRID)
        legend(figure, axes, columns=2)

    told = "; ".join(
        f"{c.id}: {percent(c.accuracy_absent_classes_local_only)} alone, "
        f"{percent(c.accuracy_absent_classes)} after"
        for c in clients
    )
    complete = sum(1 for c in summary.clients if c.class_counts and all(c.class_counts))
    caption = "Accuracy on classes of which the client holds no image."
    if complete:
        caption += f" Clients that hold every class are not drawn ({complete})."
    return draw(
        "unseen",
        plot,
        label=f"Accuracy on classes unseen by the client. {told}.",
        caption=caption,
        height=90 + 42 * len(clients),
    )


def cost(summary: Summary) -> Chart | None:
    """Bytes up, bytes down, time and memory of each client, or of a crowd."""
    if len(summary.clients) > crowd.MANY:
        return crowd.cost(summary)
    clients = summary.clients
    virtual = any(c.seconds_virtual is not None for c in clients)
    seconds = [c.seconds_virtual if virtual else c.seconds for c in clients]
    panels: list[tuple[str, list[float | None], Callable[[float | None], str]]] = [
        ("Bytes up", [c.upload_bytes for c in clients], size),
        ("Bytes down", [c.download_bytes for c in clients], size),
        ("Time (modelled)" if virtual else "Time", seconds, duration),
        ("Peak memory (planned)", [c.peak_memory_mb for c in clients], megabytes),
    ]
    panels = [panel for panel in panels if any(value is not None for value in panel[1])]
    if not panels:
        return None
    # Up and down stand on one scale: a reader compares them by length.
    traffic = max((v or 0.0 for name, vs, _ in panels if "Bytes" in name for v in vs), default=0.0)

    def plot(figure: Figure) -> None:
        for index, (title, values, write) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), index + 1)
            widths = [value or 0.0 for value in values]
            axes.barh(range(len(clients)), widths, 0.62, color=OWN)
            longest = (traffic if "Bytes" in title else max(widths)) or 1.0
            for row, value in enumerate(values):
                text = write(value)
                axes.text(widths[row] + longest * 0.03, row, text, va="center", fontsize=7.5)
            axes.set_xlim(0, longest * 1.45)
            axes.set_title(title)
            axes.set_xticks([])
            axes.spines["bottom"].set_visible(False)
            names = [short(c.id) for c in clients] if index == 0 else []
            axes.set_yticks(range(len(clients)) if index == 0 else [], names)
            axes.set_ylim(len(clients) - 0.4, -0.6)

    told = "; ".join(
        f"{c.id}: {size(c.upload_bytes)} up, {size(c.download_bytes)} down, "
        f"{duration(s)}, {megabytes(c.peak_memory_mb)}"
        for c, s in zip(clients, seconds, strict=True)
    )
    row = 25 * len(clients)
    return draw(
        "cost",
        plot,
        label=f"Cost per client. {told}.",
        width=FULL,
        height=50 + row,
    )


def _percent_rows(axes: Axes, clients: list[ClientRecord]) -> None:
    """One row per client, top down, on a scale of percent."""
    axes.set_xlim(0, 106)
    axes.set_xticks(range(0, 101, 20))
    axes.xaxis.set_major_formatter("{x:.0f}%")
    axes.grid(axis="x")
    axes.set_yticks(range(len(clients)), [short(c.id) for c in clients])
    axes.set_ylim(len(clients) - 0.45, -0.55)
