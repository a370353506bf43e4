"""Progress: a bar on a terminal, lines in a log, nothing when asked for nothing."""

from __future__ import annotations

import io

import pytest

from fedvtc_edge.progress import BarProgress, Progress, SilentProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def work(progress: Progress) -> None:
    progress.start(2, "rounds")
    progress.advance("accuracy 0.5")
    progress.advance()
    progress.close()
    progress.close()


def test_a_log_gets_one_plain_line_per_unit() -> None:
    log = io.StringIO()
    work(BarProgress(log))
    assert log.getvalue().splitlines() == [
        "rounds: 2 to do",
        "rounds: 1/2 accuracy 0.5",
        "rounds: 2/2",
    ]


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    screen = Terminal()
    work(BarProgress(screen))
    shown = screen.getvalue()
    assert "rounds" in shown
    assert "2/2" in shown or "1/2" in shown or "0/2" in shown
    assert "\n" not in shown.rstrip("\n")
    assert shown.rsplit("\r", 1)[-1].strip() == ""


def test_starting_again_begins_at_nothing() -> None:
    log = io.StringIO()
    progress = BarProgress(log)
    for what in ("methods", "rounds"):
        progress.start(1, what)
        progress.advance()
    assert log.getvalue().splitlines()[-2:] == ["rounds: 1 to do", "rounds: 1/1"]
    screen = Terminal()
    bars = BarProgress(screen)
    bars.start(1, "methods")
    bars.start(1, "rounds")
    bars.close()
    assert "rounds" in screen.getvalue()


def test_stderr_is_looked_up_when_the_work_begins(capsys: pytest.CaptureFixture[str]) -> None:
    work(BarProgress())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "rounds: 2/2" in captured.err


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    work(SilentProgress())
    assert capsys.readouterr() == ("", "")


def test_a_reader_who_left_does_not_stop_the_work() -> None:
    work(BarProgress(Closed()))
