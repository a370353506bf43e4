"""Study of Flower's simulation beside the embedded engine: the same federation in both.

``python -m fedvtc_edge.benchmarks.studies engines --clients 100 --rounds 2 --workers 2 --json``

Each engine runs in a fresh process. CPU time is of that process and of all that it
started; so is memory: the proportional share (PSS) of every process at one moment, read
twice a second from ``/proc``, largest sum. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fedvtc_edge.errors import GateError

from .runner import Document, Study, positive, pss_mb, table

_LOOK_S = 0.5
_FIGURES = {"wall_s": 1, "cpu_s": 1, "peak_mb": 0}  # and digits that are printed


def measure(clients: int, rounds: int, workers: int) -> Document:
    """Both engines, one after the other, and whether they published the same bits.

    Args:
        clients: Number of clients; the built-in digits are dealt out evenly.
        rounds: Of the run; the last one is as short as the others.
        workers: Processes of the simulation in which clients train.

    Returns:
        ``{"schema", "clients", "rounds", "workers", "local": {"wall_s", "cpu_s", "peak_mb"},
        "flower": the same, "wall_ratio", "cpu_ratio", "messages", "cpu_s_per_message",
        "same_bits"}``.

    Raises:
        FedVTCError: Settings that make no run.
    """
    tables = (
        *("data.partition=iid", "data.min_samples=2", f"clients.count={clients}"),
        *(f"method.rounds={rounds}", "training.finetune_last=20", "server.deadline_s=3600"),
    )
    found, published = {}, []
    with tempfile.TemporaryDirectory(prefix="fedvtc-") as folder:
        for engine in ("local", "flower"):
            out = Path(folder) / engine
            words = [f"--set={table}" for table in tables]
            if engine == "flower":
                words.append(f"--set=engine.workers={workers}")
            command = ["run", *words, "--engine", engine, "--out", str(out), "--quiet"]
            found[engine] = tree_cost([sys.executable, "-m", "fedvtc_edge", *command])
            digest = hashlib.sha256((out / "statistics.safetensors").read_bytes())
            published.append(digest.hexdigest())
    messages = clients * (2 + rounds)  # a hello, the opening, and each round
    local, flower = found["local"], found["flower"]
    return {
        "schema": 1,
        "clients": clients,
        "rounds": rounds,
        "workers": workers,
        "local": local,
        "flower": flower,
        "wall_ratio": flower["wall_s"] / local["wall_s"],
        "cpu_ratio": flower["cpu_s"] / local["cpu_s"],
        "messages": messages,
        "cpu_s_per_message": (flower["cpu_s"] - local["cpu_s"]) / messages,
        "same_bits": published[0] == published[1],
    }


def tree_cost(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds of a command and all that it starts, and their largest memory."""
    ticks, begin = os.sysconf("SC_CLK_TCK"), time.perf_counter()
    spent: dict[tuple[int, str], int] = {}
    peak = 0.0
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(command, stdout=said, stderr=said) as process:  # noqa: S603
            while process.poll() is None:
                here = _descendants(process.pid)
                peak = max(peak, sum(map(pss_mb, here)))
                for pid in here:
                    stat = _stat(pid)
                    if stat:  # start time tells two processes of one number apart
                        spent[pid, stat[19]] = int(stat[11]) + int(stat[12])
                time.sleep(_LOOK_S)
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    if process.returncode:
        raise GateError(f"a run failed: {text[-500:]}", hint="give the same command by hand")
    return {
        "wall_s": time.perf_counter() - begin,
        "cpu_s": sum(spent.values()) / ticks,
        "peak_mb": peak,
    }


def _descendants(root: int) -> list[int]:
    """A process and all below it; Flower's daemons stay below their supervisors."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            stat = _stat(int(entry.name))
            if stat:
                parents[int(entry.name)] = int(stat[1])
    found, new = [root], [root]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new and pid not in found]
        found += new
    return found


def _stat(pid: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` behind the name; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return []


def _lines(found: Document) -> Iterator[str]:
    rows = [
        [name, *(f"{found[name][key]:.{digits}f}" for key, digits in _FIGURES.items())]
        for name in ("local", "flower")
    ]
    yield from table(("engine", "s wall", "s CPU", "MB at most"), rows)
    yield (
        f"flower / local: {found['wall_ratio']:.2f} wall, {found['cpu_ratio']:.2f} CPU; "
        f"{found['cpu_s_per_message']:.2f} s CPU more per message; "
        f"same bits: {'yes' if found['same_bits'] else 'NO'}"
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=positive, default=100)
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--workers", type=positive, default=2)


STUDY = Study("engines", __doc__, _options, measure, _lines)


if __name__ == "__main__":
    STUDY.main()
