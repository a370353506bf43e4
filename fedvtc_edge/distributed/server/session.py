"""The server's side of one run, from its directory and its keys to the last round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from fedvtc_edge.config import Config
from fedvtc_edge.data import Dataset
from fedvtc_edge.data.dataset import Samples
from fedvtc_edge.data.own import pack_test, terms_of
from fedvtc_edge.devices.planner import ClientAssignment
from fedvtc_edge.distributed.client.session import load_networks
from fedvtc_edge.distributed.client.state import ClientState
from fedvtc_edge.distributed.mailbox import Mailbox
from fedvtc_edge.errors import TrustError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.evaluation import TestSet
from fedvtc_edge.federation.methods import Federation, Method, method_of
from fedvtc_edge.federation.roster import Roster
from fedvtc_edge.federation.rounds import run_rounds
from fedvtc_edge.federation.server import Refusals, Server, telling
from fedvtc_edge.federation.summary import ClientStats, Outcome, finish, stats_of, summarise
from fedvtc_edge.models import ImageShape
from fedvtc_edge.privacy.release_store import ReleaseStore
from fedvtc_edge.progress import Progress
from fedvtc_edge.runs.directory import RunDirectory, as_toml
from fedvtc_edge.runs.weights import WeightStore
from fedvtc_edge.sealing import Identity, Inbox, TrustList
from fedvtc_edge.training.compute import Compute, as_images, deterministic

from .collector import Collector, Journal
from .executor import RemoteExecutor
from .registry import ClientRegistry

INBOX, JOURNAL = "inbox", "open.json"
"""Names of what the open round received: in checkpoint/, until the round is done."""


@dataclass(frozen=True)
class Keys:
    """Keys of a server: identities that open envelopes, and the trust list.

    Args:
        ring: Its identity, and previous ones while a key is replaced.
        trusted: All clients of the run, in their order.
    """

    ring: Sequence[Identity]
    trusted: TrustList

    def clients(self, config: Config) -> list[str]:
        """Ids of all clients.

        Raises:
            TrustError: Not as many as the settings say.
        """
        names = list(self.trusted.clients)
        if len(names) != config.clients.count:
            raise TrustError(
                f"the trust list has {len(names)} clients, clients.count is {config.clients.count}",
                hint="add them with fedvtc-edge keys trust, or set clients.count",
            )
        return names


def executor_of(
    directory: RunDirectory, data: Dataset, keys: Keys, mailbox: Mailbox, progress: Progress
) -> RemoteExecutor:
    """Everything on the server's side, set to where the run was cut off.

    Args:
        data: Of which the test set and the names are used.
        mailbox: Carries orders.
        progress: Told of rounds and of who answers.

    Raises:
        TrustError: Another number of clients than the settings say.
        RunError: A damaged checkpoint, inbox or journal.
    """
    config, path = directory.config, directory.path
    run, names = directory.name, keys.clients(config)
    compute, height, channels = Compute.of(config.engine), data.image_shape[0], data.image_shape[2]
    refuse = Refusals(path).note
    federation = Federation(
        config,
        (),
        ImageShape(height, channels),
        data.classes,
        compute,
        run,
        Server(directory.record_upload, telling(refuse, progress.say)),
        releases=ReleaseStore(path),
        record=directory.record,
        public=None if data.x_public is None else as_images(data.x_public, compute.device),
    )
    terms = terms_of(data, config.data.image_size).to_json()
    settings = as_toml(config).decode()
    registry = ClientRegistry(
        config,
        run,
        directory.number,
        settings,
        terms,
        data.classes,
        keys.ring,
        keys.trusted,
        mailbox,
        progress.say,
    )
    inbox = Inbox(path / "checkpoint" / INBOX, run=run, recipient=keys.ring, trusted=keys.trusted)
    journal = Journal(path / "checkpoint" / JOURNAL, run)
    collector = Collector(
        mailbox, registry, inbox, journal, config.server.deadline_s, refuse, progress.say
    )
    images = as_images(data.x_test, compute.device)
    test = TestSet(images, torch.from_numpy(data.y_test.copy()))
    executor = RemoteExecutor(
        method_of(config)(federation),
        names,
        keys.trusted,
        registry,
        collector,
        test=(test, pack_test(Samples(data.x_test, data.y_test))),
    )
    state = directory.latest()
    if state is not None:
        executor.restore(state)
    return executor


def serve(
    directory: RunDirectory,
    data: Dataset,
    keys: Keys,
    mailbox: Mailbox,
    progress: Progress,
    *,
    home: Callable[[str], ClientState] | None = None,
) -> None:
    """All rounds, and the run directory as a finished run leaves it.

    Args:
        data: Of which the test set and the names are used.
        mailbox: Carries orders.
        progress: Told of rounds and of who answers.
        home: Where each client lives, in a simulation, whose run directory then holds the
            clients' networks. Elsewhere networks stay with their clients.

    Raises:
        ServerError: Too few clients, for too long.
        MaskingError: The opening's masked sum did not come out.
    """
    with deterministic():
        executor = executor_of(directory, data, keys, mailbox, progress)
        method = executor.method
        run_rounds(method, executor, keep=directory.save, progress=progress)
        figures: Iterable[ClientStats] = (_figures(executor, name) for name in executor.clients)
        if home is not None:
            method = _gathered(method, data, home, directory.weights)
            roster = method.federation.clients
            assert isinstance(roster, Roster)
            figures = stats_of(roster, directory.config, trains=method.trains)
        summary = summarise(method, figures, Outcome.of(executor), data, _fleet(executor))
        finish(directory, method, data, summary)
        if home is None:
            executor.shutdown()


def _figures(executor: RemoteExecutor, name: str) -> ClientStats:
    """Stats of a client elsewhere, from its own reports."""
    info, spent = executor.client_info.get(name), executor.spent(name)
    counts = None if info is None else info.class_counts
    return ClientStats(
        name,
        "-" if info is None else info.architecture,
        None,
        None if counts is None else list(counts),
        spent["parameters"],
        spent["peak_memory_mb"],
    )


def _fleet(executor: RemoteExecutor) -> list[ClientAssignment]:
    """Clients choose their architectures themselves."""
    chosen = {name: info.architecture for name, info in executor.client_info.items()}
    return [
        ClientAssignment(name, None, chosen.get(name, "-"), chosen.get(name, "-"))
        for name in executor.clients
    ]


def _gathered(
    played: Method, data: Dataset, home: Callable[[str], ClientState], weights: WeightStore
) -> Method:
    """The method with all clients of a simulation in this process, as they came home."""
    config = played.federation.config
    method = assemble(config, data, Compute.of(config.engine), weights=weights)
    roster = method.federation.clients
    assert isinstance(roster, Roster)
    for name in roster.ids:
        state = home(name).state()
        if state.tensors:
            load_networks(state, roster.at_work(name).networks)
    method.restore(played.published)
    method.done = played.done
    return method
