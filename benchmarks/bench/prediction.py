"""The modelled rows, and how well the model does on the graphs that this host has timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

from fedvtc_edge.devices import DeviceProfile
from fedvtc_edge.errors import FedVTCError

from ..latency import (
    BAND,
    LatencyModel,
    NodeCost,
    Sample,
    leave_one_out,
    node_costs,
)
from .rows import BenchRow, blank
from .subjects import BenchSubject

LEAST_NETWORKS = 5
"""Fewer different networks leave too little to fit three figures to: with one of three left
out the fit itself is at fault, and the check would say so of the model."""


def modelled(subject: BenchSubject, profile: DeviceProfile, threads: int) -> BenchRow:
    """Time on a device with its band, or why there is none; int8 is not modelled.

    Args:
        subject: What is to run there.
        profile: The device.
        threads: Of one inference, at most its cores.
    """
    row = blank(subject, profile.name, "modelled", threads)
    if profile.runtime == "none":
        return replace(row, verdict="no runtime")
    try:
        ms = LatencyModel.of(profile, threads).milliseconds(_nodes(subject))
    except FedVTCError as error:  # figures of the device, the onnx package, or the graph
        return replace(row, verdict="not modelled", note=str(error))
    return replace(row, wall_ms_p50=ms, low_ms=ms / BAND, high_ms=ms * BAND, verdict="modelled")


def check(subjects: Sequence[BenchSubject], rows: Sequence[BenchRow]) -> dict[str, Any] | None:
    """Fit the model to this host's measured fp32 graphs, each left out in turn.

    A network that is there twice, at another batch or in another client's bundle, would
    tell of itself: it is left out as a whole, and counted once per batch.

    Args:
        subjects: What was measured.
        rows: The measured row of each.

    Returns:
        ``band``, ``graphs``, ``within`` and each graph's figures; None: too few networks.
    """
    samples: dict[tuple[NodeCost, ...], Sample] = {}
    for subject, row in zip(subjects, rows, strict=True):
        if subject.variant != "fp32" or not row.wall_ms_p50:
            continue
        try:
            nodes = _nodes(subject)
        except FedVTCError:  # its modelled rows say why
            continue
        network = " ".join(node.operator for node in nodes)
        samples.setdefault(nodes, Sample(subject.name, nodes, row.wall_ms_p50, group=network))
    if len({sample.group for sample in samples.values()}) < LEAST_NETWORKS:
        return None
    held = leave_one_out(list(samples.values()))
    return {
        "band": BAND,
        "graphs": len(held),
        "within": sum(one.within for one in held),
        "held": [asdict(one) for one in held],
    }


def _nodes(subject: BenchSubject) -> tuple[NodeCost, ...]:
    return _costs(subject.verified.read(subject.file), subject.batch)


@cache
def _costs(model: bytes, batch: int) -> tuple[NodeCost, ...]:
    nodes: tuple[NodeCost, ...] = node_costs(model, batch=batch)
    return nodes
