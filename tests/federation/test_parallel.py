"""Several processes of the local engine: the same bits, typed errors, and nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from torch import nn

from fedvtc_edge.config import Config
from fedvtc_edge.errors import ConfigError, RunError, ServerError
from fedvtc_edge.federation import processes
from fedvtc_edge.federation.parallel import WorkerPool
from fedvtc_edge.plugins import ARCHITECTURES
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.workflows.run import resume, run

Tiny = Callable[..., Config]
Contents = Callable[[Path], dict[str, Any]]


class Cut(Exception):  # noqa: N818  (what it stands for is no error)
    """Stands for the end of a process."""


class CutAfterOne(SilentProgress):
    def advance(self, note: str = "") -> None:
        raise Cut


def compared(found: dict[str, Any]) -> dict[str, Any]:
    """All but what names the run: how many processes there are is among the settings."""
    named = ("config.toml", "run.json", "ledger.json", "server/")
    return {name: value for name, value in found.items() if not name.startswith(named)}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", [{"share": "features+decoder"}, {"share": "anchored"}])
def test_two_processes_give_the_same_bits_also_resumed(
    tiny: Tiny, tmp_path: Path, contents: Contents, method: dict[str, str]
) -> None:
    config = tiny(method={**method, "rounds": 2}, clients={"count": 4, "cohort": 0.75})
    run(config, out=tmp_path / "one")
    out = tmp_path / "two"
    with pytest.raises(Cut):
        run(config.replace(engine={"workers": 2}), out=out, progress=CutAfterOne())
    resume(out)
    assert compared(contents(out)) == compared(contents(tmp_path / "one"))


def test_an_error_in_a_process_is_the_same_error_here(tiny: Tiny) -> None:
    def mine(shape: Any) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))

    changes = {"architectures": ["mine"]}
    config = tiny(clients=changes, method={"name": "local"}, engine={"workers": 2})
    with ARCHITECTURES.lent({"mine": mine}), pytest.raises(ConfigError, match="'mine'"):
        run(config)
    with pytest.raises(ConfigError, match=r"engine.workers = 2, whose processes cannot") as refused:
        run(config, architectures={"mine": mine})
    assert "engine.workers = 1" in refused.value.hint


class Talker:
    """A process that has answered."""

    def __init__(self, *lines: bytes, code: int = 0) -> None:
        read, write = os.pipe()
        os.write(write, b"".join(lines))
        os.close(write)
        self.stdout, self._code = os.fdopen(read, "rb"), code

    def wait(self) -> int:
        return self._code


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        ({"error": "ServerError", "text": "too few", "hint": "wait"}, ServerError, "too few"),
        ({"error": "MemoryError", "text": "no more"}, MemoryError, "no more"),
        ({"error": "", "text": "Traceback: x"}, RuntimeError, "in a worker process:\nTraceback: x"),
    ],
)
def test_errors_keep_their_kind(reply: dict[str, str], kind: type[Exception], text: str) -> None:
    worker: Any = Talker(json.dumps(reply).encode() + b"\n")
    with worker.stdout, pytest.raises(kind, match=text) as raised:
        processes._reply(worker)
    assert getattr(raised.value, "hint", "wait") == "wait"


@pytest.mark.parametrize("line", [b"", b'{"weights": "to'])
def test_a_process_that_ends_is_named(line: bytes) -> None:
    worker: Any = Talker(line, code=-signal.SIGKILL)
    with worker.stdout, pytest.raises(RunError, match=r"ended \(signal 9\)") as raised:
        processes._reply(worker)
    assert "fewer engine.workers" in raised.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_end_with_the_one_that_started_them(tiny: Tiny, tmp_path: Path) -> None:
    """Killed with -9, in the middle of a round that would take for ever."""
    config = tiny(method={"name": "local"}, training={"epochs": 100_000}, engine={"workers": 2})
    file = tmp_path / "tiny.toml"
    file.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    words = [sys.executable, "-m", "fedvtc_edge", "run", str(file), "--out", str(tmp_path / "run")]
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("rounds: 3 to do")
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [int(word) for word in listed.read_text().split()]
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert len(workers) == 2
    _all_gone(workers)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_pool_ends_its_processes_whatever_they_are_at() -> None:
    with WorkerPool(1) as pool:
        workers = [worker.pid for worker in pool._workers]
        assert pool.folder.is_dir()
    _all_gone(workers)
    assert not pool.folder.exists()


def _all_gone(pids: list[int]) -> None:
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < until, "some go on"
        time.sleep(0.05)
