"""What can be audited beside a finished run: a statistics file, with the data it is of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvtc_edge import wire
from fedvtc_edge.anchor import Anchor
from fedvtc_edge.config import Config
from fedvtc_edge.errors import RunError
from fedvtc_edge.models import Classifier, ImageShape
from fedvtc_edge.privacy.plan import design_of
from fedvtc_edge.statistics import GlobalStatistics
from fedvtc_edge.streams import seed_of
from fedvtc_edge.vtc import VTC
from fedvtc_edge.wire import WireError

_LARGEST = 2**26


@dataclass(frozen=True, eq=False)
class StatisticsFile:
    """Published statistics alone, as far as a run stands behind them.

    Args:
        path: Of the file.
        config: Settings that say which data, partition and anchor they are of.
        world: Their content.
        digest: Empty: nobody vouches for them.
    """

    path: Path
    config: Config
    world: GlobalStatistics
    digest: str = ""
    summary: Any = None

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
        design = design_of(config, len(world.count))
        width = design.width if design else config.method.anchor
        if config.method.share != "anchored" or world.mean.shape[1] != width:
            raise RunError(
                f"{path} has {world.mean.shape[1]} features, the settings say {width} of an anchor",
                hint="give the config.toml of the run that it is of: --config",
            )
        return cls(path, config, world, "", {})

    def anchor(self, shape: ImageShape) -> Anchor:
        """R of the settings."""
        width = int(self.world.mean.shape[1])
        return Anchor(shape, width, seed_of(self.config.seed, "anchor")).eval()

    def published(self) -> GlobalStatistics:
        """The file's content."""
        return self.world

    def classifier(self, client: str, shape: ImageShape, classes: int) -> Classifier:
        """There is none.

        Raises:
            RunError: Always.
        """
        raise RunError("a statistics file has no models", hint="audit the run itself")

    def decoder(self, client: str, shape: ImageShape) -> VTC | None:
        """There is none."""
        return None
