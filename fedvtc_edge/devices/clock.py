"""The virtual clock: how fast a device works, and what becomes of a client in a round.

Times are seconds of simulated time, modelled from a device's profile; nothing here
measures or waits. An operation takes the longer of its arithmetic and its memory traffic
(Williams et al. 2009, "Roofline") on one thread, and a fixed time to be started. A client
downloads, computes and uploads, in this order and without overlap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedvtc_edge.errors import ConfigError

from .profile import DeviceProfile, Figure

if TYPE_CHECKING:
    import torch

Outcome = Literal["done", "late", "dropped", "unreachable"]

TRAINING_COMPUTE, TRAINING_TRAFFIC = 0.5, 0.15
"""Share of a profile's arithmetic and memory speed that training reaches.

Fitted on one x86 machine over the phases of eight architectures: see
``python -m fedvtc_edge.benchmarks.studies.training`` and docs/simulation.md.
"""


@dataclass(frozen=True)
class Speed:
    """Speed of one thread of a device.

    Args:
        gflops: 10⁹ float32 operations per second, as a well-written kernel reaches them.
        gbps: 10⁹ bytes per second between memory and core.
        overhead_us: Microseconds to start one operation.
    """

    gflops: float
    gbps: float
    overhead_us: float

    @classmethod
    def of(cls, profile: DeviceProfile, *, threads: int = 1) -> Speed:
        """The speed that a profile gives to so many of its cores.

        An efficiency that nobody knows is 1, and an unknown time to start an operation 0:
        both make the device faster than it is.

        Raises:
            ConfigError: The profile says nothing of its compute or its memory.
        """
        gflops = known(profile, "fp32_gflops").value
        share = min(threads / profile.cores.value, 1.0)
        efficiency = profile.efficiency.value if profile.efficiency else 1.0
        overhead = profile.node_overhead_us.value if profile.node_overhead_us else 0.0
        return cls(gflops * efficiency * share, known(profile, "memory_gbps").value, overhead)

    @classmethod
    def training(cls, profile: DeviceProfile) -> Speed:
        """Speed of training in torch on one thread of a profile's device.

        Small networks in eager mode reach a share of what compiled graphs do, and every
        operation has to be dispatched: see :data:`TRAINING_COMPUTE`.

        Raises:
            ConfigError: The profile lacks a figure.
        """
        graphs = cls.of(profile)
        overhead = known(profile, "torch_overhead_us").value
        return cls(graphs.gflops * TRAINING_COMPUTE, graphs.gbps * TRAINING_TRAFFIC, overhead)

    def seconds(self, flops: ArrayLike, traffic: ArrayLike) -> float:
        """Time of operations one after another.

        Args:
            flops: Operations of each, [K].
            traffic: Bytes that each reads and writes, [K].
        """
        compute = np.asarray(flops, np.float64) / (self.gflops * 1e9)
        memory = np.asarray(traffic, np.float64) / (self.gbps * 1e9)
        slower = np.maximum(compute, memory)
        return float(slower.sum() + slower.size * self.overhead_us * 1e-6)


class DeviceJob(NamedTuple):
    """Work and traffic of one client in one round.

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
    """Course of one client's round, in seconds.

    Args:
        outcome: ``done``; ``late``: still at work when its deadline came; ``dropped``:
            it stopped in the middle; ``unreachable``: it never began.
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
        stream: Named by the client and the round.

    Raises:
        ConfigError: There are bytes to carry and the profile says nothing of its network.
    """
    import torch  # a bundle's latency is modelled without it

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
    """Time at which the server closes a round: all have answered or are past their deadline."""
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


def known(profile: DeviceProfile, key: str) -> Figure:
    """The figure ``key`` of a profile, which something cannot do without.

    Raises:
        ConfigError: The profile does not give it.
    """
    figure = getattr(profile, key)
    if not isinstance(figure, Figure):
        raise ConfigError(
            f"the profile {profile.name} says nothing of {key}",
            hint=f'add {key} = {{ value = …, kind = "assumed", source = "why" }} to a file of '
            "your own and give its path",
        )
    return figure
