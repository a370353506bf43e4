"""Random streams with names instead of one hidden global state.

Every draw in a run comes from a stream named by what it is for: the run's
seed, the client, the round, the phase. A resumed run therefore needs no saved
generator state, and no client's draws depend on another's.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream ``names`` of the run ``seed``."""
    text = "\x1f".join(["fedvtc-edge", str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for the stream ``names``; draws are moved to the device."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


def seed_layers(seed: int, device: torch.device) -> None:
    """Seed torch's global streams, which layers with randomness of their own draw from.

    What ``torch.manual_seed`` does, but only for the CPU and ``device``: that one
    also formats the call stack for every accelerator that is not in use.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
