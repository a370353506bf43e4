"""A roofline per node: the longer of arithmetic and memory traffic, and a call.

    t = Σ over nodes of  max(FLOP / G, bytes / BW) + t0

(Williams, Waterman and Patterson 2009, one roof for each node.) Three figures stand
for a device: G and BW are what its kernels reach, not what a data sheet promises.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.devices import DeviceProfile
from fedvtc_edge.devices.clock import Speed
from fedvtc_edge.errors import ConfigError

from .costs import NodeCost

BAND = 2.0
"""Predictions are good to this factor either way; always print them with it."""

LEAST_GRAPHS = 4
"""Fewer graphs do not determine three figures and leave one to check them by."""

_NEEDED = ("fp32_gflops", "efficiency", "memory_gbps", "node_overhead_us")
_STARTS = (0.1, 0.5, 3.0, 15.0, 70.0, 350.0)
_STEP, _FINEST, _LIMITS = 2.0, 1e-3, (1e-4, 1e6)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LatencyModel:
    """Three figures of a device as its runtime uses it.

    Args:
        gflops: Arithmetic that kernels reach, 10^9 FLOP per second.
        gbps: Memory traffic that they reach, 10^9 bytes per second.
        overhead_us: Time to call one node, microseconds.
    """

    gflops: float
    gbps: float
    overhead_us: float

    def milliseconds(self, nodes: Sequence[NodeCost]) -> float:
        """One inference; the truth lies within a factor of ``BAND`` as a rule."""
        return _milliseconds(*_columns(nodes), self)

    @classmethod
    def of(cls, profile: DeviceProfile, threads: int = 1) -> LatencyModel:
        """The model that a profile's figures make.

        Cores share the arithmetic; one core is taken to use the whole memory bandwidth.

        Raises:
            ConfigError: A figure is missing, or the device has fewer cores than ``threads``.
        """
        missing = [key for key in _NEEDED if key not in profile.figures]
        if missing:
            raise ConfigError(
                f"{profile.name}: latency cannot be modelled without {', '.join(missing)}",
                hint="add the figures to a profile of your own, or measure them on the device: "
                "fedvtc-edge devices calibrate",
            )
        if not profile.figures["efficiency"].value:
            raise ConfigError(
                f"{profile.name}: efficiency = 0, expected more",
                hint="efficiency is the share of fp32_gflops that a good kernel reaches",
            )
        cores = int(profile.cores.value)
        if not 1 <= threads <= cores:
            raise ConfigError(
                f"{profile.name}: {threads} threads, expected 1 to {cores}",
                hint="one thread per core at most",
            )
        speed = Speed.of(profile, threads=threads)
        return cls(speed.gflops, speed.gbps, speed.overhead_us)


@dataclass(frozen=True)
class Sample:
    """One measured graph.

    Args:
        nodes: Costs at the batch that was measured.
        ms: Time of one inference, milliseconds.
        group: Samples of one group (a network at several batches, say) tell of each
            other, so they are left out together; None is a group of its own.
    """

    name: str
    nodes: tuple[NodeCost, ...]
    ms: float
    group: str | None = None


@dataclass(frozen=True)
class HeldOutSample:
    """A sample, and its prediction by a model that never saw it or its group."""

    name: str
    measured_ms: float
    predicted_ms: float
    ratio: float

    @property
    def within(self) -> bool:
        """True if predicted / measured lies in the band."""
        return 1 / BAND <= self.ratio <= BAND


def fit(samples: Sequence[Sample]) -> LatencyModel:
    """The figures under which predictions are nearest to what was measured.

    Least squares of log(predicted / measured), so that a fast graph counts as much as a
    slow one, by pattern search over the logarithms of the three figures, from the best points of a
    coarse grid: the sum has kinks where a node changes its roof, no useful derivative
    there, and more than one valley. Deterministic.

    Raises:
        ConfigError: Fewer than ``LEAST_GRAPHS`` samples, or times that are not positive.
    """
    if len(samples) < LEAST_GRAPHS:
        raise ConfigError(
            f"{len(samples)} measured graphs, expected {LEAST_GRAPHS} or more",
            hint="measure more graphs, or model from a device's profile",
        )
    for sample in samples:
        if not (0 < sample.ms < math.inf and sample.nodes):
            raise ConfigError(
                f"{sample.name}: {sample.ms} ms for {len(sample.nodes)} nodes, expected a "
                "positive time and at least one node",
                hint="measure the graph again",
            )
    columns = [_columns(sample.nodes) for sample in samples]
    measured = np.log([sample.ms for sample in samples])

    def error(point: Array) -> float:
        model = _at(point)
        predicted = [_milliseconds(flops, traffic, model) for flops, traffic in columns]
        return float(np.square(np.log(predicted) - measured).sum())

    found = []
    for gflops in _STARTS:  # in each regime of arithmetic against memory
        starts = (np.log((gflops, *rest)) for rest in itertools.product(_STARTS, repeat=2))
        found.append(_searched(error, min(starts, key=error)))
    return _at(min(found, key=error))


def _searched(error: Callable[[Array], float], point: Array) -> Array:
    """Pattern search from one point: along the axes, and along the valleys between them."""
    step, least, bounds = math.log(_STEP), error(point), np.log(_LIMITS)
    ways = [np.array(way) for way in itertools.product((1, -1, 0), repeat=len(point)) if any(way)]
    while step > _FINEST:
        before = least
        for way in ways:
            moved = np.clip(point + step * way, *bounds)
            if (candidate := error(moved)) < least:
                point, least = moved, candidate
        if least == before:
            step /= 2
    return point


def leave_one_out(samples: Sequence[Sample]) -> tuple[HeldOutSample, ...]:
    """Predict each sample by a model fitted without it and without its group.

    Raises:
        ConfigError: Too few samples remain; see :func:`fit`.
    """
    models: dict[str, LatencyModel] = {}
    held = []
    for number, sample in enumerate(samples):
        key = _group(sample, number)
        if key not in models:
            models[key] = fit([s for n, s in enumerate(samples) if _group(s, n) != key])
        predicted = models[key].milliseconds(sample.nodes)
        held.append(HeldOutSample(sample.name, sample.ms, predicted, predicted / sample.ms))
    return tuple(held)


def _group(sample: Sample, number: int) -> str:
    return f"sample {number}" if sample.group is None else f"group {sample.group}"


def _columns(nodes: Sequence[NodeCost]) -> tuple[Array, Array]:
    return np.array([node.flops for node in nodes]), np.array([node.bytes for node in nodes])


def _at(point: Array) -> LatencyModel:
    gflops, gbps, overhead = (float(value) for value in np.exp(point))
    return LatencyModel(gflops, gbps, overhead)


def _milliseconds(flops: Array, traffic: Array, model: LatencyModel) -> float:
    return 1e3 * Speed(model.gflops, model.gbps, model.overhead_us).seconds(flops, traffic)
