"""A client at work for the time of one message: its networks, its method, its control."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fedvtc_edge.assembly import kind_of, one_client
from fedvtc_edge.client import Client
from fedvtc_edge.compute import Compute
from fedvtc_edge.config import Config
from fedvtc_edge.data.own import DataTerms
from fedvtc_edge.devices.fleet import Place
from fedvtc_edge.evaluation import TestSet, as_images, evaluate
from fedvtc_edge.memory import training_megabytes
from fedvtc_edge.methods import Federation, Method
from fedvtc_edge.models import ImageShape
from fedvtc_edge.networks import from_tensors, to_tensors
from fedvtc_edge.runs import public_name
from fedvtc_edge.server import Server

from .belongings import TEST, Belongings, unpack_test
from .home import Home, State


@dataclass(frozen=True, eq=False)
class Crew:
    """One client with all that it trains.

    Args:
        client: Itself.
        twin: Its local-only double; None where the method is local-only.
        method: Knows the steps.
        test: The global test set, or None.
    """

    client: Client
    twin: Client | None
    method: Method
    test: TestSet | None

    @classmethod
    def gather(
        cls,
        config: Config,
        home: Home,
        state: State,
        architecture: str,
        terms: DataTerms,
        has: Belongings,
    ) -> Crew:
        """Build everything anew, as seeded, and load what was kept.

        Args:
            config: The settings.
            home: For its releases.
            state: What was kept.
            architecture: Of the client's network.
            terms: Classes and shapes.
            has: The client's data.

        Raises:
            ConfigError: An unknown architecture, or one that privacy.mode cannot train.
            RunError: A state of other networks, or a damaged one.
        """
        compute, kind = Compute.of(config.engine), kind_of(config)
        shape, classes = ImageShape(terms.height, terms.channels), len(terms.class_names)
        place = Place(home.client, None, architecture, architecture)
        client, twin = (
            one_client(config, place, has.own, shape, classes, compute, decoders)
            for decoders in (kind.has_decoder, False)
        )
        federation = Federation(
            config,
            [client],
            Server(classes, unseen),
            shape,
            classes,
            compute,
            public_name(config),
            releases=home.releases,
        )
        found, test = has.test, None
        if found is None and TEST in state.published:
            found = unpack_test(state.published[TEST], terms)
        if found is not None:
            images = as_images(found.images, compute.device)
            test = TestSet(images, torch.from_numpy(found.labels.copy()))
        crew = cls(client, None if kind.is_own_control else twin, kind(federation), test)
        crew._restore(state)
        return crew

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All that is trained, by name."""
        modules = networks_of(self.client)
        if self.twin is not None:
            modules["local"] = self.twin.model
        return modules

    def _restore(self, state: State) -> None:
        if state.tensors:
            load_networks(state, self.modules)
        self.client.seconds, self.client.samples_seen = state.seconds, state.samples
        self.method.restore(state.published)

    def save_to(self, state: State) -> None:
        """Put networks and totals into ``state``."""
        state.tensors = to_tensors(self.modules)
        state.seconds, state.samples = self.client.seconds, self.client.samples_seen

    def report(self, number: int, *, telling: bool) -> dict[str, object]:
        """How the round went, for the server.

        Args:
            number: The round that ends; the control is trained for it, too.
            telling: Whether accuracies and how many images were seen may be told: they say
                something of the data. Working time is rounded where they may not.
        """
        if self.twin is not None:
            self.twin.train(number)
        client = self.client
        report: dict[str, object] = {
            "seconds": client.seconds if telling else math.ceil(client.seconds),
            "parameters": sum(
                weights.numel()
                for name, module in self.modules.items()
                if name != "local"
                for weights in module.parameters()
            ),
        }
        if telling:  # images seen are epochs times examples: as good as a count
            report["samples_seen"] = client.samples_seen
        if telling and self.test is not None:
            twins = [] if self.twin is None else [self.twin]
            records, _ = evaluate(self.method, twins, self.test)
            report |= {k: v for k, v in records[0].items() if k.startswith("accuracy")}
            batch = client.images[: client.settings.batch]
            peak_mb = training_megabytes(client.model, client.decoder, batch)
            report["peak_memory_mb"] = round(peak_mb, 2)
        return report


def networks_of(client: Client) -> dict[str, nn.Module]:
    """A client's networks, by the names under which its home keeps them."""
    modules: dict[str, nn.Module] = {"classifier": client.model}
    if client.decoder is not None:
        modules["decoder"] = client.decoder
    return modules


def load_networks(state: State, modules: Mapping[str, nn.Module]) -> None:
    """Fill networks with what a home keeps.

    Raises:
        RunError: It is of other networks, or of none.
    """
    from_tensors(
        state.tensors,
        modules,
        whose="the home's state",
        hint="was the architecture changed? join the run anew, from a new home",
    )


def unseen(round_: int, sender: str, kind: str, data: bytes) -> None:
    """A client's process has no server that anything could reach."""
