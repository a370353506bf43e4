"""Flower's ServerApp: one run, in a process of its own, told where by the run's config."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from .server_main import run_server

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds that are left of the run directory that the run's config names."""
    run_server(grid, Path(str(context.run_config["directory"])))
