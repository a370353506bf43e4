"""Does a bundle fit a device, how fast is it, and how do we know.

Three kinds of row, never mixed up: ``measured`` (this host, no limit), ``enforced``
(this host under a device's memory limit, cores and threads) and ``modelled`` (time on
the device itself, by :mod:`fedvtc_edge.benchmarks.latency`).

Loads on first use: every measured process imports this package first, and what it
imports is counted as the device's memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .measuring import bench
    from .page import render

__all__ = ["bench", "render"]


def __getattr__(name: str) -> Any:
    if name == "bench":
        from .measuring import bench

        return bench
    if name == "render":
        from .page import render

        return render
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
