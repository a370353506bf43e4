"""Attack everything that reads untrusted bytes.

``python -m fedvtc_edge.attacks.fuzzing --count 1000000 --out DIR``

First all 255 other values of every byte of a valid envelope and of a signed advert, then
``--count`` mutants of envelopes and payloads, chosen by coverage (extra ``fuzz``). Nothing
may be accepted that was not signed, nothing may crash, and memory must not grow. Mutants of
a payload that mean other valid numbers are counted as such: only the envelope's signature
can refuse them. Exit 1 when there is a finding; its bytes lie in DIR.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.progress import BarProgress, Progress, SilentProgress
from fedvtc_edge.storage.atomic import write_atomic

from .guided import guided
from .probing import Fault, Tally
from .targets import targets


def flips(data: bytes) -> Iterator[bytes]:
    """All 255 other values of each byte, one after the other."""
    for at, now in enumerate(data):
        for mask in range(1, 256):
            yield data[:at] + bytes([now ^ mask]) + data[at + 1 :]


def campaign(count: int, seed: int, progress: Progress) -> tuple[dict[str, Any], list[Fault]]:
    """Attack every target.

    Args:
        count: Mutants that coverage chooses, spread evenly over the targets; 1 or more.
        seed: Seed of libFuzzer.
        progress: Told of each part.

    Returns:
        ``{"schema", "seed", "rows": [{"target", "part", "refused", "other", "unchanged",
        "findings", "peak_mb", "edges"}], "mutants"}`` and faults. ``other`` are payloads of
        other content: valid, and checked. ``peak_mb`` holds the process' peak when it was
        warmed up and at the end.

    Raises:
        MissingExtra: atheris is not installed.
    """
    rows, faults = [], []
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as folder, warnings.catch_warnings():
        warnings.simplefilter("error")  # what numpy merely warns of is a fault here
        found = targets(Path(folder))
        progress.start(2 * len(found), "fuzzing")
        for at, target in enumerate(found):
            share = count // len(found) + (at < count % len(found))
            if share:  # first, so that a missing extra is noticed at once
                row, told = guided(target.name, share, seed)
                rows.append(row)
                faults += told
            progress.advance(f"{target.name}, coverage")
            if target.signed:
                tally = Tally(target)
                for genuine in target.genuine:
                    for data in flips(genuine):
                        tally.judge(data)
                rows.append(tally.row("flips"))
                faults += tally.faults
            progress.advance(f"{target.name}, flips")
        progress.close()
    mutants = sum(row["refused"] + row["other"] + row["findings"] for row in rows)
    return {"schema": 1, "seed": seed, "rows": rows, "mutants": mutants}, faults


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m fedvtc_edge.attacks.fuzzing``."""
    parser = argparse.ArgumentParser(prog="fedvtc_edge.attacks.fuzzing", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--count", type=_positive, default=1_000_000, help="mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for what is found")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quiet", action="store_true")
    given = parser.parse_args(arguments)
    try:
        progress: Progress = SilentProgress() if given.quiet else BarProgress()
        document, faults = campaign(given.count, given.seed, progress)
    except FedVTCError as error:
        parser.exit(error.exit_code, f"error: {error}\nhint: {error.hint}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted\n")
    text = json.dumps({**document, "findings": [fault.plain() for fault in faults]}, indent=1)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        for at, fault in enumerate(faults):
            write_atomic(given.out / f"{at:04}-{fault.target}-{fault.kind}", fault.data)
        write_atomic(given.out / "report.json", (text + "\n").encode())
    print(text if given.json else _table(document, faults))
    sys.exit(1 if faults else 0)


def _table(document: dict[str, Any], faults: Sequence[Fault]) -> str:
    lines = [
        f"{'target':>16} {'part':>9} {'refused':>9} {'other':>8} {'findings':>9} "
        f"{'peak MiB':>15} {'edges':>6}"
    ]
    for row in document["rows"]:
        begin, end = row["peak_mb"]
        lines.append(
            f"{row['target']:>16} {row['part']:>9} {row['refused']:>9} {row['other']:>8} "
            f"{row['findings']:>9} {begin:>6.0f} → {end:>6.0f} {row['edges'] or '':>6}"
        )
    lines += [f"{fault.target}: {fault.kind}: {fault.detail}" for fault in faults[:20]]
    found = sum(row["findings"] for row in document["rows"])
    lines.append(f"{document['mutants']} mutants, {found} findings")
    return "\n".join(lines)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected 1 or more")
    return value


if __name__ == "__main__":
    main()
