"""Matplotlib as a maker of small, repeatable, self-contained inline SVG.

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

#: Widths in CSS pixels: beside another chart, across the page, on a phone.
HALF, FULL, PHONE = 520, 1064, 326

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
    """One chart twice: for a wide page and for a phone, both with letters of one size."""

    wide: Markup
    narrow: Markup
    caption: str


Painter = Callable[[Figure, bool], None]


def draw(
    name: str,
    paint: Painter,
    *,
    label: str,
    caption: str = "",
    width: int = HALF,
    height: int = 300,
    narrow_height: int | None = None,
) -> Chart:
    """Draws a chart at both widths.

    Args:
        name: Letters that prefix every id, so that charts can share one page.
        paint: Fills a figure; its second argument is true on a phone.
        label: What the chart shows, for readers who cannot see it.
        caption: What the chart says, for everyone.
        width: Wide version's width, CSS pixels.
        height: Wide version's height, CSS pixels.
        narrow_height: Phone version's height; ``height`` if not given.
    """
    wide = _svg(f"{name}-w", paint, label, width, height, narrow=False)
    narrow = _svg(f"{name}-n", paint, label, PHONE, narrow_height or height, narrow=True)
    return Chart(wide, narrow, caption)


def legend(figure: Figure, axes: Axes, *, columns: int) -> None:
    """One legend above the plot, baselines that cross the whole plot last."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda place: "control" in labels[place])
    figure.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        loc="outside upper left",
        ncols=columns,
    )


def _svg(
    prefix: str, paint: Painter, label: str, width: int, height: int, *, narrow: bool
) -> Markup:
    settings = {**_STYLE, "svg.hashsalt": prefix}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # Letters are drawn by the browser's fonts; that ours lacks one is no concern.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width / 96, height / 96), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure, narrow)
        file = io.StringIO()
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return Markup(_inline(file.getvalue(), prefix, label, width, height))  # noqa: S704 - see _inline


def _inline(svg: str, prefix: str, label: str, width: int, height: int) -> str:
    """The drawing alone, fit to stand in a page with others.

    Matplotlib escapes all text it writes. What goes: the XML head and comments,
    namespaces (an HTML parser knows them), a style rule that would reach the whole
    page; and ids get a prefix, for two charts number their parts alike.
    """
    view = re.search(r'viewBox="([^"]*)"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", body)
    body = re.sub(r"\n\s*", "\n", body)
    box = view.group(1) if view else f"0 0 {width * 0.75:g} {height * 0.75:g}"
    head = f'<svg role="img" aria-label="{escape(label)}" viewBox="{box}"'
    return f'{head} width="{width}" height="{height}">{body}'.rstrip()
