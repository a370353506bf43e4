"""Finished runs, read back by export, audits and benchmarks.

A run directory may have travelled, so nothing in it is believed before it is
checked against what the settings say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.errors import RunError
from fedvtc_edge.models import Classifier, ImageShape, network, vtc
from fedvtc_edge.models.extractor import Anchor, extractor_of
from fedvtc_edge.models.registry import ON_EXTRACTOR
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.wire import WireError

from .directory import AT_UPLOAD, settings_of
from .records import ClientRecord, Summary, read_record

M = TypeVar("M", bound=nn.Module)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """One finished run on disk.

    Args:
        summary: The content of ``summary.json``.
        digest: Of the settings; the same for every repetition of the run.
    """

    path: Path
    config: Config
    summary: Summary
    digest: str

    @classmethod
    def open(cls, path: Path) -> FinishedRun:
        """Read settings and summary.

        Raises:
            RunError: No run there, an unfinished or damaged one, or one of another version.
        """
        finished = (path / "summary.json").is_file()
        if (path / "home.json").is_file() and not finished:
            raise RunError(
                f"{path} is of a client whose run is not over",
                hint="it is ready when 'fedvtc-edge join' says that the run is done",
            )
        config, begun_with = settings_of(path)
        if not finished:
            raise RunError(
                f"{path} is not finished", hint=f"go on with it: fedvtc-edge run --resume {path}"
            )
        return cls(path, config, _summary(path / "summary.json"), begun_with)

    @property
    def clients(self) -> tuple[str, ...]:
        """Ids of the clients, in their order."""
        return tuple(record.id for record in self.summary.clients)

    @property
    def is_home(self) -> bool:
        """True if it is one client's state folder, and not a whole run."""
        return self.summary.home

    @property
    def is_served(self) -> bool:
        """True if its clients were elsewhere, and kept their networks and images."""
        return self.summary.elsewhere(self.path)

    def need_networks(self) -> None:
        """Refuse a served run.

        Raises:
            RunError: It is one.
        """
        if self.is_served:
            raise RunError(
                f"{self.path} was served: its networks stayed with the clients",
                hint="export each client on its own machine: fedvtc-edge export HOME --out DIR",
            )

    @property
    def trained(self) -> tuple[str, ...]:
        """Ids of the clients that have a model, in their order; the others never took part."""
        if METHODS.find(self.config.method.name).common_head:
            return tuple(one.id for one in self.summary.clients if one.evaluated_round is not None)
        return tuple(client for client in self.clients if self.has_network(client))

    def has_network(self, client: str) -> bool:
        """True if a client took part in a round, and so left a network."""
        return (self.path / "clients" / client / "classifier.safetensors").is_file()

    def record(self, client: str) -> ClientRecord:
        """A client's entry in the summary.

        Raises:
            RunError: No client of that id.
        """
        for record in self.summary.clients:
            if record.id == client:
                return record
        raise RunError(
            f"{self.path} has no client {client!r}",
            hint=f"clients: {self.clients[0]} to {self.clients[-1]}",
        )

    def classifier(self, client: str, shape: ImageShape, classes: int) -> Classifier:
        """Classifier f of one client with its trained weights, on the CPU, for evaluation.

        Raises:
            ConfigError: Its architecture is not registered in this process.
            RunError: Weights that are missing, damaged or of another shape.
        """
        name = self.record(client).architecture
        assert name is not None  # _summary has looked
        model = network(name, self.config, shape, classes=classes, seed=0)
        return self._filled(model, client, "classifier")

    def has_uploaded(self, client: str) -> bool:
        """True if the run keeps the classifier that a client measured its last upload with."""
        return (self.path / "clients" / client / f"{AT_UPLOAD}.safetensors").is_file()

    def uploaded(self, client: str, shape: ImageShape, classes: int) -> Classifier:
        """Classifier f of one client as it was when its last own features were measured.

        Raises:
            RunError: The run does not hold it, or it is damaged.
        """
        name = self.record(client).architecture
        assert name is not None
        model = network(name, self.config, shape, classes=classes, seed=0)
        return self._filled(model, client, AT_UPLOAD)

    def decoder(self, client: str, shape: ImageShape) -> vtc.VTC | None:
        """Decoder ψ of one client, or None where its method or its architecture has none.

        Raises:
            RunError: Weights that are missing, damaged or of another shape.
        """
        if not METHODS.find(self.config.method.name).has_decoder:
            return None
        if self.record(client).architecture in ON_EXTRACTOR:
            return None
        decoder = vtc.build(shape, latent=self.config.method.latent, seed=0)
        return self._filled(decoder, client, "decoder")

    def anchor(self, shape: ImageShape) -> Anchor | None:
        """Anchor R as the run's clients built it, or None where the run used none.

        Raises:
            RunError: The published statistics are missing or damaged.
        """
        world = self.published()
        return None if world is None else extractor_of(self.config, shape, world.mean.shape[0])

    def published(self) -> GlobalStatistics | None:
        """Statistics that the server published last, or None where it published none.

        Raises:
            RunError: It is missing or damaged.
        """
        path = self.path / "statistics.safetensors"
        method = METHODS.find(self.config.method.name)
        shared = method.shared(self.config)
        statistics = shared == "anchored" or shared.startswith("features")
        if not ((statistics and method.publishes_statistics) or path.is_file()):
            return None
        try:
            return wire.published(path.read_bytes())
        except (WireError, OSError) as error:
            raise RunError(f"{path}: {error}", hint="the run is damaged: run it again") from None

    def _filled(self, module: M, client: str, name: str) -> M:
        self.need_networks()
        if self.record(client).evaluated_round is None and not self.has_network(client):
            raise RunError(
                f"{client} took part in no round of {self.path}: it has no network",
                hint=f"take one that did: {', '.join(self.trained[:3]) or 'there is none'}",
            )
        path = self.path / "clients" / client / f"{name}.safetensors"
        try:
            weights = load_file(path)
            if not all(torch.isfinite(value).all() for value in weights.values()):
                raise ValueError("a weight is not finite")
            module.load_state_dict(weights)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunError(
                f"{path} does not hold this client's {name}: {first}",
                hint="the run is damaged or of another version: run it again",
            ) from None
        return module.eval()


def _summary(path: Path) -> Summary:
    summary = read_record(Summary, path, strict=True)
    ids = [record.id for record in summary.clients]
    if not ids or not all(map(_ID.fullmatch, ids)) or len(set(ids)) != len(ids):
        problem = "its clients have no proper ids"
    elif any(record.architecture is None for record in summary.clients):
        problem = "a client has no architecture"
    else:
        return summary
    raise RunError(f"{path} is damaged: {problem}", hint="it cannot be trusted: run it again")
