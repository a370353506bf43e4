"""What can be audited: a finished run; statistics with the data they are of; settings alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.errors import RunError, UsageError
from fedvtc_edge.models import Classifier, ImageShape
from fedvtc_edge.models.anchor import Anchor
from fedvtc_edge.models.vtc import VTC
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.privacy.mechanism import release_spec_of
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.wire import WireError

_LARGEST = 2**26


def shared(config: Config) -> str:
    """What a run's clients upload: ``anchored``, ``features[+decoder]`` or ``nothing``.

    Raises:
        UsageError: All of their data.
    """
    uploaded = METHODS.find(config.method.name).shared(config)
    if uploaded == "data":
        raise UsageError(
            f"a {config.method.name} run uploads the data themselves",
            hint="there is nothing to infer",
        )
    return uploaded


class AuditTarget(Protocol):
    """What a laboratory needs of a run; :class:`~fedvtc_edge.runs.finished.FinishedRun` has it."""

    @property
    def path(self) -> Path:
        """Where ``server/`` is, if anywhere."""

    @property
    def config(self) -> Config:
        """Its settings."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """The content of ``summary.json``."""

    @property
    def digest(self) -> str:
        """Of the settings."""

    def anchor(self, shape: ImageShape) -> Anchor | None:
        """R, or None where there is none."""

    def published(self) -> GlobalStatistics | None:
        """What the server published, or None."""

    def classifier(self, client: str, shape: ImageShape, classes: int) -> Classifier:
        """A client's f."""

    def decoder(self, client: str, shape: ImageShape) -> VTC | None:
        """A client's ψ, or None."""


@dataclass(frozen=True, eq=False)
class Settings:
    """A run that nobody made: uploads can be staged on its path, and nothing was seen of it.

    Args:
        config: Its settings; ``method.share`` must be ``anchored``.
        path: Of no account.
        classes: Number C of classes.
        digest: Nobody vouches for it.
    """

    config: Config
    path: Path = Path("/nonexistent")
    classes: int = 10
    digest: str = ""

    @property
    def summary(self) -> Mapping[str, Any]:
        """Empty."""
        return {}

    def anchor(self, shape: ImageShape) -> Anchor:
        """R of the settings."""
        spec = release_spec_of(self.config, self.classes)
        width = spec.width if spec else self.config.method.anchor
        seed = derive_seed(self.config.seed, "anchor")
        return Anchor(shape, width, seed, self.config.method.extractor).eval()

    def published(self) -> GlobalStatistics | None:
        """Nothing."""
        return None

    def classifier(self, client: str, shape: ImageShape, classes: int) -> Classifier:
        """There is none.

        Raises:
            RunError: Always.
        """
        raise RunError("nothing has models here", hint="audit a finished run")

    def decoder(self, client: str, shape: ImageShape) -> VTC | None:
        """There is none."""
        return None


@dataclass(frozen=True, eq=False)
class StatisticsFile(Settings):
    """Published statistics alone, as far as a run stands behind them.

    Args:
        config: Settings that say which data, partition and anchor they are of.
        path: Of the file.
        world: Its content.
    """

    world: GlobalStatistics | None = None

    @classmethod
    def open(cls, path: Path, config: Config) -> StatisticsFile:
        """Read a file that a server published.

        Raises:
            RunError: It cannot be read, or does not fit the settings.
        """
        try:
            if path.stat().st_size > _LARGEST:
                raise RunError(f"{path} is too large", hint="give a server's publication")
            world = wire.published(path.read_bytes())
        except (OSError, WireError) as error:
            raise RunError(
                f"{path} holds no published statistics: {error}",
                hint="give statistics.safetensors of a run or of a bundle",
            ) from None
        spec = release_spec_of(config, len(world.count))
        width = spec.width if spec else config.method.anchor
        if shared(config) != "anchored" or world.mean.shape[1] != width:
            raise RunError(
                f"{path} has {world.mean.shape[1]} features, the settings say {width} of an anchor",
                hint="give the config.toml of the run that it is of: --config",
            )
        return cls(config, path, len(world.count), world=world)

    def published(self) -> GlobalStatistics | None:
        """The file's content."""
        return self.world
