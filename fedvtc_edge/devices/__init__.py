"""What the devices at the edge can do, and how we know."""

from __future__ import annotations

from .profile import Anchor, DeviceProfile, Figure, Share, profile_names

__all__ = ["Anchor", "DeviceProfile", "Figure", "Share", "profile_names"]
