"""Mutants that coverage chooses: libFuzzer, through atheris, in a process of its own.

atheris never gives control back, and instruments what is imported after it. So each target is
fuzzed by ``python -m fedvtc_edge.attacks.fuzzing.guided``, which writes a report when it is done.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedvtc_edge.errors import MissingExtra
from fedvtc_edge.storage.atomic import write_atomic

from .probing import Fault, Tally, Target

Load = Callable[[], Callable[[Path], list[Target]]]
"""Imports what is to be instrumented, and returns its ``targets``."""

_READERS = ["masking", "sealing", "statistics", "wire"]
_LONGEST, _KEEP_LENGTH = 8192, 0.75


def guided(
    target: str, count: int, seed: int, *, program: str = __name__
) -> tuple[dict[str, Any], list[Fault]]:
    """Let coverage choose ``count`` mutants of one target.

    Args:
        target: Name of the target.
        count: Mutants, 1 or more.
        seed: Seed of libFuzzer.
        program: Module that calls :func:`fuzz` when it is run.

    Returns:
        The row of :meth:`Tally.row`, and faults. A process that did not come to the end is one:
        killed for memory or time, or crashed below Python.

    Raises:
        MissingExtra: atheris is not installed.
    """
    if find_spec("atheris") is None:
        raise MissingExtra("fuzzing needs atheris", hint="pip install 'fedvtc-edge[fuzz]'")
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as folder:
        words = [sys.executable, "-m", program, target, str(count), str(seed), folder]
        done = subprocess.run(words, capture_output=True, check=False)  # noqa: S603
        said = done.stderr.decode(errors="replace")
        report = Path(folder, "report.json")
        if done.returncode or not report.is_file():
            died = Tally(Target(target, read=len, refusals=(), genuine=()))
            died.add(Fault(target, "died", f"exit {done.returncode}: {said[-2000:]}", b""))
            return died.row("coverage", edges=0), died.faults
        document = json.loads(report.read_bytes())
    covered = re.findall(r"\bcov: (\d+)", said)
    row = {**document["row"], "edges": int(covered[-1]) if covered else 0}
    return row, [Fault(**{**one, "data": bytes.fromhex(one["data"])}) for one in document["faults"]]


def fuzz(arguments: Sequence[str], load: Load, *, instrument: Sequence[str] = ()) -> None:
    """Run the process of one target; it does not return.

    Args:
        arguments: Target, count, seed and folder, from :func:`guided`.
        load: Called once all that it imports will be instrumented.
        instrument: Modules to be instrumented beside the package's readers.
    """
    import atheris

    name, count, seed, folder = (arguments[0], *map(int, arguments[1:3]), Path(arguments[3]))
    readers = [f"fedvtc_edge.{reader}" for reader in _READERS]
    with atheris.instrument_imports(include=[*readers, *instrument]):
        found = load()(folder / "work")
    tally = Tally(next(target for target in found if target.name == name))

    def one(data: bytes) -> None:
        tally.judge(data)
        if tally.counts.total() == count:
            row = tally.row("coverage")
            document = {"row": row, "faults": [fault.plain() for fault in tally.faults]}
            write_atomic(folder / "report.json", json.dumps(document).encode())

    def change(data: bytes, most: int, seed: int) -> bytes:
        # libFuzzer mostly changes the length, which every reader here refuses first.
        keep = random.Random(seed).random() < _KEEP_LENGTH  # noqa: S311  (to be repeated)
        changed = bytes(atheris.Mutate(data, len(data) if keep and data else most))
        return changed + data[len(changed) :] if keep else changed

    corpus = folder / "corpus"
    corpus.mkdir()
    for at, start in enumerate(tally.target.donors):
        (corpus / str(at)).write_bytes(start)
    flags = [f"-runs={count}", f"-seed={seed or 1}", f"-max_len={_LONGEST}", "-timeout=60"]
    flags += ["-rss_limit_mb=4096", f"-artifact_prefix={folder}{os.sep}"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


def _load() -> Callable[[Path], list[Target]]:
    from .targets import targets

    return targets


if __name__ == "__main__":
    fuzz(sys.argv[1:], _load)
