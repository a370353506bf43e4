"""The Flower app: a folder that names our code, and holds none.

Flower's unit of work is an app bundle, which the server sends to every node, and which
may hold code. Ours is one pyproject.toml: server and client apps are names in the
installed package. So every installation of one version makes the same bundle, byte for
byte, and a node can know which it will get before it is asked to run it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import tomli_w

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.storage.atomic import new_folder

from .daemon import Daemon, environment, executable

NAME = "fedvtc-edge"
SERVER_APP = "fedvtc_edge.flower.server_app:app"
CLIENT_APP = "fedvtc_edge.flower.client_app:app"

Setting = str | int | float | bool


def write_app(
    folder: Path,
    *,
    serverapp: str = SERVER_APP,
    clientapp: str = CLIENT_APP,
    config: Mapping[str, Setting],
) -> None:
    """Write an app folder; what stood under that name is replaced.

    Args:
        folder: The app's folder; its parent exists.
        serverapp: ``module:name`` of the ServerApp, importable where it runs.
        clientapp: ``module:name`` of the ClientApp, importable on every node.
        config: Keys that a run may set, with their defaults. Defaults are part of the
            bundle: keep them constant, and give values with the run.
    """
    document = {
        "project": {
            "name": NAME,
            "version": metadata.version(NAME),
            "description": "Federated learning from statistics alone.",
            "license": "Apache-2.0",
            "dependencies": [],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": NAME,
                    "components": {"serverapp": serverapp, "clientapp": clientapp},
                    "config": dict(config),
                }
            }
        },
    }
    with new_folder(folder) as scratch:
        (scratch / "pyproject.toml").write_text(tomli_w.dumps(document), "utf-8")


def lock_app(app: Path, flwr_home: Path) -> str:
    """Let Flower run this one app from ``flwr_home``, and install no other.

    Flower unpacks a bundle that it is sent into ``apps/`` and runs the code it finds,
    unless a folder of the bundle's name and hash is there already: then it runs that.
    So the known app is put there, and ``apps/`` is closed to writing. A bundle with
    other content has another hash; it cannot be unpacked, and its sender gets an error.

    Guarantee: while ``apps/`` cannot be written to, no code out of a bundle runs. Mode
    bits do not bind root, unless its process has lost CAP_DAC_OVERRIDE, as a
    :class:`~fedvtc_edge.flower.process.daemon.Daemon` has. Not covered: messages to the
    known app, which is to distrust them itself.

    Args:
        app: A folder of :func:`write_app`.
        flwr_home: Flower's folder of the node. An ``apps/`` in it is replaced.

    Returns:
        SHA-256 of the bundle, its first eight hexadecimal digits.

    Raises:
        DeploymentError: When Flower does not take the app for one, or the lock does not hold.
    """
    apps = flwr_home / "apps"
    unlock_app(flwr_home)
    apps.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [executable("flwr"), "build", "--app", str(app.resolve())]
        done = subprocess.run(  # noqa: S603  (no shell; our own arguments)
            command,
            cwd=scratch,
            env=environment(flwr_home),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        bundles = list(Path(scratch).glob("*.fab"))
        if done.returncode or len(bundles) != 1:
            raise DeploymentError(
                f"flwr build made {len(bundles)} bundles of {app}, expected 1: {done.stderr}",
                hint="write the folder with write_app, and check the installed flwr's version",
            )
        digest = bundles[0].stem.rpartition(".")[2]
        installed = apps / f"{NAME}.{NAME}.{metadata.version(NAME)}.{digest}"
        with zipfile.ZipFile(bundles[0]) as bundle:
            installed.mkdir()
            (installed / "pyproject.toml").write_bytes(bundle.read("pyproject.toml"))
    for folder in (installed, apps):
        folder.chmod(0o555)
    _try_lock(apps)
    return digest


def _try_lock(apps: Path) -> None:
    """Try to write as Flower's processes would: modes mean nothing on some file systems."""
    log, probe = apps.parent / "lock.log", apps / "probe"
    command = [sys.executable, "-I", "-S", "-c", "import os, sys; os.mkdir(sys.argv[1])"]
    with Daemon([*command, str(probe)], log=log, environ=environment(apps.parent)) as attempt:
        attempt.wait()
    if probe.exists():
        unlock_app(apps.parent)
        raise DeploymentError(
            f"{apps} cannot be closed to writing, so any code could be sent here and run",
            hint="run as a user without privileges, with the state on a local file system",
        )


def unlock_app(flwr_home: Path) -> None:
    """Remove what :func:`lock_app` made; harmless where it made nothing."""
    apps = flwr_home / "apps"
    if apps.exists():
        for folder in (apps, *filter(Path.is_dir, apps.iterdir())):
            folder.chmod(0o755)
        shutil.rmtree(apps)
