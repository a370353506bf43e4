"""Kinds of runs to audit: a finished run, published statistics, or settings alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.errors import RunError, UsageError
from fedvtc_edge.models import Classifier, ImageShape
from fedvtc_edge.models.extractor import Anchor, extractor_of
from fedvtc_edge.models.vtc import VTC
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.privacy.mechanism import anchor_width
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.wire import WireError

_LARGEST = 2**26


READ = ("anchored", "features", "features+decoder", "nothing")
"""Contents of uploads that attacks read."""


def shared(config: Config) -> str:
    """Content of uploads, as the method names it.

    Raises:
        UsageError: They upload the data themselves.
    """
    uploaded = METHODS.find(config.method.name).shared(config)
    if uploaded == "data":
        raise UsageError(
            f"a {config.method.name} run uploads the data themselves",
            hint="there is nothing to infer",
        )
    return uploaded


class AuditTarget(Protocol):
    """Interface of a run that can be audited; ``runs.finished.FinishedRun`` has it."""

    @property
    def path(self) -> Path:
        """Folder that holds ``server/``, if there is one."""

    @property
    def config(self) -> Config:
        """The settings of the run."""

    @property
    def digest(self) -> str:
        """Digest of the settings."""

    def anchor(self, shape: ImageShape) -> Anchor | None:
        """The anchor R, or None where there is none."""

    def published(self) -> GlobalStatistics | None:
        """The server's publication, or None."""

    def classifier(self, client: str, shape: ImageShape, classes: int) -> Classifier:
        """A client's classifier f."""

    def has_network(self, client: str) -> bool:
        """True if a client took part in a round, and so left a network."""

    def has_uploaded(self, client: str) -> bool:
        """True if the run keeps the classifier that a client measured its last upload with."""

    def uploaded(self, client: str, shape: ImageShape, classes: int) -> Classifier:
        """A client's classifier as it was when its last own features were measured."""

    def decoder(self, client: str, shape: ImageShape) -> VTC | None:
        """A client's decoder ψ, or None."""


@dataclass(frozen=True, eq=False)
class Settings:
    """Settings of a run that was not made: uploads can be staged, and nothing was seen.

    Args:
        config: The settings; ``method.share`` must be ``anchored``.
        path: Folder without uploads.
        classes: Number C of classes.
        digest: Empty, as nobody vouches for it.
    """

    config: Config
    path: Path = Path("/nonexistent")
    classes: int = 10
    digest: str = ""

    def anchor(self, shape: ImageShape) -> Anchor | None:
        """The anchor R of the settings."""
        return extractor_of(self.config, shape, self.classes)

    def published(self) -> GlobalStatistics | None:
        """No publication."""
        return None

    def classifier(self, client: str, shape: ImageShape, classes: int) -> Classifier:
        """Refuse: settings have no classifier.

        Raises:
            RunError: Always.
        """
        raise RunError("nothing has models here", hint="audit a finished run")

    def has_network(self, client: str) -> bool:
        """False: settings alone have none."""
        return False

    def has_uploaded(self, client: str) -> bool:
        """False: settings alone keep no classifier."""
        return False

    def uploaded(self, client: str, shape: ImageShape, classes: int) -> Classifier:
        """Refuse: settings have no classifier.

        Raises:
            RunError: Always.
        """
        return self.classifier(client, shape, classes)

    def decoder(self, client: str, shape: ImageShape) -> VTC | None:
        """No decoder."""
        return None


@dataclass(frozen=True, eq=False)
class StatisticsFile(Settings):
    """Published statistics, with the settings of the run that they are of.

    Args:
        statistics: Content of the file at ``path``.
    """

    statistics: GlobalStatistics | None = None

    @classmethod
    def open(cls, path: Path, config: Config) -> StatisticsFile:
        """Read a file that a server published.

        Raises:
            RunError: It cannot be read, or does not fit the settings.
        """
        try:
            if path.stat().st_size > _LARGEST:
                raise RunError(f"{path} is too large", hint="give a server's publication")
            found = wire.published(path.read_bytes())
        except (OSError, WireError) as error:
            raise RunError(
                f"{path} holds no published statistics: {error}",
                hint="give statistics.safetensors of a run or of a bundle",
            ) from None
        width = anchor_width(config, len(found.count))
        if shared(config) != "anchored" or found.mean.shape[1] != width:
            raise RunError(
                f"{path} has {found.mean.shape[1]} features, the settings say {width} of an anchor",
                hint="give the config.toml of the run that it is of: --config",
            )
        return cls(config, path, len(found.count), statistics=found)

    def published(self) -> GlobalStatistics | None:
        """The content of the file."""
        return self.statistics
