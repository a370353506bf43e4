"""A client at work for the time of one message, and the finished run that it is left with.

After the last round :func:`finalize` makes a finished run of the client's state folder, so that
``fedvtc-edge export HOME`` and ``fedvtc-edge report HOME`` work on the client's machine without
the server::

    run.json                  version and settings
    clients/ID/               classifier, decoder, and the client's entry in the summary
    statistics.safetensors    what the server published last
    test.safetensors          the test set that accuracies are of, if there is one
    samples.npz               synthetic images, beside images of that test set
    summary.json              written last: the folder is ready
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fedvtc_edge.config import Config
from fedvtc_edge.data import Dataset
from fedvtc_edge.data.own import TEST, TEST_SET, DataTerms, pack_test, unpack_test
from fedvtc_edge.devices.footprint import peak_megabytes
from fedvtc_edge.devices.planner import ClientAssignment
from fedvtc_edge.documents import parse_json
from fedvtc_edge.federation.assembly import baseline, one_client
from fedvtc_edge.federation.evaluation import Evaluator, TestSet, control_figures
from fedvtc_edge.federation.federation import Measuring, measure_untold
from fedvtc_edge.federation.figures import Figures
from fedvtc_edge.federation.methods import Federation, Method, method_of
from fedvtc_edge.federation.rounds import evaluates
from fedvtc_edge.federation.summary import (
    ClientStats,
    Outcome,
    deposit,
    pictures,
    summarise,
)
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.tensors import from_tensors, to_tensors
from fedvtc_edge.runs.directory import RunDirectory
from fedvtc_edge.runs.records import ACCURACIES, Accuracies, RoundRecord
from fedvtc_edge.storage.atomic import write_atomic
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute, as_images, deterministic

from .local_data import LocalData, Source
from .state import ClientCheckpoint, ClientState


@dataclass(frozen=True, eq=False)
class ClientSession:
    """One client with all that it trains.

    Args:
        baseline: Its local baseline; None where the method is local-only.
        test: The global test set, or None.
    """

    client: Client
    baseline: Client | None
    method: Method
    test: TestSet | None

    @classmethod
    def gather(
        cls,
        config: Config,
        home: ClientState,
        state: ClientCheckpoint,
        architecture: str,
        terms: DataTerms,
        has: LocalData,
        *,
        measuring: Measuring = measure_untold,
    ) -> ClientSession:
        """Build everything anew from the seed, and load what was kept.

        Args:
            home: The client's state folder, which keeps its releases.
            terms: Classes and shapes.
            measuring: Told of the client before its own features are measured.

        Raises:
            ConfigError: An unknown architecture, or one that the privacy mechanism cannot train.
            RunError: A state of other networks, or a damaged one.
        """
        compute, kind = Compute.of(config.engine), method_of(config)
        shape, classes = ImageShape(terms.height, terms.channels), len(terms.class_names)
        assignment = ClientAssignment(home.client, None, architecture, architecture)
        client = one_client(config, assignment, has.own, shape, classes, compute, kind)
        with_baseline = kind.trains and not kind.is_own_control and config.method.baseline
        alone = baseline(client) if with_baseline else None
        federation = Federation(
            config,
            [client],
            shape,
            classes,
            compute,
            home.joined or "",
            releases=home.releases,
            measuring=measuring,
            public=None if has.shared is None else as_images(has.shared, compute.device),
        )
        found, test = has.test, None
        if found is None and TEST in state.published:
            found = unpack_test(state.published[TEST], terms)
        if found is not None:
            images = as_images(found.images, compute.device)
            test = TestSet(images, torch.from_numpy(found.labels.copy()))
        session = cls(client, alone, kind(federation), test)
        session._restore(state)
        return session

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All that is trained, by name."""
        modules = self.client.networks
        if self.baseline is not None:
            modules["local"] = self.baseline.model
        return modules

    def _restore(self, state: ClientCheckpoint) -> None:
        if state.tensors:
            load_networks(state, self.modules)
        self.client.seconds, self.client.samples_seen = state.seconds, state.samples
        self.method.restore(state.published)

    def save_to(self, state: ClientCheckpoint) -> None:
        """Put networks and totals into ``state``."""
        state.tensors = to_tensors(self.modules)
        state.seconds, state.samples = self.client.seconds, self.client.samples_seen

    def report(self, number: int, *, share_metrics: bool) -> dict[str, object]:
        """Report of the round, for the server.

        Args:
            number: The round that ends; the control is trained for it, too.
            share_metrics: Whether accuracies and how many images were seen may be told: they say
                something of the data. Working time is rounded where they may not.
        """
        if self.baseline is not None:
            self.baseline.train(number)
        client = self.client
        report: dict[str, object] = {
            "seconds": client.seconds if share_metrics else math.ceil(client.seconds),
            "parameters": sum(
                weights.numel()
                for name, module in self.modules.items()
                if name != "local"
                for weights in module.parameters()
            ),
        }
        if share_metrics:  # images seen are epochs times examples: as good as a count
            report["samples_seen"] = client.samples_seen
        config = self.method.federation.config
        tells = self.test is not None or client.held_out is not None
        if share_metrics and tells and evaluates(config, number):
            report |= Evaluator(self.method, self.test).of(client, self.baseline)
            samples, channels, size, _ = client.images.shape
            report["peak_memory_mb"] = peak_megabytes(
                client.architecture, samples, ImageShape(size, channels), client.classes, config
            )
        return report


def load_networks(state: ClientCheckpoint, modules: Mapping[str, nn.Module]) -> None:
    """Fill networks with what a client's state keeps.

    Raises:
        RunError: It is of other networks, or of none.
    """
    from_tensors(
        state.tensors,
        modules,
        whose="the client's state",
        hint="was the architecture changed? join the run anew, with a new --home folder",
    )


_OWNER_ONLY = 0o600
"""As the client's state: it all tells of the client's data."""


def finalize(
    home: ClientState,
    config: Config,
    terms: DataTerms,
    session: ClientSession,
    has: LocalData,
    report: bytes,
) -> None:
    """Make a finished run of a client's state folder, after the last request.

    The same state gives the same files but for seconds; where it was cut off the folder is not
    ready, and doing it again mends that.

    Args:
        terms: Classes and shapes.
        session: The client as it is after the last round.
        report: What it tells the server of the last round; accuracies in it are not read anew.

    Raises:
        OSError: The disk does not take it.
    """
    method, client = session.method, session.client
    method.done = config.method.rounds
    packed = _test_set(has, method.published)
    published = {kind: data for kind, data in method.statistics().items() if kind != TEST}
    data = _data(config, terms, has, packed)
    measured = _measured(session, parse_json(report))
    # What left was counted by the server: envelopes are not kept here.
    account = {"up": None, "down": None, "seconds": client.seconds, "samples": client.samples_seen}
    control = control_figures(method, session.test)
    figures, number = Figures(), config.method.rounds
    figures.enter(number, client.id, measured)
    last = RoundRecord(
        round=number,
        accuracy_control=control.accuracy,
        recall_control=control.recall,
        seconds=client.seconds,
    )
    summary = summarise(
        method,
        [ClientStats.of(client, config)],
        Outcome(last, {client.id: account}, figures, client.seconds),
        data,
        [ClientAssignment(client.id, None, client.architecture, client.architecture)],
    )
    summary.home, summary.evaluated_on = True, config.data.evaluate if packed else None
    RunDirectory(home.path, config, number=home.number).label()
    if packed:
        write_atomic(home.path / TEST_SET, packed, mode=_OWNER_ONLY)
    deposit(
        home.path,
        summary,
        published,
        [(client.id, client.networks, summary.clients[0])],
        pictures(method, data) if packed else {},
        mode=_OWNER_ONLY,
    )


def finalize_late(home: ClientState, architecture: str, source: Source) -> None:
    """Finalize with the last round that was worked in; without any, not at all.

    Args:
        home: Of a client that was away in the last round, or not invited.

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
        session = ClientSession.gather(config, home, state, architecture, terms, has)
        finalize(home, config, terms, session, has, b"{}")


def _test_set(has: LocalData, published: dict[str, bytes]) -> bytes:
    """The client's own or the server's, as bytes; empty where there is none."""
    return published.get(TEST, b"") if has.test is None else pack_test(has.test)


def _data(config: Config, terms: DataTerms, has: LocalData, packed: bytes) -> Dataset:
    """The client's data as a set of its own; without a test set its images stand in for one."""
    test = has.test or (unpack_test(packed, terms) if packed else has.own)
    name = Path(config.data.name).stem  # a path is the server's, and of no use here
    return Dataset(
        name, has.own.images, has.own.labels, test.images, test.labels, terms.class_names
    )


def _measured(session: ClientSession, told: dict[str, Any]) -> Accuracies:
    """The client's accuracies after the last round; None where nothing tells them."""
    if "accuracy" in told:
        return cast(Accuracies, {key: told.get(key) for key in ACCURACIES})
    return Evaluator(session.method, session.test).of(session.client, session.baseline)
