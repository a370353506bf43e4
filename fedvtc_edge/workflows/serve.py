"""From settings and keys to a served run: what ``serve`` does, as a function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_data
from fedvtc_edge.errors import RunError
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.flower.access.keys import ServerKeyBundle
from fedvtc_edge.flower.deployment import check_deployment, serve_run
from fedvtc_edge.models.extractor import pinned
from fedvtc_edge.progress import Progress, SilentProgress
from fedvtc_edge.runs.directory import RunDirectory
from fedvtc_edge.storage.lock import alone


def serve(
    config: Config,
    out: Path,
    kit: ServerKeyBundle,
    previous: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Serve one run until its last round; clients come with :func:`.flower.joining.join`.

    Args:
        config: The settings, with ``engine.name = "flower"``.
        out: New or empty folder for the run directory.
        previous: Identities that were replaced, to which clients may still seal.
        progress: Told who is here, who has answered and who is late; None is silent.

    Returns:
        The content of ``summary.json``.

    Raises:
        ConfigError: Settings that cannot be served.
        DataError: A data set that cannot be used.
        DeploymentError: Certificates, node keys, the port, or Flower; a run that failed.
        RunError: ``out`` cannot be written or is not empty.
    """
    check(config)
    config = pinned(config)
    keys, notes = check_deployment(config, kit, previous, host, port)
    directory = RunDirectory.vacant(Path(out), config)
    load_data(config)
    progress = progress or SilentProgress()
    for note in notes:
        progress.say(note)
    with alone(directory.path):
        directory.begin()
        return serve_run(directory, kit, keys, previous, host, port, progress)


def resume_serving(
    path: Path,
    kit: ServerKeyBundle,
    previous: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Go on with a run that was cut off; see :func:`serve`.

    Raises:
        RunError: No run there, a finished one, a damaged one, or one of another engine.
    """
    with RunDirectory.resumed(Path(path)) as directory:
        if directory.config.engine.name != "flower":
            raise RunError(f"{path} was not served", hint=f"fedvtc-edge run --resume {path}")
        keys, notes = check_deployment(directory.config, kit, previous, host, port)
        progress = progress or SilentProgress()
        for note in notes:
            progress.say(note)
        directory.begin()
        return serve_run(directory, kit, keys, previous, host, port, progress)
