"""A control group with a memory limit: made, used by one process, removed.

The group is made below our own, so that limits which hold for us hold for it as well.
Version 2 gives memory limits only to children of a group that hands them on and, the
root aside, holds no process itself: there our parent is tried, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedvtc_edge.devices.calibration import MEGABYTE

_ROOT = Path("/")
_PREFIX = "fedvtc-edge-bench"
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class GroupParent:
    """A folder in which groups can be made.

    Args:
        folder: Of the group that ours would lie in.
        version: Of its control groups.
    """

    folder: Path
    version: Literal[1, 2]


def find_home(root: Path = _ROOT) -> GroupParent | None:
    """Where this process may make memory-limited groups; None: nowhere.

    Tried by making one, for permissions alone do not tell: a container's are often
    mounted read-only.

    Args:
        root: Where ``proc`` and ``sys`` lie.
    """
    for home in _candidates(root):
        try:
            _sweep(home.folder)
            with limited(home, 1024):
                return home
        except OSError:
            continue
    return None


@contextlib.contextmanager
def limited(home: GroupParent, limit_mb: float) -> Iterator[Path]:
    """A group with a memory limit and no swap; removed whatever happens inside.

    Args:
        home: Where to make it.
        limit_mb: Its limit, MB of 2^20 bytes.

    Yields:
        The file to which a process writes ``0`` to enter the group.

    Raises:
        OSError: It cannot be made, limited or, within some seconds, removed.
    """
    group = home.folder / f"{_PREFIX}-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    try:
        limit = str(int(limit_mb * MEGABYTE))
        if home.version == 1:
            (group / "memory.limit_in_bytes").write_text(limit, "ascii")
            swap = group / "memory.memsw.limit_in_bytes"  # memory and swap together
        else:
            (group / "memory.max").write_text(limit, "ascii")
            swap, limit = group / "memory.swap.max", "0"
        if swap.exists():  # not where the kernel does not count swap
            swap.write_text(limit, "ascii")
        yield group / "cgroup.procs"
    finally:
        _remove(group)


def _candidates(root: Path) -> Iterator[GroupParent]:
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:  # a system without control groups
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        relative = path.lstrip("/")
        if "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            own = top / relative
            # In a container the path may be the host's: then the mount is our own group.
            yield GroupParent(own if own.is_dir() else top, 1)
        elif number == "0":
            top = root / "sys/fs/cgroup"
            own = top / relative if (top / relative).is_dir() else top
            for folder in [own] if own == top else [own, own.parent]:
                if _hands_on_memory(folder):
                    yield GroupParent(folder, 2)


def _hands_on_memory(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return "memory" in (folder / "cgroup.subtree_control").read_text("ascii").split()
    return False


def _sweep(folder: Path) -> None:
    """Remove what benches that were killed outright have left: nobody else would."""
    for group in folder.glob(f"{_PREFIX}-*-*"):
        owner = group.name.removeprefix(f"{_PREFIX}-").partition("-")[0]
        if not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):  # it has processes still, or is not ours
                group.rmdir()


def _remove(group: Path) -> None:
    """A group is busy for an instant after its last process died."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)
