"""What a run's server really saw, and what everybody sees, turned into class means.

Opening takes no knowledge of anybody's data: the settings say how long an upload is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.errors import RunError
from fedvtc_edge.privacy.release_spec import COUNT, RADIUS, Array, ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.privacy.sampler import GRID
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.wire.context import Context

EVERYONE = "all"
"""Stands for the clients of whom only the sum is seen."""

FLOAT32, FLOAT16 = 2.0**-24, 2.0**-11

_LARGEST_UPLOAD = 2**26


@dataclass(frozen=True, eq=False)
class Observation:
    """Statistics of C classes as an adversary reads them.

    Args:
        who: The adversary, see :class:`~fedvtc_edge.attacks.adversary.view.View`.
        client: Whose they are, or :data:`EVERYONE`.
        round: Of the upload.
        count: Samples per class, [C]; under noise estimates, which may be negative.
        mean: Class means, [C, p]; of no account where ``count`` is not above 0.
        std: Biased standard deviations, [C, p], or None.
        scatter: Within-class scatter over all classes, [p, p], or None.
        noise: Standard deviation of the noise on a class mean's numbers, [C].
        rounding: Relative error of the sums.
    """

    who: str
    client: str
    round: int
    count: Array
    mean: Array
    std: Array | None
    scatter: Array | None
    noise: Array
    rounding: float

    @property
    def freedom(self) -> float:
        """Samples less classes that the scatter is of."""
        return float(np.maximum(self.count - 1, 0).sum()) if self.scatter is not None else 0.0


def of_statistics(
    statistics: ClassStatistics, *, who: str, client: str, round_: int, rounding: float
) -> Observation:
    """Exact sums."""
    scatter = None
    if statistics.pooled:
        between = (statistics.mean * statistics.count[:, None]).T @ statistics.mean
        scatter = statistics.square - between
        scatter = (scatter + scatter.T) / 2
    return Observation(
        who,
        client,
        round_,
        statistics.count,
        statistics.mean,
        None if statistics.pooled else statistics.std,
        scatter,
        np.zeros(statistics.classes),
        rounding,
    )


def of_release(
    spec: ReleaseSpec,
    release: NDArray[np.int64],
    centre: Array,
    *,
    who: str,
    client: str,
    round_: int,
    draws: float = 1.0,
    typical: float = 1.0,
) -> Observation:
    """Noised or clipped sums, read as they are: without the shrinkage of ``estimate``.

    Args:
        spec: Public.
        release: [design.size].
        centre: Public centre of the features.
        who: The adversary.
        client: Whose.
        round_: Of the upload.
        draws: Shares of noise in it; 0 for an upload that was clipped only.
        typical: By what factor joint clipping shortens an example; public, from public images.
    """
    step = spec.unit / GRID
    numbers, sums, _ = np.split(release * step, np.cumsum(spec.sizes)[:-1])
    count = numbers / COUNT
    many = np.maximum(count, 0.5 * typical)[:, None]
    deviation = sums.reshape(spec.classes, spec.width) / many
    mean = (deviation * RADIUS + centre) * spec.width**0.5
    noise = float(spec.share) * step * draws**0.5 * RADIUS * spec.width**0.5 / many[:, 0]
    return Observation(who, client, round_, count / typical, mean, None, None, noise, 2.0**-16)


def of_publication(world: GlobalStatistics, *, who: str, client: str = EVERYONE) -> Observation:
    """What the server published, as exact sums over all clients."""
    return replace(
        of_statistics(sums_of(world), who=who, client=client, round_=0, rounding=FLOAT32), who=who
    )


def sums_of(world: GlobalStatistics) -> ClassStatistics:
    """The sums that a publication was made of: :meth:`GlobalStatistics.from_sum` undone."""
    total = world.mean * world.count[:, None]
    if world.covariance is None:
        square = (np.square(world.std) + np.square(world.mean)) * world.count[:, None]
        return ClassStatistics(world.count, total, square, False)
    square = world.covariance * world.count.sum() + world.mean.T @ total
    return ClassStatistics(world.count, total, square, True)


def uploads(folder: Path, config: Config) -> Iterator[tuple[Context, bytes]]:
    """All uploads under ``server/``, in the order of rounds and names.

    Raises:
        RunError: A file that is too large, is no upload, or of another run.
    """
    for path in sorted((folder / "server").glob("round-*/*.upload")):
        if path.stat().st_size > _LARGEST_UPLOAD:
            raise RunError(f"{path} is too large", hint="the run is damaged")
        data = path.read_bytes()
        try:
            context = wire.context_of(data)
        except wire.WireError as error:
            # Messages of a masked sum are no statistics, and carry no header.
            if "-mask" in path.name:
                continue
            raise RunError(f"{path}: {error}", hint=error.hint) from None
        if context is None or path.name != f"{context.sender}.{context.kind}.upload":
            raise RunError(f"{path} says that it is {context}", hint="the run is damaged")
        yield context, data


def opened(
    data: bytes,
    context: Context,
    config: Config,
    classes: int,
    spec: ReleaseSpec | None,
    centre: Array,
    typical: float,
) -> Observation:
    """One upload of statistics, as the server reads it.

    Raises:
        WireError: It is not what the settings say.
    """
    who, client, round_ = "server", context.sender, context.round
    if spec is not None:
        release = wire.decode_release(data, size=spec.size, context=context)
        # The server's own release of a client-level run is noised; what it was sent is not.
        clipped = isinstance(spec, ClientReleaseSpec) and spec.shares == 1
        draws = 0.0 if clipped and context.sender != "server" else 1.0
        return of_release(
            spec,
            release,
            centre,
            who=who,
            client=client,
            round_=round_,
            draws=draws,
            typical=typical,
        )
    anchored = context.kind == "anchor"
    statistics = wire.decode(
        data,
        classes=classes,
        width=config.method.anchor if anchored else config.method.latent,
        pooled=anchored and config.method.moments == "covariance",
        context=context,
    )
    rounding = FLOAT16 if config.transport.precision == "float16" else FLOAT32
    return of_statistics(statistics, who=who, client=client, round_=round_, rounding=rounding)
