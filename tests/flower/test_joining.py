"""What a client's terminal is told, and what a client is made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedvtc_edge.commands.join import command
from fedvtc_edge.distributed.events import Reader
from fedvtc_edge.distributed.messages import (
    DISMISSAL,
    HELLO,
    REPORT,
    SHUTDOWN,
    Status,
    TaskReply,
    TaskRequest,
)
from fedvtc_edge.errors import DeploymentError, RunError
from fedvtc_edge.flower.access.keys import make_test_keys
from fedvtc_edge.flower.joining import (
    EVENTS,
    MEMBERSHIP,
    JoinSettings,
    _lived,
    participant_at,
    told,
)
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.wire.context import Context

RUN = "0" * 32
DONE = TaskReply("client-00", b"x" * 1500)
NO = TaskReply("client-00", problem="no such class", status=Status.REFUSED)


class Terminal(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def request(kind: str) -> TaskRequest:
    sender = "server" if kind in (HELLO, DISMISSAL) else "client-00"
    return TaskRequest(Context(RUN, 2, sender, kind), 0, 0)


@pytest.fixture
def terminal(tmp_path: Path) -> tuple[Terminal, Reader]:
    terminal = Terminal()
    return terminal, Reader(tmp_path / EVENTS, terminal)


def test_what_was_answered_is_told(tmp_path: Path, terminal: tuple[Terminal, Reader]) -> None:
    shown, reader = terminal
    told(tmp_path, request(HELLO), DONE)
    told(tmp_path, request(REPORT), DONE)
    told(tmp_path, request(REPORT), TaskReply("client-00", status=Status.BUSY))
    assert reader.relay() == 2
    assert shown.lines == [
        f"run {RUN}: joined, 1.5 kB sealed",
        "round 2, training: answered, 1.5 kB sealed",
    ]
    told(tmp_path, request(SHUTDOWN), DONE)
    assert reader.relay() == -1


@pytest.mark.parametrize("kind", [HELLO, DISMISSAL])
def test_a_run_that_it_cannot_take_part_in_ends_the_command(
    tmp_path: Path, terminal: tuple[Terminal, Reader], kind: str
) -> None:
    told(tmp_path, request(kind), NO)
    with pytest.raises(DeploymentError, match="no part taken: no such class") as ended:
        terminal[1].relay()
    assert "same command" in ended.value.hint
    assert ended.value.exit_code == 2


def test_a_round_that_it_misses_does_not(tmp_path: Path, terminal: tuple[Terminal, Reader]) -> None:
    told(tmp_path, request(REPORT), NO)
    assert terminal[1].relay() == 1
    assert terminal[0].lines == ["round 2, training: no part taken: no such class"]


class Node:
    """A node that is cut off for a while, and the clock that passes while somebody looks."""

    def __init__(self, away: range, end: int) -> None:
        self.now, self.away, self.end = 0, away, end

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += 1

    def alive(self) -> bool:
        return self.now < self.end

    def cut_off(self) -> bool:
        return self.now in self.away


@pytest.mark.parametrize(("seconds", "said"), [(5, 0), (12, 2), (500, 1)])
def test_a_silent_server_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, said: int
) -> None:
    node, terminal = Node(range(20, 20 + seconds), 100), Terminal()
    monkeypatch.setattr("fedvtc_edge.flower.joining.time", node)
    reader = Reader(tmp_path / EVENTS, terminal)
    assert not _lived(node, reader, terminal)  # type: ignore[arg-type]
    silent = "the server does not answer; it is called until it does, or Ctrl-C"
    assert terminal.lines == [silent, "the server is back"][:said]


MEMBER = """
import sys
from pathlib import Path
import fedvtc_edge.flower.client_app
from fedvtc_edge.flower.joining import participant_at

participant_at(Path(sys.argv[1]))
print(sorted({"torch", "sklearn", "scipy"} & set(sys.modules)))
"""


def test_a_message_that_needs_no_torch_does_not_wait_for_it(tmp_path: Path) -> None:
    make_test_keys(tmp_path / "kit", 1, (), 1)
    kit = tmp_path / "kit" / "client-00"
    parts = ("ca.crt", "node.key", "identity.key", "server.pub", "trust.json")
    JoinSettings(*(str(kit / part) for part in parts)).save(tmp_path / "home")  # type: ignore[arg-type]
    command = [sys.executable, "-c", MEMBER, str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_home_knows_whose_it_is(tmp_path: Path) -> None:
    make_test_keys(tmp_path / "kit", 2, (), 1)
    kit, home = tmp_path / "kit" / "client-01", tmp_path / "home"
    parts = ("ca.crt", "node.key", "identity.key", "server.pub", "trust.json")
    (tmp_path / "c.toml").write_text("[clients]\ncount = 2\n")
    settings = str(tmp_path / "c.toml")
    own = JoinSettings(*(str(kit / part) for part in parts), settings=settings)  # type: ignore[arg-type]
    own.save(home)
    assert JoinSettings.load(home) == own
    member = participant_at(home)
    assert member.home.client == "client-01"
    assert member.keys.client == "client-01"
    agreed = member._policy.settings
    assert agreed is not None
    assert agreed.engine.name == "flower"  # as serve makes of the same file
    (home / MEMBERSHIP).write_text("{}")
    with pytest.raises(RunError, match="missing or damaged"):
        participant_at(home)


@pytest.mark.parametrize("words", [["--require-privacy"], ["--at-most-epsilon", "2"]])
def test_without_and_under_a_privacy_mode_only_are_not_asked_for_together(words: list[str]) -> None:
    made = CliRunner().invoke(command, ["localhost:8000", "--keys", "keys", "--no-privacy", *words])
    assert made.exit_code == 2
    assert "expected one of them" in made.output


def test_an_epsilon_of_nothing_is_none() -> None:
    made = CliRunner().invoke(command, ["localhost:8000", "--at-most-epsilon", "0"])
    assert made.exit_code == 2
    assert "at-most-epsilon" in made.output
