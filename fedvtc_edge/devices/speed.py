"""How fast a device works, by three figures of its profile: the roofline of one thread.

An operation takes the longer of its arithmetic and its memory traffic (Williams et al.
2009, "Roofline"), and a fixed time to be started.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fedvtc_edge.errors import ConfigError

from .profile import DeviceProfile, Figure

TRAINING_COMPUTE, TRAINING_TRAFFIC = 0.5, 0.15
"""Share of a profile's arithmetic and memory speed that training reaches.

Fitted on one x86 machine over the phases of eight architectures: see
``python -m fedvtc_edge.benchmarks.studies.training`` and docs/simulation.md.
"""


@dataclass(frozen=True)
class Speed:
    """What one thread of a device does.

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
        """What training in torch makes of a profile, on one thread.

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


def known(profile: DeviceProfile, key: str) -> Figure:
    """A figure that something cannot do without.

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
