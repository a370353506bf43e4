"""Attack everything that reads untrusted bytes.

``python -m fedvtc_edge.attacks.fuzzing --count 1000000 --out DIR``

First all 255 other values of every byte of a valid envelope and of a signed advert, then
``--count`` mutants of envelopes and payloads, a quarter of them chosen by coverage. Nothing
may be accepted that was not signed, nothing may crash, and memory must not grow. Mutants of
a payload that mean other valid numbers are counted as such: only the envelope's signature
can refuse them. Exit 1 when there is a finding; its bytes lie in DIR.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.progress import BarProgress, SilentProgress
from fedvtc_edge.storage.atomic import write_atomic

from .campaign import campaign


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m fedvtc_edge.attacks.fuzzing``."""
    parser = argparse.ArgumentParser(prog="fedvtc_edge.attacks.fuzzing", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--count", type=_positive, default=1_000_000, help="mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for what is found")
    parser.add_argument(
        "--no-coverage", action="store_true", help="all mutants by chance: needs no atheris"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quiet", action="store_true")
    given = parser.parse_args(arguments)
    try:
        document = campaign(
            given.count,
            seed=given.seed,
            coverage=not given.no_coverage,
            progress=SilentProgress() if given.quiet else BarProgress(),
        )
    except FedVTCError as error:
        parser.exit(error.exit_code, f"error: {error}\nhint: {error.hint}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted\n")
    if given.out:
        _save(given.out, document)
    print(json.dumps(_plain(document), indent=2) if given.json else _table(document))
    sys.exit(1 if _count(document) else 0)


def _table(document: dict[str, Any]) -> str:
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
    for finding in document["findings"][:20]:
        lines.append(f"{finding.target}: {finding.kind}: {finding.detail}")
    lines.append(f"{document['mutants']} mutants, {_count(document)} findings")
    return "\n".join(lines)


def _count(document: dict[str, Any]) -> int:
    return sum(row["findings"] for row in document["rows"])


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    findings = [{**vars(found), "data": found.data.hex()} for found in document["findings"]]
    return {**document, "findings": findings}


def _save(folder: Path, document: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for at, finding in enumerate(document["findings"]):
        write_atomic(folder / f"{at:04}-{finding.target}-{finding.kind}", finding.data)
    write_atomic(folder / "report.json", (json.dumps(_plain(document), indent=1) + "\n").encode())


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected 1 or more")
    return value


if __name__ == "__main__":
    main()
