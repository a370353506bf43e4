"""Progress of long work, shown on stderr or not at all.

The bottom layer: it imports nothing of ours, so that any layer may report.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """Interface that long work reports to."""

    def start(self, total: int, what: str) -> None:
        """Begin ``total`` units called ``what``; ends whatever was shown before."""

    def advance(self, note: str = "") -> None:
        """One unit is done; ``note`` is a few words on how it went."""

    def say(self, text: str) -> None:
        """One line on what happens meanwhile."""

    def close(self) -> None:
        """Stop showing anything. Harmless when called twice."""


class SilentProgress:
    """Shows nothing: the default of every function, and ``--quiet``."""

    def start(self, total: int, what: str) -> None:
        """Ignore the beginning."""

    def advance(self, note: str = "") -> None:
        """Ignore the unit."""

    def say(self, text: str) -> None:
        """Ignore the line."""

    def close(self) -> None:
        """Close nothing."""


class BarProgress:
    """A bar on a terminal; anywhere else one plain line per unit.

    A log file full of redrawn bars is unreadable and an empty one looks like a
    hang, so the choice follows what ``stream`` is when the work begins.

    Args:
        stream: Where to write; None is the current ``sys.stderr``.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._bar: Any = None
        self._total = 0
        self._done = 0
        self._what = ""
        self._closed_by_reader = False

    def start(self, total: int, what: str) -> None:
        """Begin ``total`` units called ``what``; ends whatever was shown before."""
        self.close()
        self._total, self._done, self._what = total, 0, what
        stream = self._stream or sys.stderr
        if not stream.isatty():
            self._line(f"{what}: {total} to do")
            return
        from tqdm import tqdm  # only a terminal needs it, and it costs start-up time

        self._bar = tqdm(total=total, desc=what, file=stream, leave=False, dynamic_ncols=True)

    def advance(self, note: str = "") -> None:
        """One unit is done; ``note`` is a few words on how it went."""
        self._done += 1
        if self._bar is None:
            self._line(f"{self._what}: {self._done}/{self._total} {note}".rstrip())
            return
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update()

    def say(self, text: str) -> None:
        """One line on what happens meanwhile, above the bar where there is one."""
        if self._bar is None:
            self._line(text)
        else:
            self._bar.write(text, file=self._stream or sys.stderr)

    def close(self) -> None:
        """Take the bar off the screen. Harmless when called twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, text: str) -> None:
        if self._closed_by_reader:
            return
        try:
            print(text, file=self._stream or sys.stderr, flush=True)
        except BrokenPipeError:
            # `fedvtc-edge run 2>&1 | head`: a reader who left must not end hours of work.
            self._closed_by_reader = True
