"""The pages of a run and of a comparison, each written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from . import charts, wording
from .kit import fill, write
from .pictures import MANY_CLASSES, read_pictures
from .reading import read_comparison, read_run
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
    kinds = {client.id: client.device for client in summary.clients if client.device}
    html = fill(
        "report.html.j2",
        run=run,
        summary=summary,
        pictures=None if run.partial else read_pictures(directory / "samples.npz", summary),
        many_classes=MANY_CLASSES,
        attendance=attendance(run.rounds),
        rounds_chart=charts.accuracy_per_round(run),
        clients_chart=charts.accuracy_per_client(summary),
        unseen_chart=charts.unseen_classes(summary),
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
    html = fill(
        "comparison.html.j2",
        comparison=comparison,
        names=wording.ranked(comparison),
        chart=charts.accuracy_per_method(comparison),
    )
    return write(directory / "comparison.html", html)
