"""The server as Flower runs it, in a process of its own: one run, told where by its config."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Every round that is not done yet, of the run directory that the run's config names."""
    from .directing import direct

    direct(grid, Path(str(context.run_config["directory"])))
