"""Mutants that coverage chooses: libFuzzer, through atheris, in a process of its own.

What leads to a line or comparison not seen before is kept and changed further; so the
mutants come behind checks that chance alone does not pass. Half of the changes are ours,
half libFuzzer's own, which also tries the values that the code compares with.

The process is ``python -m fedvtc_edge.attacks.fuzzing.guided``: atheris never gives
control back, and instruments what is imported after it.
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

from .mutation import mutant
from .probing import Fault, Tally, Target, peak_memory_mb, probe

Load = Callable[[], Callable[[Path], list[Target]]]
"""Imports what is to be instrumented, and returns its ``targets``."""

_READERS = ["context", "errors", "masking", "sealing", "signing", "statistics", "wire"]
_LONGEST = 8192
_WARM_UP = 500


def guided(target: str, count: int, seed: int, *, program: str = __name__) -> dict[str, Any]:
    """Let coverage choose ``count`` mutants of one target.

    Args:
        target: Its name.
        count: Mutants, 1 or more.
        seed: Of libFuzzer and of our mutations.
        program: Module that calls :func:`fuzz` when it is run.

    Returns:
        ``{"tally": Tally, "peak_mb": [warmed up, at the end], "edges"}``; ``edges`` of
        Python code that were reached. A process that did not come to the end is a finding:
        killed for memory or time, or crashed below Python.

    Raises:
        MissingExtra: atheris is not installed.
    """
    if find_spec("atheris") is None:
        raise MissingExtra(
            "coverage-guided fuzzing needs atheris", hint="pip install 'fedvtc-edge[fuzz]'"
        )
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as folder:
        words = [sys.executable, "-m", program, target, str(count), str(seed), folder]
        done = subprocess.run(words, capture_output=True, check=False)  # noqa: S603
        said = done.stderr.decode(errors="replace")
        report = Path(folder, "report.json")
        tally = Tally()
        if done.returncode or not report.is_file():
            died = f"exit {done.returncode}: {said[-2000:]}"
            tally.add(Fault(target, "died", died, b""))
            return {"tally": tally, "peak_mb": [0.0, 0.0], "edges": 0}
        document = json.loads(report.read_bytes())
    tally.counts.update(document["counts"])
    tally.findings += [
        Fault(**{**entry, "data": bytes.fromhex(entry["data"])}) for entry in document["findings"]
    ]
    covered = re.findall(r"\bcov: (\d+)", said)
    return {
        "tally": tally,
        "peak_mb": document["peak_mb"],
        "edges": int(covered[-1]) if covered else 0,
    }


def fuzz(arguments: Sequence[str], load: Load, *, instrument: Sequence[str] = ()) -> None:
    """What the process does; it does not return.

    Args:
        arguments: Target, count, seed and folder, from :func:`guided`.
        load: Not called before all that it imports will be instrumented.
        instrument: Modules to be instrumented beside our own readers.
    """
    import atheris

    name, count, seed, folder = (arguments[0], *map(int, arguments[1:3]), Path(arguments[3]))
    readers = [f"fedvtc_edge.{reader}" for reader in _READERS]
    with atheris.instrument_imports(include=[*readers, *instrument]):
        found = load()(folder / "work")
    target = next(target for target in found if target.name == name)
    tally, peaks = Tally(), [0.0]

    def one(data: bytes) -> None:
        tally.add(probe(target, data))
        done = tally.counts.total()
        if done == _WARM_UP:
            peaks[0] = peak_memory_mb()
        if done == count:
            _write(folder / "report.json", target, tally, [peaks[0], peak_memory_mb()])

    def change(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)  # noqa: S311  (mutants are to be repeated, not secret)
        if data and rng.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        starts = target.genuine if rng.random() < 0.25 else (data,)
        return mutant(rng, starts, target.donors)[:most]

    corpus = folder / "corpus"
    corpus.mkdir()
    for at, start in enumerate(target.donors):
        (corpus / str(at)).write_bytes(start)
    flags = [f"-runs={count}", f"-seed={seed or 1}", f"-max_len={_LONGEST}", "-timeout=60"]
    flags += ["-rss_limit_mb=4096", f"-artifact_prefix={folder}{os.sep}"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


def _write(path: Path, target: Target, tally: Tally, peaks: list[float]) -> None:
    if left := target.aftermath():
        tally.add(Fault(target.name, "left", left, b""))
    findings = [{**vars(finding), "data": finding.data.hex()} for finding in tally.findings]
    document = {"counts": tally.counts, "findings": findings, "peak_mb": peaks}
    write_atomic(path, json.dumps(document).encode())


def _load() -> Callable[[Path], list[Target]]:
    from .targets import targets

    return targets


if __name__ == "__main__":
    fuzz(sys.argv[1:], _load)
