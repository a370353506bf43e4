"""What the machine we run on has: cores that we may use, and memory."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fedvtc_edge.errors import ConfigError

MEGABYTE = 1 << 20

_ROOT = Path("/")


class Memory(NamedTuple):
    """In MB of 2^20 bytes.

    Args:
        total: What there is, or the control group's limit where that is lower.
        usable: What is not in use now; at most ``total``.
        limited: Whether a control group's limit is the lower one.
    """

    total: float
    usable: float
    limited: bool


def cores() -> int:
    """Those that this process may run on, which in a container may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory(root: Path = _ROOT) -> Memory:
    """Memory of this machine, from ``/proc/meminfo`` and the control groups, v1 or v2.

    Args:
        root: Where ``proc`` and ``sys`` lie.

    Raises:
        ConfigError: Not a Linux system.
    """
    try:
        lines = (root / "proc/meminfo").read_text("ascii").splitlines()
    except OSError as error:
        raise ConfigError(
            f"cannot read /proc/meminfo: {error.strerror}; memory is found on Linux only",
            hint="write a profile by hand: docs/devices.md",
        ) from None
    fields = {key: rest.split() for key, _, rest in (line.partition(":") for line in lines)}
    try:
        total, available = (int(fields[key][0]) / 1024 for key in ("MemTotal", "MemAvailable"))
    except (KeyError, IndexError, ValueError):
        raise ConfigError(
            "/proc/meminfo: expected MemTotal and MemAvailable in kB",
            hint="write a profile by hand: docs/devices.md",
        ) from None
    limits = [limit / MEGABYTE for limit in _limits(root)]
    lowest = min([total, *limits])
    return Memory(lowest, min(available, lowest), lowest < total)


def _limits(root: Path) -> list[int]:
    """Limits in bytes of our control group and of all that it lies in."""
    try:
        groups = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:  # a system without control groups limits nothing
        return []
    found = []
    for line in groups:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            folder, name = "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        place = PurePosixPath(path.lstrip("/"))
        for group in (place, *place.parents):
            # In a container the path may be the host's, and its files not there.
            try:
                text = (root / folder / group / name).read_text("ascii").strip()
            except OSError:
                continue
            if text.isdigit():  # v2 writes "max" for no limit
                found.append(int(text))
    return found
