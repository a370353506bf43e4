"""Charts of a comparison: accuracy of each method, and against its costs and the split."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvtc_edge.runs.comparisons import MethodRecord, TableRecord

from .canvas import CALIBRATED, CONTROL, FULL, INK, LOCAL, OWN, QUIET, Chart, draw, legend
from .comparison_words import ranked, title
from .wording import duration, percent, short, size

Point = tuple[float, float, str]
"""Place in the axes' units, and name."""

_LINE = 13
"""Height of a line of labels, in units of the viewBox."""

_KINDS = (
    ("FedVTC", OWN, "o"),
    ("trains nothing", CONTROL, "s"),
    ("exchanges nothing", LOCAL, "v"),
    ("pools all data", QUIET, "^"),
    ("other methods", CALIBRATED, "D"),
)


def _kind(name: str, record: MethodRecord) -> tuple[str, str, str]:
    """Kind of a method, its colour and its marker."""
    if name.startswith("fedvtc"):
        return _KINDS[0]
    if record.ceiling:
        return _KINDS[3]
    if not record.trains:
        return _KINDS[1]
    return _KINDS[2] if record.shares == "nothing" else _KINDS[4]


def accuracy_per_method(table: TableRecord, name: str = "methods") -> Chart:
    """Mean, spread and single seeds of each method, combined and statistics only beside them."""
    names = [one for one in ranked(table) if table.methods[one].refused is None]
    methods = [table.methods[one] for one in names]

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        seeds = [
            (100 * value, row)
            for row, method in enumerate(methods)
            for value in method.per_seed
            if value is not None
        ]
        means = [
            (100 * method.accuracy_mean, row)
            for row, method in enumerate(methods)
            if method.accuracy_mean is not None
        ]
        for x, row in means:
            spread = 100 * (methods[row].accuracy_std or 0.0)
            axes.plot([x - spread, x + spread], [row, row], color=OWN, linewidth=2, alpha=0.7)
        _dots(axes, means, s=62, color=OWN, label="own model, mean ± std", zorder=3)
        # Below the mean, not on it: seeds that agree would hide behind the larger dot.
        low = [(x, row + 0.26) for x, row in seeds]
        _dots(axes, low, s=16, color=OWN, alpha=0.55, linewidths=0, label="own model, one seed")
        combined = [method.accuracy_calibrated for method in methods]
        untrained = [method.accuracy_control for method in methods]
        for label, color, marker, rise, values in (
            ("combined", CALIBRATED, "D", 0.0, combined),
            ("statistics only (no training)", CONTROL, "x", 0.26, untrained),
        ):
            known = [(100 * v, row - rise) for row, v in enumerate(values) if v is not None]
            _dots(axes, known, s=34, color=color, marker=marker, label=label, zorder=4)
        axes.set_xlim(0, 102)
        axes.set_xticks(range(0, 101, 20))
        axes.xaxis.set_major_formatter("{x:.0f}%")
        axes.grid()
        axes.set_yticks(range(len(names)), [short(one) for one in names])
        axes.set_ylim(len(names) - 0.45, -0.55)
        if axes.get_legend_handles_labels()[0]:
            legend(figure, axes, columns=4)

    told = "; ".join(f"{n}: {percent(table.methods[n].accuracy_mean)}" for n in names)
    return draw(
        name,
        plot,
        label=f"Mean accuracy per method. {told}.",
        caption="Large dots are means over seeds with one standard deviation, "
        "small dots are single seeds.",
        width=FULL,
        height=90 + 28 * len(names),
    )


def against_bytes(tables: Sequence[TableRecord]) -> Chart | None:
    """Accuracy against the bytes that a client uploads in the whole run, on a log scale."""
    return _scattered(
        "bytes",
        "Accuracy against bytes that a client uploads in the whole run",
        tables,
        lambda record: record.upload_bytes_per_client,
        size,
    )


def against_seconds(tables: Sequence[TableRecord]) -> Chart | None:
    """Accuracy against the seconds of a run on the machine that compared, on a log scale."""
    return _scattered(
        "seconds",
        "Accuracy against seconds of the whole run",
        tables,
        lambda record: record.seconds,
        duration,
    )


def absent_classes(tables: Sequence[TableRecord]) -> Chart | None:
    """Accuracy on classes of which a client has no image, by method."""
    told = [table for table in tables if _on_absent_classes(table)]
    if not told:
        return None

    def plot(axes: Axes, table: TableRecord) -> None:
        rows = _on_absent_classes(table)
        for row, (name, value) in enumerate(rows):
            _, color, _ = _kind(name, table.methods[name])
            axes.barh(row, 100 * value, 0.66, color=color)
            axes.text(100 * value + 1.5, row, f"{100 * value:.1f}", va="center", fontsize=7)
        axes.set_yticks(range(len(rows)), [short(name) for name, _ in rows], fontsize=7.5)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 110)
        axes.set_xticks(range(0, 101, 25))
        axes.xaxis.set_major_formatter("{x:.0f}%")
        axes.grid(axis="x")

    words = "; ".join(
        f"{title(table)}: "
        + ", ".join(f"{name} {percent(value)}" for name, value in _on_absent_classes(table))
        for table in told
    )
    return _panels("unseen", plot, told, f"Accuracy on unseen classes. {words}.")


def over_alpha(tables: Sequence[TableRecord]) -> Chart | None:
    """Accuracy over α, one panel for each data set with several splits."""
    sets: dict[str | None, list[TableRecord]] = {}
    for table in tables:
        if table.alpha is not None:
            sets.setdefault(table.data, []).append(table)
    several = [
        sorted(found, key=lambda table: table.alpha or 0.0)
        for found in sets.values()
        if len(found) > 1
    ]
    if not several:
        return None
    of_first = {id(found[0]): found for found in several}

    def plot(axes: Axes, first: TableRecord) -> None:
        found = of_first[id(first)]
        ends: list[Point] = []
        names = {name: record for table in found for name, record in table.methods.items()}
        for name, record in names.items():
            line = [
                (table.alpha or 0.0, 100 * known)
                for table in found
                if (known := _accuracy(table, name)) is not None
            ]
            if line:
                _, color, marker = _kind(name, record)
                axes.plot(
                    *zip(*line, strict=True),
                    color=color,
                    marker=marker,
                    markersize=4,
                    linewidth=1.3,
                )
                ends.append((*line[-1], name))
        axes.set_xscale("log")
        alphas = [table.alpha or 0.0 for table in found]
        axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
        axes.minorticks_off()
        axes.set_xlim(min(alphas) / 1.3, max(alphas) * 1.3)
        axes.set_xlabel("Dirichlet α: small means few classes at a client")
        _percent_up(axes)
        _name_beside(axes, ends)

    firsts = [found[0] for found in several]
    return _panels(
        "alphas",
        plot,
        firsts,
        "Accuracy over the Dirichlet α. " + _told([table for found in several for table in found]),
        caption=_KIND_CAPTION,
        titles=[str(table.data) for table in firsts],
    )


_KIND_CAPTION = (
    "Circles: FedVTC. Squares: methods that train nothing. Triangles: nothing is exchanged, or "
    "(upward) all data are pooled. Diamonds: other methods."
)


def _scattered(
    name: str,
    what: str,
    tables: Sequence[TableRecord],
    cost: Callable[[MethodRecord], float | None],
    write: Callable[[float | None], str],
) -> Chart | None:
    """Accuracy against a cost on a log scale; what costs nothing stands at the left edge."""
    shown = [table for table in tables if _costs(table, cost)]
    if not shown:
        return None

    def plot(axes: Axes, table: TableRecord) -> None:
        found = _costs(table, cost)
        positive = [value for value, _, _ in found if value > 0] or [1.0]
        edge = 10 ** (math.floor(math.log10(min(positive))) - 1)
        free = any(value == 0 for value, _, _ in found)
        least = edge if free else min(positive) / 1.5
        points = [(value or edge, accuracy, one) for value, accuracy, one in found]
        for x, y, one in points:
            _, color, marker = _kind(one, table.methods[one])
            axes.scatter([x], [y], 26, color=color, marker=marker, zorder=3)
        axes.set_xscale("log")
        axes.set_xlim(least / 1.5, max(positive) * 1.6)
        first = math.ceil(math.log10(edge * 10 if free else least))
        decades = range(first, math.floor(math.log10(max(positive) * 1.6)) + 1)
        step = max(1, math.ceil(len(decades) / 5))
        ticks = [10.0**decade for decade in decades[::step]]
        labels = [write(tick) for tick in ticks]
        axes.set_xticks(([edge] if free else []) + ticks, (["none"] if free else []) + labels)
        axes.minorticks_off()
        _percent_up(axes)
        _name_beside(axes, points)

    return _panels(name, plot, shown, f"{what}. {_told(shown)}", caption=_KIND_CAPTION)


def _panels(
    name: str,
    plot: Callable[[Axes, TableRecord], None],
    tables: Sequence[TableRecord],
    label: str,
    *,
    caption: str = "",
    titles: Sequence[str] | None = None,
) -> Chart:
    """One panel for each table, two in a row."""
    rows = math.ceil(len(tables) / 2)
    most = max(len(table.methods) for table in tables)
    height = max(230, 70 + _LINE * most)

    def whole(figure: Figure) -> None:
        for place, table in enumerate(tables):
            axes = figure.add_subplot(rows, min(2, len(tables)), place + 1)
            axes.set_title(titles[place] if titles else title(table))
            plot(axes, table)

    return draw(name, whole, label=label, caption=caption, width=FULL, height=height * rows)


def _name_beside(axes: Axes, points: Sequence[Point]) -> None:
    """Names in a column at the right edge, each with a line to its point, none over another."""
    low, high = axes.get_ylim()
    least = (high - low) / max(18, len(points))
    places: list[float] = []
    ordered = sorted(points, key=lambda point: -point[1])
    for _, y, _ in ordered:  # from the top down, each below the one before
        places.append(min(y, places[-1] - least) if places else y)
    if places and (under := low - places[-1]) > 0:  # then up again, where the foot is too low
        floor = places[-1] + under
        for index in range(len(places) - 1, -1, -1):
            places[index] = max(places[index], floor)
            floor = places[index] + least
    for (x, y, name), place in zip(ordered, places, strict=True):
        axes.annotate(
            short(name, 20),
            (x, y),
            (1.03, (place - low) / (high - low)),
            textcoords="axes fraction",
            fontsize=7,
            va="center",
            color=INK,
            arrowprops={"arrowstyle": "-", "color": "#B8C0C8", "linewidth": 0.5},
            annotation_clip=False,
        )


def _percent_up(axes: Axes) -> None:
    axes.set_ylim(0, 102)
    axes.set_yticks(range(0, 101, 20))
    axes.yaxis.set_major_formatter("{x:.0f}%")
    axes.grid()


def _accuracy(table: TableRecord, name: str) -> float | None:
    record = table.methods.get(name)
    return None if record is None else record.accuracy_mean


def _costs(
    table: TableRecord, cost: Callable[[MethodRecord], float | None]
) -> list[tuple[float, float, str]]:
    """Cost, accuracy in percent and name of each method that has both."""
    return [
        (value, 100 * record.accuracy_mean, name)
        for name, record in table.methods.items()
        if (value := cost(record)) is not None and record.accuracy_mean is not None
    ]


def _on_absent_classes(table: TableRecord) -> list[tuple[str, float]]:
    """Methods and their accuracies on unseen classes, highest first."""
    known = [
        (name, record.accuracy_absent_classes)
        for name, record in table.methods.items()
        if record.accuracy_absent_classes is not None
    ]
    return sorted(known, key=lambda one: (-one[1], one[0]))


def _told(tables: Sequence[TableRecord]) -> str:
    """All accuracies, for readers who cannot see the chart."""
    return " ".join(
        f"{title(table)}: "
        + "; ".join(
            f"{name} {percent(table.methods[name].accuracy_mean)}" for name in ranked(table)
        )
        + "."
        for table in tables
    )


def _dots(axes: Axes, places: Sequence[tuple[float, float]], **style: Any) -> None:
    """Dots at (x, y), and no legend entry for none."""
    if places:
        axes.scatter([x for x, _ in places], [y for _, y in places], **style)
