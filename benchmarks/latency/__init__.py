"""Latency of a graph on a device, by its nodes and three figures of the device."""

from __future__ import annotations

from .costs import NodeCost, node_costs
from .model import BAND, LEAST_GRAPHS, HeldOutSample, LatencyModel, Sample, fit, leave_one_out

__all__ = [
    "BAND",
    "LEAST_GRAPHS",
    "HeldOutSample",
    "LatencyModel",
    "NodeCost",
    "Sample",
    "fit",
    "leave_one_out",
    "node_costs",
]
