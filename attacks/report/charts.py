"""Charts of an audit: leakage against the number of records, and against utility."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvtc_edge.report.canvas import CALIBRATED, CONTROL, FULL, LOCAL, OWN, Chart, draw
from fedvtc_edge.report.wording import percent, short

from ..scoring.findings import Finding
from . import wording
from .document import AuditDocument, PointRecord
from .wording import records, unique

_DASHED, _DOTTED = (0, (4, 2)), (0, (1.2, 1.5))
_TICKS = (1, 2, 5, 20, 100)
_PANEL = 172  # CSS pixels that one attack is high

Line = list[tuple[float, Finding]]


def against_records(audit: AuditDocument, view: str, index: int) -> Chart | None:
    """Identification and AUC over n, one small plot per attack; None without two values of n."""
    found = [f for f in audit.findings if f.view == view and f.value is not None]
    attacks = []
    for attack in unique(f.attack for f in found if f.metric == "identification"):
        mine = [f for f in found if f.attack == attack]
        if (
            len({x for staged in (True, False) for x, _ in _line(mine, "identification", staged)})
            > 1
        ):
            attacks.append((attack, mine))
    if not attacks:
        return None
    most = max(x for _, mine in attacks for x, _ in _both(mine, "identification"))

    def plot(figure: Figure) -> None:
        columns = min(4, len(attacks))
        handles: dict[str, Any] = {}
        for place, (attack, mine) in enumerate(attacks):
            axes = figure.add_subplot(-(-len(attacks) // columns), columns, place + 1)
            _panel(axes, mine)
            axes.set_title(short(attack, 20))
            axes.set_xlim(0.8, max(most, 2.0) * 1.25)
            if place % columns:
                axes.set_yticklabels([])
            if place >= len(attacks) - columns:
                axes.set_xlabel("records n")
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(
            list(handles.values()), list(handles), loc="outside upper left",
            ncols=len(handles),
        )  # fmt: skip

    told = "; ".join(
        f"{attack}: "
        + ", ".join(f"{f.group} {percent(f.value)}" for _, f in _both(mine, "identification"))
        for attack, mine in attacks
    )
    return draw(
        f"records{index}",
        plot,
        label=f"Identification against the number of records, {wording.view(view)}. {told}.",
        caption="Bands and bars are confidence intervals. Grey is the same attack on records that "
        "nobody uploaded. Guessing identifies 2% of 50, and has an AUC of 50%.",
        width=FULL,
        height=70 + _PANEL * -(-len(attacks) // 4),
    )


def _panel(axes: Axes, found: Sequence[Finding]) -> None:
    for staged in (True, False):
        _aucs(axes, _line(found, "auc", staged), staged)
        line = _line(found, "identification", staged)
        if not line:
            continue
        style, marker = ("-", "o") if staged else (_DASHED, "s")
        label = "identified, staged" if staged else "identified, in the run"
        xs, ys = [x for x, _ in line], [100 * (f.value or 0.0) for _, f in line]
        nulls = [(x, 100 * f.null) for x, f in line if f.null is not None]
        if nulls:
            axes.plot(
                *zip(*nulls, strict=True), color=LOCAL, linestyle=_DOTTED, linewidth=1.6,
                label="identified, null", zorder=1,
            )  # fmt: skip
        axes.plot(
            xs, ys, color=OWN, linestyle=style, marker=marker, markersize=4, linewidth=1.6,
            markerfacecolor=OWN if staged else "white", label=label, zorder=3,
        )  # fmt: skip
        lows = [100 * (f.low if f.low is not None else f.value or 0.0) for _, f in line]
        highs = [100 * (f.high if f.high is not None else f.value or 0.0) for _, f in line]
        if staged:
            axes.fill_between(xs, lows, highs, color=OWN, alpha=0.16, linewidth=0)
        else:
            axes.vlines(xs, lows, highs, color=OWN, linewidth=1, alpha=0.7)
    axes.set_xscale("log")
    axes.set_xticks(_TICKS, [str(tick) for tick in _TICKS])
    axes.minorticks_off()
    axes.set_ylim(-3, 104)
    axes.set_yticks(range(0, 101, 25), [f"{tick}%" for tick in range(0, 101, 25)])
    axes.grid(axis="y")


def _aucs(axes: Axes, line: Line, staged: bool) -> None:
    if line:
        axes.plot(
            [x for x, _ in line], [100 * (f.value or 0.0) for _, f in line],
            color=CALIBRATED, linestyle="-" if staged else _DASHED, linewidth=1.1,
            marker="^", markersize=3, label="AUC", zorder=2,
        )  # fmt: skip


def _line(found: Sequence[Finding], metric: str, staged: bool) -> Line:
    sized = [(records(f.group), f) for f in found if f.metric == metric and f.staged == staged]
    return sorted(((x, f) for x, f in sized if x is not None), key=lambda pair: pair[0])


def _both(found: Sequence[Finding], metric: str) -> Line:
    return [*_line(found, metric, True), *_line(found, metric, False)]


_COLORS = (OWN, CALIBRATED, CONTROL, LOCAL, "#8A3FA0", "#7A5C00")
_MARKERS = {"mean": "s", "pooled": "o", "class": "D"}

Place = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points of one noise and one kind of moments, one per smallest class count."""

    epsilon: float | None
    moments: str
    color: str
    points: list[tuple[Place, PointRecord]]

    @property
    def end(self) -> Place:
        """The right end of its line, intervals included, and how high its last marker is."""
        place, _ = max(self.points, key=lambda one: one[0][0])
        highs = (100 * (point.high or 0.0) for _, point in self.points)
        return max([place[0] + 2, *highs]), place[1]


def tradeoff(audit: AuditDocument) -> Chart | None:
    """Chart of identification against accuracy from statistics only; None without points."""
    series = _series(audit.curve)
    if not series:
        return None
    points = [point for one in series for _, point in one.points]
    heights = [place[1] for one in series for place, _ in one.points]
    room = 1.24 * max(max(heights) - min(heights), 5.0)

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        middle = (max(heights) + min(heights)) / 2
        axes.set_ylim(middle - room / 2, middle + room / 2)
        places = beside([one.end for one in series], room * 0.055)
        for one, (x, y) in zip(series, places, strict=True):
            _draw(axes, one)
            name = wording.setting(one.epsilon, one.moments)
            text = axes.text(x + 1.5, y, short(name, 44), color=one.color, va="center", zorder=5)
            text.set_in_layout(False)  # a long name is cut, and does not squeeze the plot
        right = max(x for x, _ in places)
        axes.set_xlim(-2, right + 50)
        axes.set_xticks([tick for tick in range(0, 101, 20) if tick <= max(right, 20) + 5])
        axes.xaxis.set_major_formatter("{x:.0f}%")
        axes.yaxis.set_major_formatter("{x:.0f}%")
        axes.grid()
        axes.set_xlabel("members identified (less is better)")
        axes.set_ylabel("accuracy, statistics only (more is better)")

    told = "; ".join(
        f"{wording.setting(point.epsilon, point.moments)}, {point.minimum} records or more: "
        f"{percent(point.identification)} identified, {percent(point.accuracy)} accurate"
        for point in points
    )
    return draw(
        "tradeoff",
        plot,
        label=f"Leakage against utility. {told}.",
        caption="Each marker is a setting; the number in it is the smallest class that a client "
        "uploads, and the members identified are those of such classes. Lines across are 95% "
        "intervals. Read off the highest marker that lies as far left as you need: what lies "
        "right of it leaks more, what lies below it is less accurate. Guessing identifies 2%.",
        width=FULL,
        height=440,
    )


def beside(ends: Sequence[Place], gap: float) -> list[Place]:
    """Places of labels: right of the ends of their lines, none nearer to another than ``gap``.

    Those that would crowd each other stand in one column, right of all of their ends.
    """
    order = sorted(range(len(ends)), key=lambda place: ends[place][1])
    columns: list[list[int]] = []
    for place in order:
        if columns and ends[place][1] - ends[columns[-1][-1]][1] < gap:
            columns[-1].append(place)
        else:
            columns.append([place])
    made = list(ends)
    for column in columns:
        x = max(ends[place][0] for place in column)
        middle = sum(ends[place][1] for place in column) / len(column)
        for rank, place in enumerate(column):
            made[place] = (x, middle + (rank - (len(column) - 1) / 2) * gap)
    return made


def _series(curve: Sequence[PointRecord]) -> list[Series]:
    lines: dict[tuple[float | None, str], list[tuple[Place, PointRecord]]] = {}
    for point in sorted(curve, key=lambda point: point.minimum):
        if point.identification is not None and point.accuracy is not None:
            place = (100 * point.identification, 100 * point.accuracy)
            lines.setdefault((point.epsilon, point.moments), []).append((place, point))
    return [
        Series(*key, _COLORS[number % len(_COLORS)], line)
        for number, (key, line) in enumerate(lines.items())
    ]


def _draw(axes: Axes, series: Series) -> None:
    color, marker = series.color, _MARKERS.get(series.moments, "o")
    xs, ys = zip(*(place for place, _ in series.points), strict=True)
    axes.plot(xs, ys, color=color, linewidth=1.2, alpha=0.6, zorder=2)
    for (x, y), point in series.points:
        if point.low is not None and point.high is not None:
            axes.hlines(y, 100 * point.low, 100 * point.high, color=color, linewidth=1, alpha=0.45)
        axes.plot([x], [y], marker=marker, markersize=11, color=color, zorder=3)
        axes.text(
            x, y, str(point.minimum), color="white", fontsize=6.5, ha="center",
            va="center_baseline", zorder=4, fontweight="bold",
        )  # fmt: skip
