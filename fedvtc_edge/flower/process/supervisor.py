"""Supervisor of one command: starts and watches it, leaves nothing of it behind; a script.

    python supervisor.py COMMAND [ARGUMENT]…

Its standard input is a lifeline: when that pipe closes, because the parent closed it
or was killed in any way, the command is stopped. A number of seconds written into the
pipe before changes how long the command may take over it. SIGTERM and SIGINT mean the
same as the closed pipe.

Flower's processes start others in sessions of their own, which no signal to a group
reaches. So this process makes itself the parent of every orphan below it (on Linux),
and is done only when the kernel says that it has no child left. It imports nothing of
fedvtc-edge: a few lines of the standard library start in hundredths of a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_S = 10.0  # for the command, after SIGTERM
ORPHANS_S = 3.0  # for what it leaves: Flower's see within 0.2 s that their parent is gone

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_CAP_DAC_OVERRIDE = 1


def main(command: list[str]) -> int:
    """Run ``command`` until it ends or the lifeline does, and then clear up.

    Returns:
        The command's exit status, as a shell would give it: 128 + n for signal n.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wakeup, wakeup_write = os.pipe()  # written by every signal, so that one select waits for all
    os.set_blocking(wakeup, False)
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)
    try:
        # Kept: an object that goes away asks after its child, and would take its status.
        process = subprocess.Popen(  # noqa: S603  (the caller's own argument vector)
            command,
            stdin=subprocess.DEVNULL,
            # Safe here, as it would not be in the parent: this process has one thread.
            preexec_fn=functools.partial(_prepare, os.getpid()),
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    child, status = process.pid, dict[int, int]()
    grace = _until_told(child, wakeup, status)
    if child not in status:
        os.kill(child, signal.SIGTERM)
        if not _until_gone(child, wakeup, status, grace):
            os.kill(child, signal.SIGKILL)
            _until_gone(child, wakeup, status, ORPHANS_S)
    _clear(wakeup, status)
    process.returncode = code = os.waitstatus_to_exitcode(status[child])
    return code if code >= 0 else 128 - code


def _prepare(parent: int) -> None:
    """Set up the child, before it becomes the command."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # should this process be killed
    if os.getppid() != parent:  # it was, before the line above
        os._exit(128 + signal.SIGTERM)
    # A folder that is closed to writing is closed to root too. Not allowed, and not
    # needed, for anybody else.
    _prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE)


def _until_told(child: int, wakeup: int, status: dict[int, int]) -> float:
    """Wait for the command's end, the lifeline's, or a signal; returns the grace in seconds."""
    grace, lifeline, note = GRACE_S, sys.stdin.fileno(), b""
    while child not in status:
        ready, _, _ = select.select([lifeline, wakeup], [], [])
        if lifeline in ready:
            piece = os.read(lifeline, 64)
            note += piece
            if not piece:
                with contextlib.suppress(ValueError):  # nothing was written: the default
                    grace = float(note)
                break
        if wakeup in ready:
            numbers = os.read(wakeup, 4096)
            _reap(status)
            if set(numbers) & {signal.SIGINT, signal.SIGTERM}:
                break
    return grace


def _until_gone(child: int | None, wakeup: int, status: dict[int, int], seconds: float) -> bool:
    """Wait until ``child`` (None: every child) has ended; False when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        any_left = _reap(status)
        if child in status or not any_left:
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        # No signal tells of a grandchild that becomes an orphan: look again soon.
        if select.select([wakeup], [], [], min(left, 0.2))[0]:
            os.read(wakeup, 4096)


def _clear(wakeup: int, status: dict[int, int]) -> None:
    """End what is left of the command: wait, ask, then kill, until there is no child."""
    if _until_gone(None, wakeup, status, ORPHANS_S):
        return
    _signal(_children(), signal.SIGTERM)
    _until_gone(None, wakeup, status, 1.0)
    while _reap(status):  # the children of the killed come here, and are killed in turn
        _signal(_children(), signal.SIGKILL)
        _until_gone(None, wakeup, status, 0.2)


def _reap(status: dict[int, int]) -> bool:
    """Take the status of every child that has ended; whether any child is left."""
    try:
        while True:
            pid, code = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return True
            status[pid] = code
    except ChildProcessError:
        return False


def _children() -> list[int]:
    """Own children, dead or alive: none can have been reaped, so no id can be another's."""
    found, own = [], str(os.getpid())
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything; state and parent come after it.
            if path.read_text("utf-8", "replace").rpartition(")")[2].split()[1] == own:
                found.append(int(path.parent.name))
    return found


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _prctl(option: int, value: int) -> None:
    """Set an attribute of this process, where there is such a call (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
