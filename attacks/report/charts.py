"""The charts of an audit: leakage against the number of records, and against utility."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvtc_edge.report.canvas import CALIBRATED, FULL, LOCAL, OWN, Chart, draw
from fedvtc_edge.report.wording import percent, short

from . import wording
from .document import Audit, FindingRecord
from .tables import records, unique

_DASHED, _DOTTED = (0, (4, 2)), (0, (1.2, 1.5))
_TICKS = (1, 2, 5, 20, 100)
_PANEL = 172  # CSS pixels that one attack is high

Line = list[tuple[float, FindingRecord]]


def against_records(audit: Audit, view: str, index: int) -> Chart | None:
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

    def paint(figure: Figure, narrow: bool) -> None:
        columns = 2 if narrow else min(4, len(attacks))
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
            ncols=2 if narrow else len(handles),
        )  # fmt: skip

    told = "; ".join(
        f"{attack}: "
        + ", ".join(f"{f.group} {percent(f.value)}" for _, f in _both(mine, "identification"))
        for attack, mine in attacks
    )
    return draw(
        f"records{index}",
        paint,
        label=f"Identification against the number of records, {wording.view(view)}. {told}.",
        caption="Bands and bars are confidence intervals. Grey is the same attack on records that "
        "nobody uploaded. Guessing identifies 2% of 50, and has an AUC of 50%.",
        width=FULL,
        height=70 + _PANEL * -(-len(attacks) // 4),
        narrow_height=100 + 150 * -(-len(attacks) // 2),
    )


def _panel(axes: Axes, found: Sequence[FindingRecord]) -> None:
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


def _line(found: Sequence[FindingRecord], metric: str, staged: bool) -> Line:
    sized = [(records(f.group), f) for f in found if f.metric == metric and f.staged == staged]
    return sorted(((x, f) for x, f in sized if x is not None), key=lambda pair: pair[0])


def _both(found: Sequence[FindingRecord], metric: str) -> Line:
    return [*_line(found, metric, True), *_line(found, metric, False)]
