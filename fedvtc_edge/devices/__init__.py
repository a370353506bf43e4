"""Devices at the edge: profiles with sources, cost model, planner, virtual clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .profile import DeviceProfile, Figure, ReferenceLatency, Share, profile_names

if TYPE_CHECKING:
    from .planner import plan

__all__ = ["DeviceProfile", "Figure", "ReferenceLatency", "Share", "plan", "profile_names"]


def __getattr__(name: str) -> Any:
    if name == "plan":  # it needs torch, which a device that lists the profiles lacks
        from .planner import plan

        return plan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
