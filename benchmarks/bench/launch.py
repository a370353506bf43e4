"""``python -m fedvtc_edge.benchmarks.bench.launch SETTINGS``: limit oneself, become the child.

Memory is charged to whichever control group a process is in when it first touches it,
so the group is entered here, before the interpreter that is measured starts: after
``exec`` nothing of this one is left. A function between fork and exec in the bench
would do the same, but is not safe in a process that has threads, and numpy starts some.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path

CHILD = "fedvtc_edge.benchmarks.bench.child"

MAX_FILE_BYTES = 1 << 20
"""A measured process writes its answer and errors, and nothing larger."""


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
