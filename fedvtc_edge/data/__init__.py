"""Data sets: where they come from, what is checked, how they are dealt out.

Nothing here imports torch except the torchvision sets, and those only when named. Sources load on
first use: a device reads images and no data set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .dataset import Dataset
from .partition import hold_out, partition

if TYPE_CHECKING:
    from .sources import load_data, load_dataset

__all__ = ["Dataset", "hold_out", "load_data", "load_dataset", "partition"]


def __getattr__(name: str) -> Any:
    if name in ("load_data", "load_dataset"):
        from . import sources

        return getattr(sources, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
