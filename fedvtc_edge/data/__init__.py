"""Data sets: where they come from, what is checked, how they are dealt out.

Nothing here imports torch except the torchvision sets, and those only when named.
"""

from .dataset import Dataset
from .partition import hold_out, partition
from .sources import load_data, load_dataset

__all__ = ["Dataset", "hold_out", "load_data", "load_dataset", "partition"]
