"""Starts a measured process, under limits or none, and judges how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Literal

from pydantic import ValidationError

from fedvtc_edge.devices.calibration import MEGABYTE
from fedvtc_edge.errors import ConfigError

from . import groups
from .protocol import MAX_ANSWER_BYTES, MeasurementReply, MeasurementRequest

LAUNCHER = "fedvtc_edge.benchmarks.bench.launch"

Method = Literal["auto", "cgroup", "rlimit"]

_WORDS = ("memoryerror", "alloc", "out of memory", "cannot map", "cannot allocate memory")
"""How libraries say that memory ran out: their errors have no type in common."""


@dataclass(frozen=True)
class Enforcement:
    """How this host limits a process's memory.

    Args:
        home: Where control groups can be made; None: ``RLIMIT_DATA``, which needs no rights.
    """

    home: groups.GroupParent | None

    @classmethod
    def find(cls, method: Method = "auto") -> Enforcement:
        """The best way that is open to us.

        Args:
            method: ``cgroup`` or ``rlimit`` insists on one.

        Raises:
            ConfigError: No control group can be made and one was insisted on.
        """
        home = None if method == "rlimit" else groups.find_home()
        if home is None and method == "cgroup":
            raise ConfigError(
                "no control group with a memory limit can be made here",
                hint="give the rights to make one (systemd-run --user --scope -p Delegate=yes, "
                "or root), or take --enforce rlimit",
            )
        return cls(home)

    @property
    def name(self) -> str:
        """As it stands in a row."""
        return "RLIMIT_DATA" if self.home is None else f"cgroup v{self.home.version}"

    @contextlib.contextmanager
    def settings(self, limit_mb: float | None, cpus: int | None) -> Iterator[str]:
        """What the launcher is told, while the group that it names exists.

        Args:
            limit_mb: Memory, MB of 2^20 bytes; None sets no limit.
            cpus: Processors at most; None leaves them all.
        """
        chosen = None if cpus is None else sorted(os.sched_getaffinity(0))[:cpus]
        data = None if limit_mb is None else int(limit_mb * MEGABYTE)
        if data is None or self.home is None:
            yield json.dumps({"group": None, "data": data, "cpus": chosen})
            return
        with groups.limited(self.home, limit_mb or 0) as procs:
            yield json.dumps({"group": str(procs), "data": None, "cpus": chosen})


@dataclass(frozen=True)
class Outcome:
    """How a measured process ended.

    Args:
        verdict: ``ok``, or what went wrong.
        reason: In a line; empty where all is well.
        answer: What it said, if it lived to say something.
    """

    verdict: Literal["ok", "oom", "crash", "timeout"]
    reason: str = ""
    answer: MeasurementReply | None = None


def start(
    job: MeasurementRequest,
    enforcement: Enforcement,
    *,
    limit_mb: float | None = None,
    cpus: int | None = None,
    timeout: float,
) -> Outcome:
    """Run a job in a fresh interpreter; whatever becomes of it, the bench goes on.

    Args:
        job: What to measure.
        enforcement: How to limit memory.
        limit_mb: To how much, MB of 2^20 bytes; None: not at all.
        cpus: Processors at most; None: all.
        timeout: Seconds until the process is killed.
    """
    environment = os.environ | {
        # BLAS would reserve memory for each core of this host, whatever the device has.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", LAUNCHER]
    # Files, not pipes: whatever a process writes, no more is read than an answer can have.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with enforcement.settings(limit_mb, cpus) as settings:
            try:
                done = subprocess.run(  # noqa: S603  (our own module)
                    [*command, settings],
                    input=job.model_dump_json().encode(),
                    stdout=out,
                    stderr=err,
                    timeout=timeout,
                    env=environment,
                    check=False,
                )
            except subprocess.TimeoutExpired:  # it is dead: run() killed it and waited
                return Outcome("timeout", f"no answer within {timeout:g} s")
        return judge(done.returncode, _head(out), _tail(err))


def judge(code: int, out: bytes, err: str) -> Outcome:
    """What an exit code and an answer mean.

    Args:
        code: Exit code, or minus the signal that ended it.
        out: The first bytes of stdout, one more than an answer may have at most.
        err: The last line of stderr.
    """
    if code == -signal.SIGKILL:  # not by us: a time-out is told apart before
        return Outcome("oom", "killed by the kernel: out of memory")
    if code < 0:
        with contextlib.suppress(ValueError):
            return _bad(f"ended by {signal.Signals(-code).name}", err)
        return _bad(f"ended by signal {-code}", err)
    if code != 0:
        return _bad(f"exit code {code}", err)
    try:
        if len(out) > MAX_ANSWER_BYTES:
            raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
        answer = MeasurementReply.model_validate_json(out)
    except ValidationError as error:
        return Outcome("crash", f"no answer: {error.errors()[0]['msg']}"[:300])
    except ValueError as error:
        return Outcome("crash", f"no answer: {error}")
    if answer.status == "ok":
        return Outcome("ok", answer=answer)
    return Outcome("oom" if _speaks_of_memory(answer.reason) else "crash", answer.reason, answer)


def _bad(how: str, said: str) -> Outcome:
    reason = f"{how}: {said}" if said else how
    return Outcome("oom" if _speaks_of_memory(said) else "crash", reason)


def _speaks_of_memory(text: str) -> bool:
    return any(word in text.lower() for word in _WORDS)


def _head(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(MAX_ANSWER_BYTES + 1)


def _tail(file: IO[bytes]) -> str:
    """The last line, printable: a traceback ends with what went wrong."""
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 2000))
    lines = file.read().decode("utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return "".join(letter if letter.isprintable() else "?" for letter in last.strip())[:300]
