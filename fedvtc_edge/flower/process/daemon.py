"""Flower's commands as child processes: found, kept silent, started and stopped.

Nothing of Flower is imported here. Its commands read what concerns them from the
environment and from a folder of ours, and write to a log file of ours.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fedvtc_edge.errors import DeploymentError, MissingExtra

from . import supervisor

# What Flower 1.42 and Ray 2.55 would tell others, or fetch from them, unless told not to.
SILENCE = {
    "FLWR_TELEMETRY_ENABLED": "0",  # usage events to Flower Labs
    "FLWR_DISABLE_UPDATE_CHECK": "1",  # asks api.flower.ai for a newer version
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # `uv sync` from PyPI before a run
    # A run may name an app of Flower's hub, which the SuperLink then downloads and
    # executes; the update check and the models of agents ask the same host. Port 9 of
    # this machine answers nobody.
    "FLWR_SUPERGRID_API_URL": "http://127.0.0.1:9",
    "FLWR_MODEL_API_ENDPOINT": "http://127.0.0.1:9",
    "FLWR_TRACING_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # usage statistics, and with them cloud metadata requests
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",
    "RAY_enable_open_telemetry": "0",  # metrics, exported to an agent that nobody reads
}
# How often Flower's executor asks for work, in seconds; a message waits half of it. Flower's
# own 1 costs an idle node 0.8 % of a core, this 2 % and 0.1 would 4 %. The user's goes first.
PACE = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25"}
LOOPBACK = "127.0.0.1,localhost,::1"

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TAIL_BYTES = 1 << 16


def environment(flwr_home: Path) -> dict[str, str]:
    """The environment for Flower's commands: this process's own, silenced.

    Args:
        flwr_home: Flower's folder for settings and unpacked apps; one of ours, so that
            nothing in the user's home is read or changed.

    Returns:
        A new mapping. A proxy for the outside stays set, but never for this machine
        itself. The folder of this Python comes first on the path: Flower's commands
        start each other by bare names.
    """
    own = dict(os.environ)
    for name in ("NO_PROXY", "no_proxy"):
        own[name] = ",".join(filter(None, (own.get(name), LOOPBACK)))
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
    # A simulation's Ray listens on the machine's address to the network, and runs what it is
    # sent; so it is told to ask for a token, which its own processes find here.
    guarded = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {**PACE, **own, **SILENCE, **guarded, "FLWR_HOME": str(flwr_home)}


def executable(name: str) -> str:
    """Path of one of Flower's commands: beside this Python, else on the path.

    Raises:
        MissingExtra: When it is in neither place.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        raise MissingExtra(
            f"the command {name} was found neither beside {sys.executable} nor on the path",
            hint='install it with: pip install "fedvtc-edge[flower]"',
        )
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of ``host`` that was free a moment ago; the next to bind it has it."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Daemon:
    """One child process that is gone, with all that it started, when the block is left.

    It runs in a session of its own: Ctrl-C in the terminal reaches this process alone,
    which can then stop its daemons in order. Should this process be killed, even with
    SIGKILL, the daemon is stopped all the same; see :mod:`fedvtc_edge.flower.process.supervisor`.

    Args:
        command: Program and arguments; no shell is involved.
        log: File that takes its standard output and error; appended to, and no larger than
            :data:`.supervisor.LOG_BYTES`, with one more of that size before it.
        grace_s: Seconds between SIGTERM and SIGKILL when the block is left.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environ: Mapping[str, str],
        grace_s: float = supervisor.GRACE_S,
    ) -> None:
        self.log = log
        own = [sys.executable, "-I", "-S", supervisor.__file__, str(log.absolute())]
        self._command = [*own, *command]
        self._environ = dict(environ)
        self._grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._begin, self._file = 0, 0

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._begin, self._file = log.tell(), os.fstat(log.fileno()).st_ino
            self._process = subprocess.Popen(  # noqa: S603  (no shell; our own arguments)
                self._command,
                env=self._environ,
                stdin=subprocess.PIPE,
                stdout=log,  # of the supervisor itself, should it fail
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(self._grace_s)

    def alive(self) -> bool:
        """True if it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for it to end by itself.

        Returns:
            Its exit status; 128 + n for signal n.

        Raises:
            TimeoutError: When it still runs after ``timeout_s`` seconds.
        """
        try:
            return self._started().wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.log.stem} still runs after {timeout_s} s") from None

    def tail(self, lines: int = 20) -> str:
        """The last lines of what it wrote since this start, without colours."""
        said = b""
        for path in (self.log.with_name(self.log.name + ".1"), self.log):
            # At the moment when the log is begun anew, there is none.
            with contextlib.suppress(FileNotFoundError), path.open("rb") as log:
                same = os.fstat(log.fileno()).st_ino == self._file
                if same:
                    said = b""  # what is older is of another start
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._begin if same else 0, size - _TAIL_BYTES))
                said += log.read()
        text = _COLOUR.sub("", said[-_TAIL_BYTES:].decode("utf-8", "replace"))
        return "\n".join(text.splitlines()[-lines:])

    def stop(self, grace_s: float | None = None) -> None:
        """SIGTERM, and after ``grace_s`` seconds SIGKILL; returns when all of it is gone.

        Stopping what has ended, or was stopped, does nothing.
        """
        process = self._process
        if process is None or process.stdin is None or process.stdin.closed:
            return
        grace = self._grace_s if grace_s is None else grace_s
        try:
            process.stdin.write(f"{grace}".encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended by itself
        process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise DeploymentError(
                f"{self.log.stem} was not started",
                hint="use it as a context manager: with ... as daemon",
            )
        return self._process
