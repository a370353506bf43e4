"""The virtual clock: what becomes of a client in a round, and when the server closes it.

Times are seconds of simulated time, modelled from a device's profile; nothing here
measures or waits. A client downloads, computes and uploads, in this order and without
overlap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from .profile import DeviceProfile
from .speed import known

Outcome = Literal["done", "late", "dropped", "unreachable"]


class DeviceJob(NamedTuple):
    """What a client has to do in a round.

    Args:
        down: Bytes to download.
        compute: Seconds of work.
        up: Bytes to upload.
    """

    down: int
    compute: float
    up: int


@dataclass(frozen=True)
class Visit:
    """What became of a client in a round, in seconds.

    Args:
        outcome: ``done``; ``late``: still at work when its deadline came; ``dropped``:
            it stopped in the middle; ``unreachable``: it never began.
        download: Spent on downloading.
        compute: Spent on work.
        upload: Spent on uploading.
        answered: When the server need not wait for it any longer.
    """

    outcome: Outcome
    download: float
    compute: float
    upload: float
    answered: float

    @property
    def busy(self) -> float:
        """Seconds in which the device was at work or on the network."""
        return self.download + self.compute + self.upload


def visit(profile: DeviceProfile, job: DeviceJob, stream: torch.Generator) -> Visit:
    """One client's round; always three draws of ``stream``, whatever comes of them.

    A deadline, an availability or a dropout that the profile does not give is none, 1
    and 0. A deadline is for uploads: where nothing is uploaded there is nothing to be late
    with and nobody to wait. Without a deadline the server sees at once that a connection is
    lost.

    Args:
        profile: Of its device.
        job: What it has to do.
        stream: Named by the client and the round.

    Raises:
        ConfigError: There are bytes to carry and the profile says nothing of its network.
    """
    here, stays, when = torch.rand(3, generator=stream, dtype=torch.float64).tolist()
    if here >= (profile.availability.value if profile.availability else 1.0):
        return Visit("unreachable", 0.0, 0.0, 0.0, 0.0)
    spans = (
        _transfer(profile, "network_down_mbps", job.down),
        job.compute,
        _transfer(profile, "network_up_mbps", job.up),
    )
    whole, end = sum(spans), sum(spans)
    deadline = profile.deadline_s.value if profile.deadline_s and job.up else None
    dropped = stays < (profile.dropout.value if profile.dropout else 0.0)
    if dropped:
        end = when * whole
    if deadline is not None and (dropped or end > deadline):
        cut = min(end, deadline)
        return Visit(
            "dropped" if dropped and end <= deadline else "late", *_until(spans, cut), deadline
        )
    return Visit("dropped" if dropped else "done", *_until(spans, end), end)


def closing(visits: Iterable[Visit]) -> float:
    """When the server closes a round: everybody has answered, or is past its deadline."""
    return max((one.answered for one in visits), default=0.0)


def _transfer(profile: DeviceProfile, key: str, size: int) -> float:
    return size * 8 / (known(profile, key).value * 1e6) if size else 0.0


def _until(spans: tuple[float, float, float], end: float) -> tuple[float, float, float]:
    """The parts of consecutive spans that lie before ``end``."""
    down, work, up = spans
    return (
        min(down, end),
        min(work, max(end - down, 0.0)),
        min(up, max(end - down - work, 0.0)),
    )
