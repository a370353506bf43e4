"""The pages of a run and of a comparison, and the template kit that all pages share.

Templates are filled with escaped content, and a page is written whole or not at all.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedvtc_edge.errors import RunError
from fedvtc_edge.storage.atomic import write_atomic

from . import charts, comparison_charts, comparison_words, wording
from .crowd import LEVELS, crowd_of
from .pictures import MANY_CLASSES, read_pictures
from .reading import read_comparison, read_run
from .recall import recall_per_class
from .timeline import attendance, devices, timeline


def render(directory: Path) -> Path:
    """Draw ``report.html`` of a run, finished or not, from the files in its directory.

    The page is one file without scripts that loads nothing from anywhere, and the
    same run gives the same bytes.

    Args:
        directory: A run directory, see ``fedvtc-edge run``.

    Returns:
        The path of the page.

    Raises:
        RunError: ``directory`` is no run, a file in it is damaged, or it cannot be written.
    """
    directory = Path(directory)
    run = read_run(directory)
    summary = run.summary
    turns = [turn for one in run.rounds for turn in one.clock]
    crowd = crowd_of(summary, run.rounds)
    ids = () if crowd else [client.id for client in summary.clients]
    kinds = {client.id: client.device for client in summary.clients if client.device}
    html = fill(
        "report.html.j2",
        run=run,
        summary=summary,
        pictures=None if run.partial else read_pictures(directory / "samples.npz", summary),
        many_classes=MANY_CLASSES,
        crowd=crowd,
        levels=LEVELS,
        attendance=attendance(run.rounds, ids),
        rounds_chart=charts.accuracy_per_round(run),
        clients_chart=charts.accuracy_per_client(summary),
        absent_chart=charts.absent_classes(summary),
        recall_chart=recall_per_class(summary),
        cost_chart=charts.cost(summary),
        timeline_chart=timeline(turns, kinds),
        devices=devices(turns, kinds),
        void=[turn for turn in turns if turn.void],
    )
    return write(directory / "report.html", html)


def render_comparison(directory: Path) -> Path:
    """Draw ``comparison.html`` from ``comparison.json``, under the promises of ``render``.

    Args:
        directory: The directory that ``fedvtc-edge compare`` wrote.

    Returns:
        The path of the page.

    Raises:
        RunError: the comparison is missing or damaged, or the page cannot be written.
    """
    directory = Path(directory)
    comparison = read_comparison(directory)
    tables = comparison.each
    records = [method for _, _, method in comparison.rows()]
    html = fill(
        "comparison.html.j2",
        comparison=comparison,
        tables=tables,
        words=comparison_words,
        names=[comparison_words.ranked(table) for table in tables],
        charts=[
            comparison_charts.accuracy_per_method(table, f"methods{place}")
            for place, table in enumerate(tables)
        ],
        bytes_chart=comparison_charts.against_bytes(tables),
        seconds_chart=comparison_charts.against_seconds(tables),
        absent_chart=comparison_charts.absent_classes(tables),
        alpha_chart=comparison_charts.over_alpha(tables),
        held_out=any(method.accuracy_held_out is not None for method in records),
        decoders=any(method.decoder_seconds is not None for method in records),
    )
    return write(directory / "comparison.html", html)


def fill(template: str, *, package: str = __package__, **content: Any) -> str:
    """Fill a template with our filters and style; all content is escaped.

    Args:
        template: Its file name.
        package: Where it lies; what is not there is looked for here.
        content: What it speaks of; ``say`` are our words unless it brings its own.
    """
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    page = _environment(package).get_template(template)
    everything = {"say": wording, **content}
    return page.render(style=Markup(style), **everything)  # noqa: S704 - our own file


@cache
def _environment(package: str) -> Environment:
    # Names of clients and classes are a user's or a peer's words: everything is escaped.
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader(__package__, "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for word in ("percent", "points", "size", "duration", "count"):
        environment.filters[word] = getattr(wording, word)
    return environment


def write(path: Path, html: str) -> Path:
    """Replace ``path`` in one step: a reader sees the old page or the new one, never half."""
    try:
        # A name may hold half a surrogate pair, which no encoding can write.
        write_atomic(path, html.encode("utf-8", errors="replace"), durable=False)
    except OSError as error:
        raise RunError(
            f"cannot write '{path}': {error}",
            hint="make the directory writable, or copy the run to a place that is",
        ) from error
    return path
