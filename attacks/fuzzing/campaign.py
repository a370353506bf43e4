"""A campaign: every byte of what is signed, then mutants by chance, then by coverage."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedvtc_edge.progress import Progress, SilentProgress

from .guided import guided
from .mutation import flips, mutant
from .probing import Fault, Tally, Target, peak_memory_mb, probe
from .targets import targets

GUIDED = 4
"""One in so many mutants is chosen by coverage."""

MOST_GROWTH_MB = 32.0
"""By how much a part may raise its process' peak after the warm-up: less than one mutant's
claim to be large would, if it were believed."""

_WARM_UP = 500


def campaign(
    count: int,
    *,
    seed: int = 0,
    all_flips: bool = True,
    coverage: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Attack every target.

    Args:
        count: Mutants in all, spread evenly over the targets; 1 or more.
        seed: Of everything that is drawn.
        all_flips: Try all 255 other values of each byte of a signed message, beside
            ``count``; else one other value of each.
        coverage: Let coverage choose a quarter of the mutants.
        progress: Told of each part.

    Returns:
        ``{"schema", "seed", "rows": [{"target", "part", "refused", "other", "unchanged",
        "findings", "peak_mb", "edges"}], "mutants", "findings": [Finding]}``. ``other`` are
        payloads of other content: valid, and checked. ``peak_mb`` holds this process'
        peak when the part was warmed up and at its end.

    Raises:
        MissingExtra: ``coverage`` without atheris.
    """
    shown = progress or SilentProgress()
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as folder, warnings.catch_warnings():
        warnings.simplefilter("error")  # what numpy merely warns of is a fault here
        found = targets(Path(folder))
        shown.start(len(found) * (3 if coverage else 2), "fuzzing")
        rows, findings = [], []
        chosen = count // GUIDED if coverage else 0
        for at, target in enumerate(found):
            parts = [("flips", _flips(target, all_flips, seed))] if target.signed else []
            parts.append(("chance", _chance(target, _share(count - chosen, at, found), seed)))
            if coverage and (some := _share(chosen, at, found)):
                parts.append(("coverage", guided(target.name, some, seed)))
            if left := target.aftermath():
                parts[-1][1]["tally"].add(Fault(target.name, "left", left, b""))
            for part, result in parts:
                rows.append(_row(target, part, result))
                findings += result["tally"].findings
                shown.advance(f"{target.name}, {part}")
        shown.close()
    mutants = sum(row["refused"] + row["other"] + row["findings"] for row in rows)
    return {"schema": 1, "seed": seed, "rows": rows, "mutants": mutants, "findings": findings}


def _share(count: int, at: int, found: Sequence[Target]) -> int:
    return count // len(found) + (at < count % len(found))


def _chance(target: Target, count: int, seed: int) -> dict[str, Any]:
    rng = random.Random(f"{seed} {target.name}")  # noqa: S311  (to be repeated, not secret)
    starts = (target.genuine, target.genuine, target.genuine, target.donors)
    return _measured(target, (mutant(rng, rng.choice(starts), target.donors) for _ in range(count)))


def _flips(target: Target, every: bool, seed: int) -> dict[str, Any]:
    rng = random.Random(f"{seed} {target.name} flips")  # noqa: S311

    def changed() -> Iterator[bytes]:
        for data in target.genuine:
            for at, value in flips(data) if every else _one_each(rng, data):
                yield data[:at] + bytes([value]) + data[at + 1 :]

    return _measured(target, changed())


def _one_each(rng: random.Random, data: bytes) -> list[tuple[int, int]]:
    return [(at, now ^ rng.randint(1, 255)) for at, now in enumerate(data)]


def _measured(target: Target, mutants: Iterable[bytes]) -> dict[str, Any]:
    tally, begin = Tally(), 0.0
    for done, data in enumerate(mutants, 1):
        tally.add(probe(target, data))
        if done == _WARM_UP:
            begin = peak_memory_mb()
    return {"tally": tally, "peak_mb": [begin, peak_memory_mb()], "edges": None}


def _row(target: Target, part: str, result: dict[str, Any]) -> dict[str, Any]:
    tally: Tally = result["tally"]
    begin, end = result["peak_mb"]
    if begin and end - begin > MOST_GROWTH_MB:
        grown = f"{begin:.0f} MiB became {end:.0f} MiB"
        tally.add(Fault(target.name, "grew", grown, b""))
    return {
        "target": target.name,
        "part": part,
        **{name: tally.counts[name] for name in ("refused", "other", "unchanged")},
        "findings": tally.counts["finding"],
        "peak_mb": [round(begin, 1), round(end, 1)],
        "edges": result["edges"],
    }
