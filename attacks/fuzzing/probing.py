"""The verdict on one mutant, and on all mutants of a target."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvtc_edge.errors import FedVTCError

LONGEST_MESSAGE = 1000
"""Characters of an error's message and hint: a stranger must not write the log."""

LONGEST_SECONDS = 1.0
"""CPU time that one mutant may cost, some thousand times what a valid one does."""

WARM_UP, MOST_GROWTH_MB = 500, 32.0
"""Mutants after which the peak of the process' memory is taken, and by how much more of them
may raise it: less than one mutant's claim to be large would, if it were believed."""

MOST_KEPT = 100
"""Faults of a target that are kept; all are counted."""


@dataclass(frozen=True)
class Target:
    """A reader of untrusted bytes.

    Args:
        read: Called with each mutant.
        refusals: Errors by which ``read`` may refuse.
        genuine: Bytes that it accepts; they are where mutants start, and are none.
        neighbours: Valid elsewhere (another round, sender, recipient, shape), not here.
        signed: Whether nothing but ``genuine`` may be accepted.
        wrong: What is wrong with an accepted mutant, given it and what ``read`` returned; None
            for nothing. Only asked where another content is a valid upload too.
        aftermath: What is wrong after all mutants; None for nothing.
    """

    name: str
    read: Callable[[bytes], object]
    refusals: tuple[type[FedVTCError], ...]
    genuine: tuple[bytes, ...]
    neighbours: tuple[bytes, ...] = ()
    signed: bool = False
    wrong: Callable[[bytes, object], str | None] = lambda data, value: None
    aftermath: Callable[[], str | None] = lambda: None

    @property
    def donors(self) -> tuple[bytes, ...]:
        """Bytes that mutants are made of."""
        return self.genuine + self.neighbours


@dataclass(frozen=True)
class Fault:
    """A mutant that shows a fault.

    Args:
        target: Name of the target.
        kind: ``accepted``, ``crashed``, ``wrong``, ``talkative``, ``slow``, or of all mutants
            together ``died``, ``grew`` or ``left``.
    """

    target: str
    kind: str
    detail: str
    data: bytes

    def plain(self) -> dict[str, str]:
        """The fault as JSON holds it, with its bytes in hexadecimal."""
        return {**vars(self), "data": self.data.hex()}


def probe(target: Target, data: bytes) -> str | Fault:
    """Let a target read one mutant.

    Returns:
        ``unchanged`` (it is no mutant), ``refused``, ``other`` (a valid upload of other
        content, where nothing is signed), or what is wrong.
    """
    unchanged = data in target.genuine
    if unchanged and target.signed:
        return "unchanged"  # unread: what counts once would be counted
    begin = time.thread_time()
    try:
        value = target.read(data)
    except target.refusals as error:
        verdict = _refusal(target, data, error)
    except Exception:
        # Whatever it is: a server would print a traceback, or die of it.
        return Fault(target.name, "crashed", traceback.format_exc(limit=-3), data)
    else:
        verdict = "unchanged" if unchanged else _acceptance(target, data, value)
    if time.thread_time() - begin > LONGEST_SECONDS:
        return Fault(target.name, "slow", f"{time.thread_time() - begin:.1f} s", data)
    return verdict


def _refusal(target: Target, data: bytes, error: FedVTCError) -> str | Fault:
    message = f"{error} ({error.hint})"
    if len(message) > LONGEST_MESSAGE or not message.isprintable():
        return Fault(target.name, "talkative", message[:LONGEST_MESSAGE], data)
    return "refused"


def _acceptance(target: Target, data: bytes, value: object) -> str | Fault:
    if target.signed:
        return Fault(target.name, "accepted", "nobody signed this", data)
    wrong = target.wrong(data, value)
    return Fault(target.name, "wrong", wrong, data) if wrong else "other"


def peak_memory_mb() -> float:
    """Most memory that this process ever held, MiB; 0 where the system does not tell."""
    # Not getrusage, which says of a process what its parent held when it was started.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


@dataclass
class Tally:
    """Verdicts on the mutants of one target, and what is wrong with all of them together."""

    target: Target
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    warm_mb: float = 0.0

    def judge(self, data: bytes) -> str | Fault:
        """Count the verdict on one mutant, and return it."""
        verdict = probe(self.target, data)
        if isinstance(verdict, Fault):
            self.add(verdict)
        else:
            self.counts[verdict] += 1
        if self.counts.total() == WARM_UP:
            self.warm_mb = peak_memory_mb()
        return verdict

    def row(self, part: str, *, edges: int | None = None) -> dict[str, Any]:
        """Look at what all mutants left behind, and sum up.

        Args:
            part: How the mutants were made: ``flips`` or ``coverage``.
            edges: Of Python code that were reached, where that was measured.
        """
        end = peak_memory_mb()
        if left := self.target.aftermath():
            self.add(Fault(self.target.name, "left", left, b""))
        if self.warm_mb and end - self.warm_mb > MOST_GROWTH_MB:
            grown = f"{self.warm_mb:.0f} MiB became {end:.0f} MiB"
            self.add(Fault(self.target.name, "grew", grown, b""))
        return {
            "target": self.target.name,
            "part": part,
            **{name: self.counts[name] for name in ("refused", "other", "unchanged")},
            "findings": self.counts["finding"],
            "peak_mb": [round(self.warm_mb, 1), round(end, 1)],
            "edges": edges,
        }

    def add(self, fault: Fault) -> None:
        """Count a fault, and keep it as long as they are few."""
        self.counts["finding"] += 1
        if len(self.faults) < MOST_KEPT:
            self.faults.append(fault)
