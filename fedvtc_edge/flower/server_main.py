"""Main function of the server's process: keys, data, all rounds, and events for who waits.

Imports nothing of Flower before it runs, so that other processes can find its files.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fedvtc_edge.data import load_data
from fedvtc_edge.distributed.client.state import ClientState
from fedvtc_edge.distributed.events import Writer
from fedvtc_edge.distributed.server.executor import OPENING_CALLS
from fedvtc_edge.distributed.server.session import Keys, serve
from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import RunError
from fedvtc_edge.runs.directory import RunDirectory
from fedvtc_edge.sealing import Identity, TrustList, signing
from fedvtc_edge.storage.atomic import write_atomic
from fedvtc_edge.transport.keyring import FOLDER, KeyRing

if TYPE_CHECKING:
    from flwr.serverapp import Grid

EVENTS = "events.jsonl"
KEYS = "keys.json"
HOMES = "homes"


def events_of(path: Path) -> Path:
    """The file of a run directory in which the server's process says how it goes."""
    return path / "checkpoint" / EVENTS


def home_of(path: Path, client: str) -> ClientState:
    """State folder of a simulated client."""
    return ClientState(path / "checkpoint" / HOMES / client, client)


def key_ring_of(directory: RunDirectory) -> KeyRing:
    """Keys of all keys of a simulation, made when first needed."""
    return KeyRing(directory.config.client_ids, directory.path / FOLDER)


def note_keys(path: Path, ring: list[Path], trust: Path) -> None:
    """Tell the server's process of a deployment where its keys lie; none are copied.

    Args:
        ring: Files of private identities: the current one, then previous ones.
    """
    noted = {"ring": [str(file.resolve()) for file in ring], "trust": str(trust.resolve())}
    write_atomic(path / "checkpoint" / KEYS, (json.dumps(noted) + "\n").encode())


def run_server(grid: Grid, path: Path) -> None:
    """All rounds of a run that are left.

    Args:
        path: A run directory that was begun; whoever began it holds its lock.
    """
    from .grid_mailbox import GridMailbox  # needs Flower, an extra

    events = Writer(events_of(path))
    try:
        directory = RunDirectory.reopen(path)
        config = directory.config
        simulated = not (path / "checkpoint" / KEYS).is_file()
        keys = _simulated(directory) if simulated else _keys(path)
        data = load_data(config)
        mailbox = GridMailbox(grid, ttl_s=config.server.deadline_s * OPENING_CALLS + 60.0)
        serve(
            directory,
            data,
            keys,
            mailbox,
            events,
            home=(lambda client: home_of(path, client)) if simulated else None,
        )
    except BaseException as error:
        events.failed(error)
        raise
    events.done()


def _simulated(directory: RunDirectory) -> Keys:
    keys = key_ring_of(directory)
    return Keys([keys.server], keys.trusted)


def _keys(path: Path) -> Keys:
    try:
        noted = parse_json((path / "checkpoint" / KEYS).read_text("utf-8"))
        ring, trust = [Path(file) for file in noted["ring"]], Path(noted["trust"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(
            f"{path} does not say where the server's keys lie", hint="serve --resume it again"
        ) from None
    passphrase = os.environ.get(signing.PASSPHRASE)
    identities = [Identity.load(file, passphrase=passphrase) for file in ring]
    return Keys(identities, TrustList.load(trust))
