"""The picture of a run: one self-contained HTML file, readable by anyone, anywhere.

``render`` draws ``report.html`` from a run directory, ``render_comparison`` draws
``comparison.html`` from a comparison. Both need the ``train`` extra (jinja2,
matplotlib, pillow) and never torch: a report can be redrawn long after training,
on another machine.
"""

from __future__ import annotations

from fedvtc_edge.errors import MissingExtra

try:
    from .page import render, render_comparison
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] not in {"jinja2", "matplotlib", "PIL"}:
        raise  # a fault of ours, not a part left out: let it be seen
    raise MissingExtra(
        f"reports need {error.name}, which is not installed",
        hint="pip install 'fedvtc-edge[train]'",
    ) from error

__all__ = ["render", "render_comparison"]
