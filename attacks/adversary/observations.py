"""Class statistics as an adversary reads them: from uploads, releases and publications.

No knowledge of anybody's data is needed: the settings say how long an upload is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.errors import RunError
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.privacy.release import second_moments
from fedvtc_edge.privacy.release_spec import COUNT, Array, ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.privacy.sampler import GRID
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.wire.context import Context

EVERYONE = "all"
"""The name of all clients together, of whom only the sum is seen."""

FLOAT32, FLOAT16 = 2.0**-24, 2.0**-11

_LARGEST_UPLOAD = 2**26


@dataclass(frozen=True, eq=False)
class Observation:
    """Statistics of C classes as an adversary reads them.

    Args:
        client: Client that the statistics are of, or :data:`EVERYONE`.
        round: Round of the upload; 0 before the first.
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
        """Degrees of freedom of the scatter: samples less classes; 0 without one."""
        return float(np.maximum(self.count - 1, 0).sum()) if self.scatter is not None else 0.0


def of_statistics(
    statistics: ClassStatistics, *, who: str, client: str, round_: int, rounding: float
) -> Observation:
    """Read exact sums."""
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


def of_means(
    statistics: ClassStatistics | GlobalStatistics, *, who: str, client: str, round_: int
) -> Observation:
    """Read counts and means, beside which no second moment travelled."""
    count, nothing = statistics.count, np.zeros(len(statistics.count))
    return Observation(who, client, round_, count, statistics.mean, None, None, nothing, FLOAT32)


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
    """Read noised or clipped sums as they are: without the shrinkage of ``estimate``.

    Args:
        spec: Terms of the release.
        release: Integers, [spec.size].
        centre: Public centre of the features, [m].
        draws: Shares of noise in the release; 0 for an upload that was clipped only.
        typical: Factor by which joint clipping shortens an example, from public images.
    """
    step = spec.unit / GRID
    numbers, sums, seconds = np.split(release * step, np.cumsum(spec.sizes)[:-1])
    count = numbers / COUNT
    many = np.maximum(count, 0.5 * typical)[:, None]
    deviation = sums.reshape(spec.classes, spec.width) / many
    mean = (deviation * spec.radius + centre) * spec.width**0.5
    noise = float(spec.share) * step * draws**0.5 * spec.radius * spec.width**0.5 / many[:, 0]
    count, scatter = count / typical, None
    if spec.second:
        # About the public centre, less what the class means explain; noised, and of any sign.
        about = (mean / spec.width**0.5 - centre) * np.maximum(count, 0.0)[:, None] ** 0.5
        moments = second_moments(seconds, spec.width) * spec.radius**2 / spec.second_weight
        scatter = (moments / typical - about.T @ about) * spec.width
    return Observation(who, client, round_, count, mean, None, scatter, noise, 2.0**-16)


def of_publication(published: GlobalStatistics, *, who: str, moments: bool = True) -> Observation:
    """Read what the server published, as exact sums over all clients.

    Args:
        moments: Whether its second moments are sums of the clients' own; else means alone count.
    """
    if not moments:
        return of_means(published, who=who, client=EVERYONE, round_=0)
    sums = sums_of(published)
    return of_statistics(sums, who=who, client=EVERYONE, round_=0, rounding=FLOAT32)


def sums_of(published: GlobalStatistics) -> ClassStatistics:
    """The sums that a publication was made of: :meth:`GlobalStatistics.from_sum` undone."""
    count, mean = published.count, published.mean
    total = mean * count[:, None]
    if published.covariance is None:
        square = (np.square(published.std) + np.square(mean)) * count[:, None]
        return ClassStatistics(count, total, square, False)
    square = published.covariance * count.sum() + mean.T @ total
    return ClassStatistics(count, total, square, True)


def uploads(
    folder: Path, config: Config, senders: Collection[str] | None = None
) -> Iterator[tuple[Context, bytes]]:
    """Uploads under ``server/``, in the order of rounds and names.

    Args:
        senders: Whose; None is everybody's.

    Raises:
        RunError: A file that is too large, is no upload, or of another run.
    """
    for path in sorted((folder / "server").glob("round-*/*.upload")):
        if senders is not None and path.name.rsplit(".", 2)[0] not in senders:
            continue
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
    """Read one upload of statistics as the server does.

    Raises:
        WireError: It is not what the settings say.
    """
    client, round_ = context.sender, context.round
    if spec is not None:
        release = wire.decode_release(data, size=spec.size, context=context)
        # The server's own release of a client-level run is noised; what it was sent is not.
        clipped = isinstance(spec, ClientReleaseSpec) and spec.shares == 1
        draws = 0.0 if clipped and context.sender != "server" else 1.0
        return of_release(
            spec,
            release,
            centre,
            who="server",
            client=client,
            round_=round_,
            draws=draws,
            typical=typical,
        )
    anchored = context.kind == "anchor"
    width = config.method.anchor if anchored else config.method.latent
    if not METHODS.find(config.method.name).sends_moments:
        sums = wire.decode_means(data, classes=classes, width=width, context=context)
        return of_means(sums, who="server", client=client, round_=round_)
    statistics = wire.decode(
        data,
        classes=classes,
        width=width,
        pooled=anchored and config.method.moments == "covariance",
        context=context,
    )
    rounding = FLOAT16 if config.transport.precision == "float16" else FLOAT32
    return of_statistics(statistics, who="server", client=client, round_=round_, rounding=rounding)
