"""``run --engine flower``: all nodes simulated on this machine, by Flower and Ray, offline."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from fedvtc_edge.distributed.events import Reader
from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.progress import Progress
from fedvtc_edge.runs.directory import RunDirectory
from fedvtc_edge.transport.keyring import FOLDER

from .process.app_bundle import write_app
from .process.superlink import SuperLink
from .server_main import HOMES, events_of, key_ring_of

_SILENT_S = 20.0
"""So long nothing may be heard before Flower is asked whether the run still goes on."""

_LOOK_S = 0.2


def simulate(directory: RunDirectory, progress: Progress) -> dict[str, Any]:
    """Run, or go on with, a federation of as many SuperNodes as there are clients.

    Args:
        directory: Begun and locked by the caller.
        progress: Told of rounds and of who answers.

    Returns:
        The content of ``summary.json``.

    Raises:
        DeploymentError: The run failed, with the reason that its process gave.
        MissingExtra: Flower is not installed.
    """
    config, path = directory.config, directory.path.resolve()
    # Made before anybody needs them: processes would make different ones at one time.
    keys = key_ring_of(directory)
    _ = keys.server, keys.trusted
    workers = min(config.engine.workers, config.clients.count)
    federation = {
        "num-supernodes": config.clients.count,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": workers,
    }
    with SuperLink(path / "checkpoint" / "flower") as link:
        submit_and_watch(link, path, progress, federation)
    # Nothing of this run will be opened again, and its networks lie in clients/.
    for folder in (path / FOLDER, path / "checkpoint" / "flower", path / "checkpoint" / HOMES):
        shutil.rmtree(folder)
    return summary_of(path)


def submit_and_watch(
    link: SuperLink, path: Path, progress: Progress, federation: dict[str, int] | None = None
) -> None:
    """Start the server's process and show what it says, until it is done.

    Args:
        progress: Where it is shown.

    Raises:
        DeploymentError: The run failed, or Flower did.
    """
    app = link.folder / "app"
    write_app(app, config={"directory": ""})
    reader = Reader(events_of(path), progress)
    run = link.submit(app, {"directory": str(path)}, federation)
    heard = time.monotonic()
    while True:
        lines = reader.relay()
        if lines < 0:
            return
        if lines:
            heard = time.monotonic()
        elif not link.alive():
            raise DeploymentError(
                f"Flower's server process ended. It said:\n{link.tail()}", hint=f"see {link.log}"
            )
        elif time.monotonic() - heard > _SILENT_S:
            status = link.status(run)
            if status.startswith("finished"):
                if reader.relay() < 0:  # it was still writing when it was looked at
                    return
                raise DeploymentError(
                    f"Flower says {status}, and the run did not say why:\n{link.tail()}",
                    hint=f"see {link.log}",
                )
            heard = time.monotonic()
        time.sleep(_LOOK_S)


def summary_of(path: Path) -> dict[str, Any]:
    """Content of ``summary.json`` of a finished run."""
    found: dict[str, Any] = parse_json((path / "summary.json").read_text("utf-8"))
    return found
