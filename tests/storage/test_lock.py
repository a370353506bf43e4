"""Two processes in one run directory would draw noise twice: the second is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.config import Config
from fedvtc_edge.errors import RunError
from fedvtc_edge.storage.lock import alone
from fedvtc_edge.workflows.run import resume, run

HOLD = """
import sys, pathlib
from fedvtc_edge.storage.lock import alone
with alone(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """A process at work in ``tmp_path/run``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_one_after_the_other(tmp_path: Path) -> None:
    for _ in range(2):
        with alone(tmp_path / "new" / "run"):
            assert (tmp_path / "new" / "run").is_dir()


def test_let_go_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with alone(tmp_path):
            raise KeyError("work")

    for _ in range(2):
        with pytest.raises(KeyError, match="work"):
            fail()


def test_another_process_is_at_work(tmp_path: Path, holder: Any) -> None:
    with pytest.raises(RunError, match="another process") as refused, alone(tmp_path / "run"):
        raise AssertionError("held twice")
    assert "wait" in refused.value.hint


def test_a_killed_process_holds_nothing(tmp_path: Path, holder: Any) -> None:
    holder.kill()
    holder.wait()
    with alone(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"), alone(tmp_path / "file" / "run"):
        raise AssertionError("made")


@pytest.mark.usefixtures("quick")
def test_a_new_run_waits_for_nobody(
    tmp_path: Path, holder: Any, tiny: Callable[..., Config]
) -> None:
    with pytest.raises(RunError, match="another process"):
        run(tiny(), out=tmp_path / "run")
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["run.lock"]
    holder.kill()
    holder.wait()
    run(tiny(), out=tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.usefixtures("quick")
def test_an_unfinished_run_is_resumed_once(
    tmp_path: Path, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("fedvtc_edge.workflows.run.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tiny(), out=tmp_path / "run")
    with alone(tmp_path / "run"), pytest.raises(RunError, match="another process"):
        resume(tmp_path / "run")
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").is_file()
