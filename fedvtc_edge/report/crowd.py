"""More clients than a page can show one by one: how they spread, the ends, and a plain list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvtc_edge.runs.records import ClientRecord, RoundRecord, Summary

from .canvas import CALIBRATED, CONTROL, DASHED, FULL, LOCAL, OWN, Chart, draw, legend
from .wording import NOTHING, count, duration, megabytes, percent, size

MANY = 30
"""Clients up to which each has a bar, a line and a row with all of its figures."""

ENDS = 8
"""Clients shown in full from either end of the ranking."""

LISTED = 10_000
"""Clients in the list at most; of more, as many spread evenly over the ranking."""

LEVELS = (0, 5, 25, 50, 75, 95, 100)
"""Percentiles of a spread."""

Values = Sequence[float]
_BINS = 40


@dataclass(frozen=True)
class Spread:
    """One figure over all clients that have it, as text.

    Args:
        clients: How many have it.
        levels: At each percentile of ``LEVELS``.
    """

    name: str
    clients: int
    levels: tuple[str, ...]


@dataclass(frozen=True)
class Crowd:
    """More than ``MANY`` clients of a run.

    Args:
        spreads: Of each figure that any client has.
        weakest: Least accurate first.
        strongest: Most accurate first.
        listed: Rows of the plain list, clients in their order.
        left_out: Clients that are not in it.
        took_part: In words, who took part in the rounds; empty where nobody could stay away.
    """

    spreads: list[Spread]
    weakest: list[ClientRecord]
    strongest: list[ClientRecord]
    listed: Markup
    left_out: int
    took_part: str


def crowd_of(summary: Summary, rounds: Sequence[RoundRecord]) -> Crowd | None:
    """The clients of a run as a crowd; None where each can be shown."""
    if len(summary.clients) <= MANY:
        return None
    ranked = _ranked(summary.clients)
    measured = [client for client in ranked if client.accuracy is not None]
    ends = min(ENDS, len(measured) // 2)
    turns = _turns(summary.clients, rounds)
    listed = _sample(ranked, summary.clients)
    return Crowd(
        _spreads(summary.clients, turns),
        measured[:ends],
        measured[::-1][:ends],
        _rows(listed, turns),
        len(summary.clients) - len(listed),
        _took_part(turns, rounds),
    )


def _ranked(clients: Sequence[ClientRecord]) -> list[ClientRecord]:
    """Least accurate first; those that were never measured before all others."""
    return sorted(clients, key=lambda one: (one.accuracy is not None, one.accuracy or 0.0))


def _sample(ranked: Sequence[ClientRecord], clients: Sequence[ClientRecord]) -> list[ClientRecord]:
    """All clients, or as many as are listed, evenly over the ranking; in their order."""
    if len(clients) <= LISTED:
        return list(clients)
    places = np.linspace(0, len(ranked) - 1, LISTED).astype(int)
    chosen = {ranked[place].id for place in places}
    return [client for client in clients if client.id in chosen]


# ---------------------------------------------------------------- figures

_FIGURES: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("Own model", "accuracy", percent),
    ("Combined", "accuracy_calibrated", percent),
    ("Local only", "accuracy_local_only", percent),
    ("Unseen classes, own model", "accuracy_absent_classes", percent),
    ("Unseen classes, local only", "accuracy_absent_classes_local_only", percent),
    ("At home, own prior, own model", "accuracy_home", percent),
    ("At home, own prior, combined", "accuracy_home_calibrated", percent),
    ("At home, own prior, local only", "accuracy_home_local_only", percent),
    ("Images", "samples", count),
    ("Classes held", "classes_present", count),
    ("Bytes up", "upload_bytes", size),
    ("Bytes down", "download_bytes", size),
    ("Peak memory (planned)", "peak_memory_mb", megabytes),
    ("Time here", "seconds", duration),
    ("Time, modelled on the device", "seconds_virtual", duration),
)


def known(clients: Iterable[ClientRecord], key: str) -> list[float]:
    """Values of a figure of all clients that have it."""
    values = (getattr(client, key) for client in clients)
    return [value for value in values if value is not None]


def _spreads(clients: Sequence[ClientRecord], turns: Counter[str] | None) -> list[Spread]:
    found = [_spread(name, known(clients, key), write) for name, key, write in _FIGURES]
    if turns is not None:
        found.append(_spread("Rounds taken part in", [turns[c.id] for c in clients], count))
    return [spread for spread in found if spread.clients]


def _spread(name: str, values: Values, write: Callable[[float | None], str]) -> Spread:
    if not values:
        return Spread(name, 0, ())
    levels = np.percentile(values, LEVELS, method="nearest")
    return Spread(name, len(values), tuple(write(float(level)) for level in levels))


def _turns(clients: Sequence[ClientRecord], rounds: Sequence[RoundRecord]) -> Counter[str] | None:
    """Rounds that each client took part in; None where the run does not say."""
    told = [one for record in rounds for one in record.clients if one.took_part is not None]
    return Counter(one.id for one in told if one.took_part) if told else None


def _took_part(turns: Counter[str] | None, rounds: Sequence[RoundRecord]) -> str:
    if turns is None:
        return ""
    heard = [sum(one.took_part is True for one in record.clients) for record in rounds]
    span = count(min(heard)) if min(heard) == max(heard) else f"{min(heard)} to {max(heard)}"
    return (
        f"{span} clients took part in each of {len(rounds)} rounds; "
        f"{count(len(turns))} took part at least once."
    )


# ---------------------------------------------------------------- list


def _rows(clients: Sequence[ClientRecord], turns: Counter[str] | None) -> Markup:
    """Table rows without closing tags, which HTML allows: thousands must fit a light page."""
    lines = []
    for one in clients:
        kind = one.architecture or NOTHING
        cells = (
            f"{kind}, {one.device}" if one.device else kind,
            count(one.samples),
            count(one.classes_present),
            percent(one.accuracy_local_only),
            percent(one.accuracy),
            percent(one.accuracy_calibrated),
            percent(one.accuracy_absent_classes),
            size(one.upload_bytes),
            count(one.evaluated_round if turns is None else turns[one.id]),
        )
        lines.append(f"<tr><th>{escape(one.id)}<td>{'<td>'.join(map(_escaped, cells))}")
    return Markup("\n".join(lines))  # noqa: S704 - every cell is escaped


def _escaped(text: str) -> str:
    return str(escape(text))


# ---------------------------------------------------------------- charts


def accuracies(summary: Summary) -> Chart | None:
    """Histogram of the clients' accuracies: local only, own model and combined."""
    series = [
        ("local only", LOCAL, known(summary.clients, "accuracy_local_only")),
        ("own model", OWN, known(summary.clients, "accuracy")),
        ("combined", CALIBRATED, known(summary.clients, "accuracy_calibrated")),
    ]
    measured = len(series[1][2]) or max(len(values) for _, _, values in series)
    if not measured:
        return None
    few = "" if measured == len(summary.clients) else f" {count(measured)} have been measured."

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        _histogram(axes, series)
        if summary.accuracy_control is not None:
            axes.axvline(
                100 * summary.accuracy_control, color=CONTROL, linestyle=DASHED, linewidth=1.4,
                label="statistics only (no training)",
            )  # fmt: skip
        legend(figure, axes, columns=2)

    return draw(
        "clients",
        plot,
        label=f"Clients by accuracy. {_told(series)}.",
        caption=f"{count(len(summary.clients))} clients by accuracy, {100 / _BINS:g} points "
        f"a step.{few}",
    )


def absent_classes_histogram(summary: Summary) -> Chart | None:
    """Histogram of the clients' accuracies on classes that they do not hold."""
    series = [
        ("local only", LOCAL, known(summary.clients, "accuracy_absent_classes_local_only")),
        ("own model", OWN, known(summary.clients, "accuracy_absent_classes")),
    ]
    if not series[1][2]:
        return None

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        _histogram(axes, series)
        legend(figure, axes, columns=2)

    return draw(
        "unseen",
        plot,
        label=f"Clients by accuracy on classes unseen by them. {_told(series)}.",
        caption="Accuracy on classes of which the client holds no image.",
    )


def cost(summary: Summary) -> Chart | None:
    """Histograms of bytes, time and memory over clients."""
    virtual = bool(known(summary.clients, "seconds_virtual"))
    panels: list[tuple[str, list[float], Callable[[float | None], str]]] = [
        ("Bytes up", known(summary.clients, "upload_bytes"), size),
        ("Bytes down", known(summary.clients, "download_bytes"), size),
        ("Time (modelled)", known(summary.clients, "seconds_virtual"), duration)
        if virtual
        else ("Time", known(summary.clients, "seconds"), duration),
        ("Peak memory (planned)", known(summary.clients, "peak_memory_mb"), megabytes),
    ]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None

    def plot(figure: Figure) -> None:
        for index, (title, values, write) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), index + 1)
            top = max(values) or 1.0
            axes.hist(values, bins=[top * step / 20 for step in range(21)], color=OWN)
            axes.set_title(title)
            axes.set_xticks([0, top / 2, top], [write(0), write(top / 2), write(top)])
            axes.set_ylabel("clients" if index == 0 else "")

    told = "; ".join(
        f"{title}: {write(min(values))} to {write(max(values))}" for title, values, write in panels
    )
    return draw("cost", plot, label=f"Clients by cost. {told}.", width=FULL, height=210)


def band(axes: Axes, rounds: Sequence[RoundRecord]) -> None:
    """Percentiles of the clients that a round measured, around the line of the means."""
    told = [(record.round, known(record.clients, "accuracy")) for record in rounds]
    told = [(number, values) for number, values in told if values]
    for low, high, alpha in ((5, 95, 0.13), (25, 75, 0.22)):
        edges = [np.percentile(values, (low, high)) for _, values in told]
        axes.fill_between(
            [number for number, _ in told],
            [100 * lower for lower, _ in edges],
            [100 * upper for _, upper in edges],
            color=OWN, alpha=alpha, linewidth=0,
        )  # fmt: skip


def _histogram(axes: Axes, series: Sequence[tuple[str, str, Values]]) -> None:
    edges = np.linspace(0, 100, _BINS + 1)
    for label, color, values in series:
        if values:
            axes.hist(
                100 * np.asarray(values), bins=edges.tolist(), histtype="stepfilled",
                facecolor=f"{color}40", edgecolor=color, linewidth=1.2, label=label,
            )  # fmt: skip
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter("{x:.0f}%")
    axes.grid(axis="y")
    axes.set_ylabel("clients")


def _told(series: Sequence[tuple[str, str, Values]]) -> str:
    middle = [(label, values) for label, _, values in series if values]
    return "; ".join(
        f"{label}: median {percent(float(np.median(values)))}, "
        f"from {percent(min(values))} to {percent(max(values))}"
        for label, values in middle
    )
