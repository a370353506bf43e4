"""Charts by Matplotlib as small, repeatable, self-contained inline SVG.

Nothing here touches pyplot: a report drawn inside someone's notebook must not
disturb their figures.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# After Okabe and Ito's colours (two darkened for contrast), told apart under every
# common colour blindness; each also has its own line style or marker, so no meaning
# hangs on colour alone. style.css uses the same four for the same four things.
OWN, CALIBRATED, CONTROL, LOCAL = "#0072B2", "#B84E00", "#00795A", "#6B7280"
INK, QUIET, GRID = "#1F2933", "#52606D", "#E1E5EA"

DASHED = (0, (5, 2))
"""Line of a baseline that crosses the whole plot."""

HALF, FULL = 520, 880
"""Units of a viewBox that is beside another chart or across the page: about CSS pixels."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # real text: sharp, small, searchable
    "text.parse_math": False,  # a client may be called $x$
    "font.size": 8.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": "#9AA5B1",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.borderaxespad": 0.2,
    "legend.columnspacing": 1.4,
}


@dataclass(frozen=True)
class Chart:
    """An inline drawing with a viewBox, which the page scales, and what it says."""

    svg: Markup
    caption: str


def draw(
    name: str,
    plot: Callable[[Figure], None],
    *,
    label: str,
    caption: str = "",
    width: int = HALF,
    height: int = 300,
) -> Chart:
    """Draw a chart.

    Args:
        name: Letters that prefix every id, so that charts can share one page.
        label: What the chart shows, for readers who cannot see it.
        caption: What the chart says, for everyone.
        width: Of the viewBox, in about CSS pixels.
    """
    settings = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # Letters are drawn by the browser's fonts; that ours lacks one is no concern.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width / 96, height / 96), layout="constrained")
        FigureCanvasSVG(figure)
        plot(figure)
        file = io.StringIO()
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return Chart(Markup(_inline(file.getvalue(), name, label)), caption)  # noqa: S704 - see _inline


def legend(figure: Figure, axes: Axes, *, columns: int) -> None:
    """Put one legend above the plot, baselines that cross the whole plot last."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda place: "statistics only" in labels[place])
    figure.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        loc="outside upper left",
        ncols=columns,
    )


def _inline(svg: str, prefix: str, label: str) -> str:
    """The drawing alone, fit to stand in a page with others.

    Matplotlib escapes all text it writes. What goes: the XML head and comments,
    namespaces (an HTML parser knows them), a style rule that would reach the whole
    page; and ids get a prefix, for two charts number their parts alike.
    """
    (view,) = re.findall(r'viewBox="([^"]*)"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", body)
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="{view}">{body}'.rstrip()
