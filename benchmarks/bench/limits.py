"""Limits on a measured process: memory, cores, the size of what it writes.

Memory is limited by a control group where one can be made, else by ``RLIMIT_DATA``. The
group is made below our own, so that limits which hold for us hold for it as well.
Version 2 gives memory limits only to children of a group that hands them on and, the
root aside, holds no process itself: there our parent is tried, too.

``python -m fedvtc_edge.benchmarks.bench.limits SETTINGS`` limits itself and becomes the
measured process. Memory is charged to whichever control group a process is in when it first
touches it, so the group is entered here, before the interpreter that is measured starts:
after ``exec`` nothing of this one is left. A function between fork and exec in the bench
would do the same, but is not safe in a process that has threads, and numpy starts some.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedvtc_edge.errors import ConfigError

CHILD = "fedvtc_edge.benchmarks.bench.child"

MAX_FILE_BYTES = 1 << 20
"""A measured process writes its reply and errors, and nothing larger."""

Method = Literal["auto", "cgroup", "rlimit"]

_MEGABYTE = 2**20
_ROOT = Path("/")
_PREFIX = "fedvtc-edge-bench"
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Enforcement:
    """Limit of a process's memory on this host.

    Args:
        parent: Where control groups can be made; None: ``RLIMIT_DATA``, which needs no rights.
    """

    parent: GroupParent | None

    @classmethod
    def find(cls, method: Method = "auto") -> Enforcement:
        """Choose the best way that this process may take; ``cgroup`` or ``rlimit`` insists on one.

        Raises:
            ConfigError: No control group can be made and one was insisted on.
        """
        parent = None if method == "rlimit" else find_parent()
        if parent is None and method == "cgroup":
            raise ConfigError(
                "no control group with a memory limit can be made here",
                hint="give the rights to make one (systemd-run --user --scope -p Delegate=yes, "
                "or root), or take --enforce rlimit",
            )
        return cls(parent)

    @property
    def name(self) -> str:
        """Value of ``enforced_by`` in a row."""
        return "RLIMIT_DATA" if self.parent is None else f"cgroup v{self.parent.version}"

    @contextlib.contextmanager
    def settings(self, limit_mb: float | None, cpus: int | None) -> Iterator[str]:
        """SETTINGS of a measured process, while the group that they name exists.

        Args:
            limit_mb: Memory, MB of 2^20 bytes; None sets no limit.
            cpus: Processors at most; None leaves them all.
        """
        chosen = None if cpus is None else sorted(os.sched_getaffinity(0))[:cpus]
        data = None if limit_mb is None else int(limit_mb * _MEGABYTE)
        if data is None or self.parent is None:
            yield json.dumps({"group": None, "data": data, "cpus": chosen})
            return
        with limited(self.parent, limit_mb or 0) as procs:
            yield json.dumps({"group": str(procs), "data": None, "cpus": chosen})


@dataclass(frozen=True)
class GroupParent:
    """A control group, of version 1 or 2, in which others can be made."""

    folder: Path
    version: Literal[1, 2]


def find_parent(root: Path = _ROOT) -> GroupParent | None:
    """Control group in which this process may make memory-limited ones, or None.

    Tried by making one, for permissions alone do not tell: a container's are often
    mounted read-only.

    Args:
        root: Where ``proc`` and ``sys`` lie.
    """
    for parent in _candidates(root):
        try:
            _sweep(parent.folder)
            with limited(parent, 1024):
                return parent
        except OSError:
            continue
    return None


@contextlib.contextmanager
def limited(parent: GroupParent, limit_mb: float) -> Iterator[Path]:
    """A group with a memory limit and no swap; removed whatever happens inside.

    Args:
        limit_mb: MB of 2^20 bytes.

    Yields:
        The file to which a process writes ``0`` to enter the group.

    Raises:
        OSError: It cannot be made, limited or, within some seconds, removed.
    """
    group = parent.folder / f"{_PREFIX}-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    try:
        limit = str(int(limit_mb * _MEGABYTE))
        if parent.version == 1:
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


# ---------------------------------------------------------------- in the process itself


def main(settings: str) -> None:
    """Apply the limits and replace this process.

    Args:
        settings: JSON with ``group`` (a ``cgroup.procs`` file or null), ``data`` (bytes of
            RLIMIT_DATA or null) and ``cpus`` (a list or null).
    """
    limits = json.loads(settings)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is a row, not a file
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    # Should the whole host run out of memory, this is what the kernel is to kill: a courtesy,
    # which not every sandbox knows.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    if limits["cpus"] is not None:
        os.sched_setaffinity(0, limits["cpus"])
    if limits["group"] is not None:
        Path(limits["group"]).write_text("0", "ascii")
    if limits["data"] is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limits["data"], limits["data"]))
    os.execv(sys.executable, [sys.executable, "-m", CHILD])  # noqa: S606  (our own module)


if __name__ == "__main__":
    main(sys.argv[1])
