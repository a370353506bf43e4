"""Page of an audit: one self-contained HTML file that says what leaks, and how surely.

``render`` draws the page from ``report.json`` and some pictures; ``shown`` makes the
pictures from trials. As a run's report it needs the ``train`` extra and never torch.
"""

from __future__ import annotations

from fedvtc_edge.errors import MissingExtra

try:
    from .page import render
    from .pictures import Picture, shown
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] not in {"jinja2", "matplotlib", "PIL"}:
        raise  # a fault of ours, not a part left out: let it be seen
    raise MissingExtra(
        f"reports need {error.name}, which is not installed",
        hint="pip install 'fedvtc-edge[train]'",
    ) from error

__all__ = ["Picture", "render", "shown"]
