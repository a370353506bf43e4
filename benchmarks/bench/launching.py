"""Start of a measured process, under limits or none, and how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, Literal

from .child import MAX_REPLY_BYTES, MeasurementReply, MeasurementRequest
from .limits import Enforcement

LAUNCHER = "fedvtc_edge.benchmarks.bench.limits"

_MEMORY_WORDS = ("memoryerror", "alloc", "out of memory", "cannot map", "cannot allocate memory")
"""How libraries say that memory ran out: their errors have no type in common."""


@dataclass(frozen=True)
class Outcome:
    """End of a measured process; ``reply`` is None if it did not live to send one."""

    verdict: Literal["ok", "oom", "crash", "timeout"]
    reason: str = ""
    reply: MeasurementReply | None = None


def start(
    request: MeasurementRequest,
    enforcement: Enforcement,
    *,
    limit_mb: float | None = None,
    cpus: int | None = None,
    timeout: float,
) -> Outcome:
    """Measure in a fresh interpreter; whatever becomes of it, the bench goes on.

    Args:
        limit_mb: Limit, MB of 2^20 bytes; None sets none.
        cpus: Processors at most; None leaves them all.
        timeout: Seconds until the process is killed.
    """
    environment = os.environ | {
        # BLAS would reserve memory for each core of this host, whatever the device has.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", LAUNCHER]
    # Files, not pipes: whatever a process writes, no more is read than a reply can have.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with enforcement.settings(limit_mb, cpus) as settings:
            try:
                done = subprocess.run(  # noqa: S603  (our own module)
                    [*command, settings],
                    input=request.to_bytes(),
                    stdout=out,
                    stderr=err,
                    timeout=timeout,
                    env=environment,
                    check=False,
                )
            except subprocess.TimeoutExpired:  # it is dead: run() killed it and waited
                return Outcome("timeout", f"no reply within {timeout:g} s")
        return judge(done.returncode, _head(out), _tail(err))


def judge(code: int, out: bytes, err: str) -> Outcome:
    """Verdict on an exit code and a reply.

    Args:
        code: Exit code, or minus the signal that ended it.
        out: The first bytes of stdout, one more than a reply may have at most.
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
        if len(out) > MAX_REPLY_BYTES:
            raise ValueError(f"more than {MAX_REPLY_BYTES} bytes")
        reply = MeasurementReply.from_bytes(out)
    except ValueError as error:
        return Outcome("crash", f"no reply: {error}"[:300])
    if reply.status == "ok":
        return Outcome("ok", reply=reply)
    return Outcome("oom" if _names_memory(reply.reason) else "crash", reply.reason, reply)


def _bad(how: str, said: str) -> Outcome:
    reason = f"{how}: {said}" if said else how
    return Outcome("oom" if _names_memory(said) else "crash", reason)


def _names_memory(text: str) -> bool:
    return any(word in text.lower() for word in _MEMORY_WORDS)


def _head(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(MAX_REPLY_BYTES + 1)


def _tail(file: IO[bytes]) -> str:
    """The last line, printable: a traceback ends with what went wrong."""
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 2000))
    lines = file.read().decode("utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return "".join(letter if letter.isprintable() else "?" for letter in last.strip())[:300]
