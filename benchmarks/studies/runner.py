"""Runner of every study: command line, alternating repeats, fresh processes and tables.

``python -m fedvtc_edge.benchmarks.studies NAME [options]``. A study declares its question
(the module's docstring), its options, what it measures, and the lines that people read.
Imports neither torch, numpy nor onnxruntime: measured processes import it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedvtc_edge.errors import FedVTCError, GateError

Document = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Study:
    """One question and how it is answered.

    Args:
        name: Name of the study on the command line.
        about: Text of ``--help``.
        options: Adds the study's options to a parser.
        measure: Takes the options by name and returns the document that ``--json`` prints.
        repeats: Default of ``--repeats``; None where nothing is repeated.
        failures: What in the document must not be, in words; any is exit code 1.
    """

    name: str
    about: str | None
    options: Callable[[argparse.ArgumentParser], object]
    measure: Callable[..., Document]
    lines: Callable[[Document], Iterable[str]]
    repeats: int | None = None
    failures: Callable[[Document], Sequence[str]] | None = None

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Run the study as the command line asks; exits with the code of a refused setting."""
        parser = argparse.ArgumentParser(
            prog=f"fedvtc_edge.benchmarks.studies {self.name}",
            description=self.about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.options(parser)
        if self.repeats is not None:
            usual = f"default: {self.repeats}"
            parser.add_argument("--repeats", type=positive, default=self.repeats, help=usual)
        parser.add_argument("--json", action="store_true", help="print one JSON document")
        given = vars(parser.parse_args(arguments))
        as_json = given.pop("json")
        try:
            document = self.measure(**given)
        except FedVTCError as error:
            parser.exit(error.exit_code, f"error: {error}\nhint: {error.hint}\n")
        print(json.dumps(document, indent=2) if as_json else "\n".join(self.lines(document)))
        if self.failures is not None and (found := self.failures(document)):
            parser.exit(GateError.exit_code, f"error: {', '.join(found)}\n")


def positive(text: str) -> int:
    """Parse a whole number of at least 1.

    Raises:
        ArgumentTypeError: It is less.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected 1 or more")
    return value


def listed(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Type of an option that takes several values with commas between them."""

    def values(text: str) -> list[T]:
        return [parse(word) for word in text.split(",")]

    return values


def paired(
    sides: Mapping[str, Callable[[], T]], repeats: int, *, warm_up: int = 0
) -> dict[str, list[T]]:
    """Call sides in turn, in the opposite order every other time, in one process.

    A busy machine, and what one side leaves in caches, then spoils none of them alone.

    Args:
        sides: What is compared; each returns its own figure, for example CPU seconds.
        repeats: Calls that count.
        warm_up: Calls before those.

    Returns:
        Figures of each side, repeat by repeat.
    """
    found: dict[str, list[T]] = {name: [] for name in sides}
    for repeat in range(warm_up + repeats):
        for name in sides if repeat % 2 == 0 else reversed(list(sides)):
            figure = sides[name]()
            if repeat >= warm_up:
                found[name].append(figure)
    return found


def timed(step: Callable[[], object], *, warm_up: int = 0) -> Callable[[], float]:
    """A side that returns seconds of this thread's CPU time, after ``warm_up`` untimed calls."""

    def seconds() -> float:
        for _ in range(warm_up):
            step()
        begin = time.thread_time()
        step()
        return time.thread_time() - begin

    return seconds


def medians(
    sides: Mapping[str, Callable[[], float]], repeats: int, *, warm_up: int = 0
) -> dict[str, float]:
    """Median of each side's figures; see :func:`paired`."""
    found = paired(sides, repeats, warm_up=warm_up)
    return {name: statistics.median(values) for name, values in found.items()}


def fresh_process(code: str, *words: object, hint: str = "") -> str:
    """Output of a new interpreter, which has imported and cached nothing yet.

    Args:
        hint: What to do where it fails.

    Raises:
        FedVTCError: It failed; the last line of its errors says how.
    """
    done = subprocess.run(  # noqa: S603  (code of a study)
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FedVTCError(f"the run failed: {said}", hint=hint or "run the study's code by hand")
    return done.stdout


def peak_mb() -> float:
    """Peak memory (``VmHWM``) of this process, MB of 2^20 bytes; ``ru_maxrss`` is inherited."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def pss_mb(pid: int) -> float:
    """Memory of one process, pages that it shares counted in part; 0 for one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> Iterator[str]:
    """Lines of aligned columns: the first ``left`` to the left, numbers to the right."""
    every = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    for row in every:
        cells = (
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
