"""Supervisor of one command: starts and watches it, leaves nothing of it behind; a script.

    python supervisor.py LOG COMMAND [ARGUMENT]…

What the command and all below it write goes through a pipe of this process into the file
LOG, which is never larger than LOG_BYTES: then it becomes LOG.1, in place of the one
before, and a new one is begun. Its standard input is a lifeline: when that pipe closes,
because the parent closed it or was killed in any way, the command is stopped. A number of
seconds written into the pipe before changes how long the command may take over it. SIGTERM
and SIGINT mean the same as the closed pipe.

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
import threading
import time
from pathlib import Path

LOG_BYTES = 2 << 20
"""Of LOG and of LOG.1 each."""

GRACE_S = 10.0  # for the command, after SIGTERM
ORPHANS_S = 3.0  # for what it leaves: Flower's see within 0.2 s that their parent is gone

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_CAP_DAC_OVERRIDE = 1


def main(log: Path, command: list[str]) -> int:
    """Run ``command`` until it ends or the lifeline does, and then clear up.

    Args:
        log: Takes what it writes; appended to.

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
    written, write = os.pipe()
    try:
        # Kept: an object that goes away asks after its child, and would take its status.
        process = subprocess.Popen(  # noqa: S603  (the caller's own argument vector)
            command,
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=write,
            # Safe here, as it would not be in the parent: this process still has one thread.
            preexec_fn=functools.partial(_prepare, os.getpid()),
        )
    except OSError as error:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{command[0]}: {error.strerror}\n")
        return 127
    os.close(write)
    keeper = threading.Thread(target=keep_log, args=(written, log), daemon=True)
    keeper.start()
    child, status = process.pid, dict[int, int]()
    grace = _until_told(child, wakeup, status)
    if child not in status:
        os.kill(child, signal.SIGTERM)
        if not _until_gone(child, wakeup, status, grace):
            os.kill(child, signal.SIGKILL)
            _until_gone(child, wakeup, status, ORPHANS_S)
    _clear(wakeup, status)
    keeper.join(1.0)  # nobody is left who could write
    process.returncode = code = os.waitstatus_to_exitcode(status[child])
    return code if code >= 0 else 128 - code


def keep_log(source: int, log: Path, limit: int = LOG_BYTES) -> None:
    """Copy what comes out of a pipe to a file of bounded size, until the pipe ends.

    Args:
        source: Descriptor; closed at the end.
        limit: Bytes of the file; what was written before goes to ``log`` with ``.1`` behind.
    """
    with open(source, "rb", buffering=0) as pipe:
        while piece := pipe.read(65_536):
            # A full disk must not stop who writes: what cannot be kept is lost.
            with contextlib.suppress(OSError):
                if log.exists() and log.stat().st_size + len(piece) > limit:
                    log.replace(log.with_name(log.name + ".1"))
                with log.open("ab", buffering=0) as file:
                    file.write(piece)


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
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
