"""Progress of one process, shown by another."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvtc_edge.distributed.events import Reader, Writer
from fedvtc_edge.errors import DeploymentError, RunError


class Heard:
    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def start(self, total: int, what: str) -> None:
        self.said.append(("start", total, what))

    def advance(self, note: str = "") -> None:
        self.said.append(("advance", note))

    def say(self, text: str) -> None:
        self.said.append(("say", text))

    def close(self) -> None:
        self.said.append(("close",))


@pytest.fixture
def path(tmp_path: Path, quick: None) -> Path:
    return tmp_path / "events.jsonl"


def test_everything_is_shown_once_and_in_order(path: Path) -> None:
    heard = Heard()
    reader, writer = Reader(path, heard), Writer(path)
    assert reader.relay() == 0
    writer.start(3, "rounds")
    writer.say('quotes " and {"event": "done"} and\nlines')
    assert reader.relay() == 2
    assert reader.relay() == 0
    writer.advance("40 %")
    writer.close()
    assert reader.relay() == 1
    assert heard.said == [
        ("start", 3, "rounds"),
        ("say", 'quotes " and {"event": "done"} and\nlines'),
        ("advance", "40 %"),
    ]
    writer.done()
    assert reader.relay() == -1


def test_what_was_there_before_is_not_shown_again(path: Path) -> None:
    Writer(path).failed(RunError("an old failure", hint="none"))
    heard = Heard()
    reader = Reader(path, heard)
    assert reader.relay() == 0
    Writer(path).say("new")
    assert reader.relay() == 1
    assert heard.said == [("say", "new")]


def test_a_failure_is_raised_with_its_hint(path: Path) -> None:
    reader = Reader(path, Heard())
    Writer(path).failed(RunError("the disk is full", hint="make room"))
    with pytest.raises(DeploymentError, match="the disk is full") as raised:
        reader.relay()
    assert raised.value.hint == "make room"


def test_a_bug_is_named_and_says_that_it_is_one(path: Path) -> None:
    reader = Reader(path, Heard())
    Writer(path).failed(ZeroDivisionError("x" * 9999))
    with pytest.raises(DeploymentError, match="ZeroDivisionError: x") as raised:
        reader.relay()
    assert "bug" in raised.value.hint
    assert len(str(raised.value)) == 2000


def test_half_a_line_is_waited_for(path: Path) -> None:
    heard = Heard()
    reader = Reader(path, heard)
    Writer(path).say("whole")
    data = path.read_bytes()
    path.write_bytes(data[:9])
    assert reader.relay() == 0
    path.write_bytes(data)
    assert reader.relay() == 1
    assert heard.said == [("say", "whole")]


@pytest.mark.parametrize("torn", [b'{"event": "say", "no', b"{", b'{"event": "say", "note": "\xc3'])
def test_a_line_that_was_cut_off_spoils_no_other(path: Path, torn: bytes) -> None:
    heard = Heard()
    reader, writer = Reader(path, heard), Writer(path)
    writer.say("before")
    with path.open("ab") as file:
        file.write(torn)  # by a full disk
    writer.say("after")
    with path.open("ab") as file:
        file.write(torn + b"\n")
    writer.failed(RunError("full", hint="make room"))
    with pytest.raises(DeploymentError, match="full"):
        reader.relay()
    assert heard.said == [("say", "before"), ("say", "after")]


def test_a_long_text_is_cut(path: Path) -> None:
    heard = Heard()
    reader = Reader(path, heard)
    Writer(path).say("x" * 1_000_000)
    Writer(path).advance("y" * 1_000_000)
    assert path.stat().st_size < 10_000
    assert reader.relay() == 2
    assert heard.said == [("say", "x" * 2000), ("advance", "y" * 2000)]
