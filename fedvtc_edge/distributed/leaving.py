"""What a client is left with after the last round: its home becomes a finished run of its own.

``fedvtc-edge export HOME`` then makes its bundle and ``fedvtc-edge report HOME`` draws its
page, both on the client's machine and without the server. What the client does not tell the
server, its home says to its owner alone.

    run.json                  version and settings
    clients/ID/               classifier, decoder, and the client's entry in the summary
    statistics.safetensors    what the server published last
    test.safetensors          the test set that the client was read on, if it had one
    samples.npz               what it paints, beside images of that test set
    summary.json              written last: the home is ready
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedvtc_edge.compute import deterministic
from fedvtc_edge.config import Config
from fedvtc_edge.data import Dataset
from fedvtc_edge.data.own import DataTerms
from fedvtc_edge.devices.fleet import Place
from fedvtc_edge.evaluation import ACCURACIES, evaluate, share
from fedvtc_edge.files import write_atomic
from fedvtc_edge.runs import RunDirectory
from fedvtc_edge.summary import Figures, deposit, pictures, summarise

from .belongings import TEST, Belongings, Source, pack_test, unpack_test
from .crew import Crew, networks_of
from .home import Home

TEST_SET = "test.safetensors"

_OWNER_ONLY = 0o600
"""As the home's state: it all tells of the client's data."""


def leave(
    home: Home, config: Config, terms: DataTerms, crew: Crew, has: Belongings, report: bytes
) -> None:
    """Make a finished run of a home, once its client has answered the last order.

    The same home gives the same files but for seconds; a home in which it was cut off is
    not ready, and doing it again mends that.

    Args:
        home: The client's.
        config: The settings.
        terms: Classes and shapes.
        crew: The client as it is after the last round.
        has: Its data.
        report: What it tells the server of the last round; accuracies in it are not read anew.

    Raises:
        OSError: The disk does not take it.
    """
    method, client = crew.method, crew.client
    method.done = config.method.rounds
    packed = _test_set(has, method.published)
    published = {kind: data for kind, data in method.published.items() if kind != TEST}
    data = _data(config, terms, has, packed)
    measured = _measured(crew, json.loads(report))
    # What left was counted by the server: envelopes are not kept here.
    account = {"up": None, "down": None, "seconds": client.seconds, "samples": client.samples_seen}
    summary = summarise(
        method,
        [Figures.of(client)],
        [{"seconds": client.seconds, "clients": [measured], **_control(crew)}],
        {client.id: account},
        data,
        [Place(client.id, None, client.architecture, client.architecture)],
    )
    summary |= {"home": True, "evaluated_on": config.data.evaluate if packed else None}
    RunDirectory(home.path, config).label()
    if packed:
        write_atomic(home.path / TEST_SET, packed, mode=_OWNER_ONLY)
    deposit(
        home.path,
        summary,
        published,
        {client.id: (networks_of(client), summary["clients"][0])},
        pictures(method, data) if packed else {},
        mode=_OWNER_ONLY,
    )


def leave_late(home: Home, architecture: str, source: Source) -> None:
    """Leave with what the last round that was worked in brought; without any, not at all.

    Args:
        home: Of a client that was away in the last round, or not invited.
        architecture: Of its network.
        source: Reads its data.

    Raises:
        DataError: Its data are not what they were.
        RunError: The home is damaged.
    """
    state = home.state()
    if state.round == 0:
        return
    config, terms = home.config(), DataTerms.from_json(home.terms())
    with deterministic():
        has = source(config, terms)
        crew = Crew.gather(config, home, state, architecture, terms, has)
        leave(home, config, terms, crew, has, b"{}")


def _test_set(has: Belongings, published: dict[str, bytes]) -> bytes:
    """The client's own or the server's, as bytes; empty where there is none."""
    return published.get(TEST, b"") if has.test is None else pack_test(has.test)


def _data(config: Config, terms: DataTerms, has: Belongings, packed: bytes) -> Dataset:
    """The client's data as a set of its own; without a test set its images stand in for one."""
    test = has.test or (unpack_test(packed, terms) if packed else has.own)
    name = Path(config.data.name).stem  # a path is the server's, and of no use here
    return Dataset(
        name, has.own.images, has.own.labels, test.images, test.labels, terms.class_names
    )


def _measured(crew: Crew, told: dict[str, Any]) -> dict[str, Any]:
    """The client's line of the last round; accuracies are None where there is no test set."""
    if crew.test is None or "accuracy" in told:
        return {"id": crew.client.id, **{key: told.get(key) for key in ACCURACIES}}
    records, _ = evaluate(crew.method, [] if crew.twin is None else [crew.twin], crew.test)
    return records[0]


def _control(crew: Crew) -> dict[str, float | None]:
    """Accuracy of the training-free classifier."""
    scores = None if crew.test is None else crew.method.control(crew.test.images)
    if scores is None:
        return {"accuracy_control": None}
    assert crew.test is not None
    return {"accuracy_control": share(scores.argmax(1) == crew.test.labels)}
