"""Child processes: silent, watched, and gone with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedvtc_edge.errors import DeploymentError, MissingExtra
from fedvtc_edge.flower.process import daemon as processes
from fedvtc_edge.flower.process import supervisor
from fedvtc_edge.flower.process.daemon import Daemon, environment, executable, free_port

# A process that does not go when asked, with a child and a grandchild of the same kind,
# each in a session of its own.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
depth = int(sys.argv[1])
if depth:
    subprocess.Popen(
        [sys.executable, __file__, str(depth - 1), sys.argv[2]], start_new_session=True
    )
print("up", depth, flush=True)
time.sleep(600)
"""


def processes_of(mark: str) -> list[int]:
    """Processes, zombies left out, whose arguments hold the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def daemon(folder: Path, *command: str, grace_s: float = 5.0) -> Daemon:
    return Daemon(command, log=folder / "child.log", environ=os.environ, grace_s=grace_s)


def script(folder: Path, text: str) -> str:
    path = folder / "script.py"
    path.write_text(text)
    return str(path)


# ---------------------------------------------------------------- environment


def test_flower_is_silent_and_keeps_to_our_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "example.org")
    made = environment(tmp_path)
    assert made["FLWR_HOME"] == str(tmp_path)
    assert {name: made[name] for name in processes.SILENCE} == processes.SILENCE
    assert made["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert made["NO_PROXY"] == "example.org,127.0.0.1,localhost,::1"
    assert made["no_proxy"].endswith("127.0.0.1,localhost,::1")
    assert made["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_rays_token_is_new_each_time(tmp_path: Path) -> None:
    first, second = environment(tmp_path), environment(tmp_path)
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


def test_the_users_pace_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
    monkeypatch.delenv(name, raising=False)
    assert environment(tmp_path)[name] == "0.25"
    monkeypatch.setenv(name, "2")
    assert environment(tmp_path)[name] == "2"


def test_a_command_is_found_beside_this_python_or_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert executable(Path(sys.executable).name) == sys.executable
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtra, match="flower-nothing") as caught:
        executable("flower-nothing")
    assert caught.value.hint == 'install it with: pip install "fedvtc-edge[flower]"'
    (tmp_path / "flower-nothing").write_text("#!/bin/sh\n")
    (tmp_path / "flower-nothing").chmod(0o755)
    assert executable("flower-nothing") == str(tmp_path / "flower-nothing")


def test_a_free_port_can_be_bound() -> None:
    assert 0 < free_port() < 65536


# ---------------------------------------------------------------- one child


def test_it_runs_writes_and_ends(tmp_path: Path) -> None:
    code = "print('\\x1b[92mINFO\\x1b[0m: one'); print('two'); raise SystemExit(7)"
    for _ in range(2):
        with daemon(tmp_path, sys.executable, "-c", code) as child:
            assert child.wait(30) == 7
            assert not child.alive()
            assert child.tail() == "INFO: one\ntwo"  # of this start, not of the one before
            assert child.tail(1) == "two"
    assert (tmp_path / "child.log").read_text().count("two") == 2


def test_one_that_ends_at_once_is_noticed(tmp_path: Path) -> None:
    for code in range(40):  # Popen, forgotten too early, took the status of some
        with daemon(tmp_path, "sh", "-c", f"exit {code}") as child:
            assert child.wait(30) == code


@pytest.mark.parametrize("shell", ["$0", "setsid $0 &", "$0 2>&1 >/dev/null | tr a b"])
def test_a_log_does_not_grow_without_end(tmp_path: Path, shell: str) -> None:
    """Whoever writes: the process, one that it leaves behind, another file of its."""
    code = "import sys; [print('a' * 99, file=sys.stderr) for _ in range(80_000)]; print('end')"
    write = f'{sys.executable} -c "{code}" 1>&2'
    with daemon(tmp_path, "sh", "-c", shell.replace("$0", write)) as child:
        child.wait(60)
        assert child.tail(3).count("\n") == 2
    found = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(found) == {"child.log", "child.log.1"}
    assert max(found.values()) <= supervisor.LOG_BYTES
    assert sum(found.values()) > supervisor.LOG_BYTES / 2


def test_the_last_lines_are_told_across_a_new_log(tmp_path: Path) -> None:
    source, write = os.pipe()
    log = tmp_path / "child.log"
    log.write_text("of another start\n")
    child = daemon(tmp_path, "true")
    child._begin, child._file = log.stat().st_size, log.stat().st_ino
    os.write(write, b"one\n")
    os.close(write)
    supervisor.keep_log(source, log, limit=20)
    assert (tmp_path / "child.log.1").read_text() == "of another start\n"
    assert child.tail() == "one"
    source, write = os.pipe()
    os.write(write, b"two\n")
    os.close(write)
    supervisor.keep_log(source, log, limit=20)
    assert child.tail() == "one\ntwo"


def test_a_full_disk_does_not_stop_who_writes(tmp_path: Path) -> None:
    source, write = os.pipe()
    os.write(write, b"lost")
    os.close(write)
    supervisor.keep_log(source, tmp_path / "no folder" / "log")


def test_an_unfinished_wait_is_said(tmp_path: Path) -> None:
    with daemon(tmp_path, "sleep", "600") as child, pytest.raises(TimeoutError, match="child"):
        child.wait(0.1)


def test_a_missing_program_is_said(tmp_path: Path) -> None:
    with daemon(tmp_path, str(tmp_path / "nothing")) as child:
        assert child.wait(30) == 127
        assert "nothing: No such file or directory" in child.tail()


def test_one_that_was_not_started_is_no_child(tmp_path: Path) -> None:
    child = daemon(tmp_path, "true")
    assert not child.alive()
    child.stop()
    with pytest.raises(DeploymentError, match="not started"):
        child.wait()


def test_it_is_stopped_by_sigterm_and_stopping_again_does_nothing(tmp_path: Path) -> None:
    with daemon(tmp_path, "sleep", "600") as child:
        assert child.alive()
        child.stop()
        assert child.wait() == 128 + signal.SIGTERM
        child.stop()


def test_ctrl_c_in_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    code = "import os, time; print(os.getsid(0), flush=True); time.sleep(600)"
    with daemon(tmp_path, sys.executable, "-c", code) as child:
        until(lambda: child.tail())
        assert int(child.tail()) != os.getsid(0)


def test_the_stubborn_are_killed_down_to_the_last(tmp_path: Path) -> None:
    mark = str(tmp_path)
    path = script(tmp_path, STUBBORN)
    with daemon(tmp_path, sys.executable, path, "2", mark) as child:
        until(lambda: {"up 0", "up 1", "up 2"} <= set(child.tail().splitlines()))
        child.stop(grace_s=0.1)
        assert not processes_of(mark)
        assert child.wait() == 128 + signal.SIGKILL


def test_what_a_dead_command_leaves_goes_too(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys;"
        f"subprocess.Popen(['sleep', '600', {str(tmp_path)!r}][:2], start_new_session=True)"
    )
    with daemon(tmp_path, sys.executable, "-c", code) as child:
        assert child.wait(30) == 0
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert not children or all(
        Path(f"/proc/{pid}/comm").read_text() != "sleep\n" for pid in children
    )


# ---------------------------------------------------------------- nobody survives

PARENT = """
import os, signal, sys
from pathlib import Path
from fedvtc_edge.flower.process.daemon import Daemon
folder = Path(sys.argv[1])
with Daemon(["sleep", "600.5"], log=folder / "child.log", environ=os.environ) as child:
    print(child._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_parent_leaves_nobody(tmp_path: Path) -> None:
    path = script(tmp_path, PARENT)
    done = subprocess.run(
        [sys.executable, path, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    until(lambda: state(int(done.stdout)) in ("gone", "Z"))


def test_a_killed_supervisor_takes_its_command_along(tmp_path: Path) -> None:
    with daemon(tmp_path, "sleep", "600") as child:
        assert child._process is not None
        pid = child._process.pid
        until(lambda: children_of(pid))
        [command] = children_of(pid)
        os.kill(pid, signal.SIGKILL)
        until(lambda: state(command) in ("gone", "Z"))
    assert child.wait() == -signal.SIGKILL


def test_the_supervisor_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    """It is started without site-packages, so that it starts at once."""
    log = str(tmp_path / "log")
    done = subprocess.run(
        [sys.executable, "-I", "-S", supervisor.__file__, log, "sh", "-c", "exit 3"],
        stdin=subprocess.PIPE,
        check=False,
    )
    assert done.returncode in (3, 128 + signal.SIGTERM)  # its lifeline is cut at once


def test_root_does_not_pass_closed_folders(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with daemon(tmp_path, "mkdir", str(closed / "new")) as child:
        assert child.wait(30) == 1
        assert "Permission denied" in child.tail()
