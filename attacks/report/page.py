"""Page of an audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedvtc_edge.report.page import fill, write

from . import wording
from .charts import against_records, tradeoff
from .document import read
from .pictures import Picture, gallery


def render(document: Mapping[str, Any], pictures: Sequence[Picture], path: Path) -> Path:
    """Draw ``report.html`` of an audit.

    The page is one file without scripts that loads nothing from anywhere, and the
    same audit gives the same bytes. With pictures it shows training data.

    Args:
        document: ``report.json``.
        pictures: Pictures of trials, in the order of the page.
        path: File of the page.

    Returns:
        ``path``.

    Raises:
        RunError: The document does not fit its schema, or the page cannot be written.
    """
    audit = read(document)
    adversaries = wording.adversaries(audit)
    charts = [
        (adversary.view, against_records(audit, adversary.view, index))
        for index, adversary in enumerate(adversaries)
    ]
    style = Path(__file__).with_name("audit.css").read_text(encoding="utf-8")
    html = fill(
        "audit.html.j2",
        package=__package__,
        more=Markup(style),  # noqa: S704 - our own file
        say=wording,
        audit=audit,
        claim=wording.claimed(audit),
        adversaries=adversaries,
        charts=[(view, chart) for view, chart in charts if chart is not None],
        tradeoff=tradeoff(audit),
        gallery=gallery(pictures),
        membership=wording.membership(audit),
        others=wording.others(audit),
    )
    return write(Path(path), html)
