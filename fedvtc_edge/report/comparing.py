"""The dot plot of a comparison: every seed, every method, one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .canvas import CALIBRATED, CONTROL, FULL, OWN, Chart, draw, legend
from .records import Comparison
from .wording import percent, ranked, short


def accuracy_per_method(comparison: Comparison) -> Chart:
    """Mean, spread and single seeds of each method; its calibrated form and its control."""
    names = ranked(comparison)
    methods = [comparison.methods[name] for name in names]

    def paint(figure: Figure, narrow: bool) -> None:
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
        _dots(axes, means, s=62, color=OWN, label="f_k, mean ± std", zorder=3)
        # Below the mean, not on it: seeds that agree would hide behind the larger dot.
        low = [(x, row + 0.26) for x, row in seeds]
        _dots(axes, low, s=16, color=OWN, alpha=0.55, linewidths=0, label="f_k, one seed")
        for label, color, marker, rise, values in (
            ("calibrated", CALIBRATED, "D", 0.0, [m.accuracy_calibrated for m in methods]),
            ("control, untrained", CONTROL, "x", 0.26, [m.accuracy_control for m in methods]),
        ):
            known = [(100 * v, row - rise) for row, v in enumerate(values) if v is not None]
            _dots(axes, known, s=34, color=color, marker=marker, label=label, zorder=4)
        axes.set_xlim(0, 102)
        axes.set_xticks(range(0, 101, 20))
        axes.xaxis.set_major_formatter("{x:.0f}%")
        axes.grid()
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        axes.set_ylim(len(names) - 0.45, -0.55)
        if axes.get_legend_handles_labels()[0]:
            legend(figure, axes, columns=2 if narrow else 4)

    told = "; ".join(f"{n}: {percent(comparison.methods[n].accuracy_mean)}" for n in names)
    return draw(
        "methods",
        paint,
        label=f"Mean accuracy per method. {told}.",
        caption="Large dots are means over seeds with one standard deviation, "
        "small dots are single seeds.",
        width=FULL,
        height=90 + 42 * len(names),
        narrow_height=110 + 42 * len(names),
    )


def _dots(axes: Axes, places: Sequence[tuple[float, float]], **style: Any) -> None:
    """Dots at (x, y), and no legend entry for none."""
    if places:
        axes.scatter([x for x, _ in places], [y for _, y in places], **style)
