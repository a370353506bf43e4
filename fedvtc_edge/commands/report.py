"""``fedvtc-edge report``: draw a run or a comparison again."""

from __future__ import annotations

from pathlib import Path

import click

from . import _common as common


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@common.json_option
def command(run: Path, as_json: bool) -> None:
    """Redraw report.html of RUN, the folder of a run or of a comparison."""
    with common.needing_extras():
        from fedvtc_edge.report import render, render_comparison

        compared = (run / "comparison.json").is_file()
        page = render_comparison(run) if compared else render(run)
    if as_json:
        common.emit_json({"schema": 1, "report": str(page)})
    else:
        click.echo(page)
