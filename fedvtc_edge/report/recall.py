"""The chart of recall per class: own models beside statistics only."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvtc_edge.runs.records import Recalls, Summary

from .canvas import CONTROL, FULL, OWN, Chart, draw, legend
from .wording import percent, short

NAMED = 24  #: Beyond this many classes there is no room for their names: they are ranked.
_WEAKEST = 5


def recall_per_class(summary: Summary) -> Chart | None:
    """Recall of every class: mean over own models, the clients' range, and statistics only.

    Up to :data:`NAMED` classes stand in their order, by name; more are sorted by their recall.
    """
    own = summary.recall_mean
    if own is None or not any(value is not None for value in own):
        return None
    names = summary.classes or [str(label) for label in range(len(own))]
    known = [label for label, value in enumerate(own) if value is not None]
    ranked = len(known) > NAMED
    if ranked:
        known.sort(key=lambda label: (-(own[label] or 0.0), label))
    parts = [client.recall for client in summary.clients if client.recall is not None]

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = range(len(known))
        if len(parts) > 1:
            lows, highs = (
                [100 * edge(part[label] or 0.0 for part in parts) for label in known]
                for edge in (min, max)
            )
            axes.vlines(
                places, lows, highs, color=OWN, alpha=0.3, linewidth=1.2 if ranked else 5,
                label="own model, range over clients",
            )  # fmt: skip
        size = 3.0 if ranked else 7.0
        axes.plot(
            places, _values(own, known), "o", color=OWN, markersize=size, label="own model, mean"
        )
        if summary.recall_control is not None:
            axes.plot(
                places, _values(summary.recall_control, known), "x", color=CONTROL,
                markersize=size, label="statistics only (no training)",
            )  # fmt: skip
        _scales(axes, [short(names[label], 12) for label in known], ranked=ranked)
        legend(figure, axes, columns=3)

    told = "; ".join(f"{names[label]}: {percent(own[label])}" for label in known[:NAMED])
    caption = "Share of each class's test images that are recognised."
    if ranked:
        weakest = ", ".join(f"{short(names[n])} {percent(own[n])}" for n in known[-_WEAKEST:])
        told = f"From {percent(own[known[0]])} to {percent(own[known[-1]])}"
        caption += f" Classes are sorted by the own models' mean; weakest: {weakest}."
    return draw(
        "recall",
        plot,
        label=f"Recall per class, mean over own models. {told}.",
        caption=caption,
        width=FULL,
        height=300,
    )


def _values(recall: Recalls, labels: list[int]) -> list[float]:
    return [
        100 * value if (value := recall[label]) is not None else float("nan") for label in labels
    ]


def _scales(axes: Axes, names: list[str], *, ranked: bool) -> None:
    """Percent upwards; classes to the right, by name where there is room for it."""
    axes.set_ylim(-2, 102)
    axes.yaxis.set_major_formatter("{x:.0f}%")
    axes.grid(axis="y")
    axes.margins(x=0.02)
    if ranked:
        axes.set_xlabel("classes, best recognised first")
        axes.locator_params(axis="x", integer=True)
        return
    crowded = sum(map(len, names)) > 70
    axes.set_xticks(
        range(len(names)), names, rotation=35 if crowded else 0, ha="right" if crowded else "center"
    )
