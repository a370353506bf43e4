"""``audit``: one run in, one report out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import RunError
from fedvtc_edge.files import write_atomic
from fedvtc_edge.finished import FinishedRun
from fedvtc_edge.progress import Progress, SilentProgress
from fedvtc_edge.runs import version

from . import advice
from .auditing import STAGED, Example, attempt, chosen, groups_of
from .curve import curve
from .facts import exact_recovery, histogram
from .findings import Policy
from .laboratory import Laboratory
from .report import render, shown
from .verdict import EXIT, judge

SCHEMA = 1

TRIALS, QUICK_TRIALS = 300, 60
"""Per group; 60 still tell an identification of a tenth from chance."""


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit came to.

    Args:
        document: The content of ``report.json``.
        examples: Pictures for the page.
        directory: Where both were written, or None.
    """

    document: Mapping[str, Any]
    examples: list[Example]
    directory: Path | None


def audit(
    path: Path,
    *,
    attacks: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    trials: int | None = None,
    quick: bool = False,
    claim: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Audit:
    """Attack a finished run as its adversaries could, and say whether its claim holds.

    Args:
        path: The run directory.
        attacks: Names of those to make; None makes all.
        views: Names of adversaries to look through; None looks through all.
        trials: Per group; None is 300, or 60 if ``quick``.
        quick: Fewer trials and settings.
        claim: A TOML file with what is claimed; None takes the run's own claim.
        out: Folder for ``report.json`` and ``report.html``; None writes nothing.
        seed: Of everything that is drawn but privacy noise.
        progress: Told of each attack.

    Raises:
        UsageError: An attack, adversary or claim that does not exist.
        RunError: No finished run there, or a damaged one.
        DataError: Its data set is not to be had.
    """
    begun, shown = time.monotonic(), progress or SilentProgress()
    number = trials or (QUICK_TRIALS if quick else TRIALS)
    picked = chosen(attacks)
    run = FinishedRun.open(Path(path))
    config = run.config
    policy = Policy()
    data = load_dataset(config.data, public_classes=config.privacy.mode != "none")
    laboratory = Laboratory(run, data, seed=seed)
    seen = [one for one in laboratory.observed() if not views or one.who in views]
    groups = groups_of(laboratory, seen, number, staged=STAGED[:4] if quick else STAGED)
    found, examples = attempt(picked, groups, policy, seed=seed, progress=shown)
    points = []
    if not attacks:
        found += histogram(laboratory, seen)
        found += exact_recovery([trial for group in groups for trial in group.trials])
        points = list(curve(laboratory, number // 2))
    verdict, reasons = judge(found)
    document = {
        "schema": SCHEMA,
        "version": version(),
        "subject": _subject(run),
        "verdict": verdict,
        "exit_code": EXIT[verdict],
        "reasons": reasons,
        "claim": None,
        "threat_model": advice.threat_model(config),
        "unit": None,
        "neighbouring": None,
        "confidence": policy.confidence,
        "seed": seed,
        "trials": number,
        "findings": [finding.plain() for finding in found],
        "epsilon_lower_bound": None,
        "dp": None,
        "curve": [point.plain() for point in points],
        "recommendations": advice.recommendations(config, found, points, policy),
        "layers": advice.layers(config),
        "seconds": round(time.monotonic() - begun, 1),
        "utility": {key: run.summary.get(key) for key in ("accuracy_control", "accuracy_mean")},
    }
    if out is not None:
        _write(Path(out), document, examples, data.class_names)
    return Audit(document, examples, out)


def _subject(run: FinishedRun) -> dict[str, Any]:
    config = run.config
    return {
        "kind": "run",
        "name": run.path.name,
        "data": config.data.name,
        "share": config.method.share,
        "moments": config.method.moments,
        "privacy": config.privacy.mode,
        "masking": config.transport.masking,
        "sealed": config.transport.seal,
        "clients": config.clients.count,
        "digest": run.digest,
    }


def _write(
    folder: Path, document: Mapping[str, Any], examples: Sequence[Example], names: Sequence[str]
) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        write_atomic(folder / "report.json", text.encode())
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}", hint="choose --out") from None
    render(document, shown(examples, names), folder / "report.html")
