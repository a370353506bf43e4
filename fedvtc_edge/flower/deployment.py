"""``serve``: the server's side of a deployment, over Flower with TLS and node authentication."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedvtc_edge.config import Config
from fedvtc_edge.distributed.server.session import Keys
from fedvtc_edge.progress import Progress
from fedvtc_edge.runs.directory import RunDirectory
from fedvtc_edge.sealing import Identity, signing

from .access.checks import check_server
from .access.keys import ServerKeyBundle, ServerKeys
from .access.limits import note_on_descriptors
from .access.reachability import check_port_free
from .process.superlink import Certificates, SuperLink
from .server_main import note_keys
from .simulation import submit_and_watch, summary_of


def check_deployment(
    config: Config, kit: ServerKeyBundle, previous: Sequence[Path], host: str, port: int
) -> tuple[ServerKeys, list[str]]:
    """Everything that can be wrong before a process is started.

    Args:
        previous: Identities that were replaced, and to which clients may still seal.

    Returns:
        The keys, and what is no fault but good to know.

    Raises:
        DeploymentError: Certificates, node keys or the port.
        KeyFileError: An identity that cannot be used.
        TrustError: Another number of clients than the settings say.
    """
    passphrase = os.environ.get(signing.PASSPHRASE)
    keys = kit.open(passphrase)
    ring = [keys.identity, *(Identity.load(path, passphrase=passphrase) for path in previous)]
    Keys(ring, keys.trusted).clients(config)
    notes = check_server(kit.certificate, kit.private_key, kit.authority, [host])
    check_port_free(host, port)
    note = note_on_descriptors(len(keys.nodes))
    return keys, [*notes, *([note] if note else [])]


def serve_run(
    directory: RunDirectory,
    kit: ServerKeyBundle,
    keys: ServerKeys,
    previous: Sequence[Path],
    host: str,
    port: int,
    progress: Progress,
) -> dict[str, Any]:
    """All rounds of a run, or those that are left of it, with clients that join.

    Args:
        directory: Begun and locked by the caller.
        kit: The server's keys, as paths.
        progress: Told who is here, who has answered and who is late.

    Returns:
        The content of ``summary.json``.

    Raises:
        DeploymentError: The run failed, or Flower did.
    """
    path = directory.path.resolve()
    note_keys(path, [kit.identity, *previous], kit.trust)
    state = path / "checkpoint" / "flower"
    tls = Certificates(kit.certificate, kit.private_key, kit.authority)
    nodes = tuple(keys.nodes.values())
    with SuperLink(state, tls=tls, host=host, port=port, nodes=nodes) as link:
        count = len(keys.nodes)
        progress.say(f"listening on {host}:{port} for {count} client{'s' * (count != 1)}")
        submit_and_watch(link, path, progress)
    shutil.rmtree(state)  # messages and registrations of a run that is done
    return summary_of(path)
