"""``audit``: one run in, one report out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import RunError, UsageError
from fedvtc_edge.progress import Progress, SilentProgress
from fedvtc_edge.runs.directory import version
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.storage.atomic import write_atomic
from fedvtc_edge.training.compute import deterministic

from . import advice
from .adversary.laboratory import Laboratory
from .adversary.subjects import StatisticsFile, shared
from .advice import EXIT, judge, policy_of
from .attempts import STAGED, attempt, groups_of, parse_attacks, parse_views
from .bundle.read import MANIFEST
from .curve import Point, curve
from .direct_disclosures import exact_recovery, histogram, scanned, traffic
from .dp import PrivacyClaim, Thresholds, claim_of_run, read_claim, reasons_against
from .dp.audit import audit_claim
from .memorisation import remembered
from .report import Picture, render
from .report import shown as shown_pictures
from .scoring.findings import Finding, Policy

SCHEMA = 1

TRIALS, QUICK_TRIALS = 300, 60
"""Per group; 60 still tell an identification of a tenth from chance."""


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit came to.

    Args:
        document: The content of ``report.json``.
        directory: Where it and the page were written, or None.
    """

    document: Mapping[str, Any]
    directory: Path | None


def audit(
    path: Path,
    *,
    attacks: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    trials: int | None = None,
    quick: bool = False,
    claim: Path | None = None,
    config: Config | None = None,
    out: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Audit:
    """Attack a finished run as its adversaries could, and try to refute its claim.

    Args:
        path: A run directory, a bundle's folder, or a file of published statistics.
        attacks: Names of those to make; None makes all.
        views: Names of adversaries to look through; None looks through all.
        trials: Per group; None is 300, or 60 if ``quick``.
        quick: Fewer trials and settings.
        claim: A TOML file with what is claimed; None takes the run's own claim.
        config: Settings of the run that a statistics file is of.
        out: Folder for ``report.json`` and ``report.html``; None writes nothing.
        seed: Of everything that is drawn but privacy noise.
        progress: Told of each attack.

    Raises:
        UsageError: An attack, adversary or claim that does not exist.
        RunError: No finished run there, a damaged one, or one of whose data nothing is known.
        DataError: Its data set is not to be had.
    """
    # Matrices are small: a second thread only waits for the first.
    with deterministic(), threadpool_limits(limits=1):
        asked = _Asked(attacks, views, trials, quick, claim, config, out, seed)
        return _audit(Path(path), asked, progress or SilentProgress())


@dataclass(frozen=True)
class _Asked:
    """The arguments of :func:`audit`."""

    attacks: Sequence[str] | None
    views: Sequence[str] | None
    trials: int | None
    quick: bool
    claim: Path | None
    config: Config | None
    out: Path | None
    seed: int


def _audit(path: Path, asked: _Asked, shown: Progress) -> Audit:
    begun, quick, seed = time.monotonic(), asked.quick, asked.seed
    picked, views = parse_attacks(asked.attacks), parse_views(asked.views)
    number = asked.trials or (QUICK_TRIALS if quick else TRIALS)
    claimed, limits = (None, Thresholds()) if asked.claim is None else read_claim(asked.claim)
    if (path / MANIFEST).is_file():
        found = scanned(path)
        parts: dict[str, Any] = {"subject": _bundle(path), "claim": None}
        return _concluded(parts, found, [], asked.out, begun, seed=seed, trials=0)
    run = _opened(path, asked.config)
    settings = run.config
    claimed = claimed or claim_of_run(settings)
    policy = policy_of(settings, claimed, limits)
    data = load_dataset(settings.data, public_classes=settings.privacy.mode != "none")
    laboratory = Laboratory(run, data, seed=seed)
    seen = [one for one in laboratory.observed() if one.who in views]
    groups = groups_of(laboratory, seen, number, staged=STAGED[:4] if quick else STAGED)
    groups = [group for group in groups if group.who in views]
    found, examples = attempt(picked, groups, policy, seed=seed, progress=shown)
    points: list[Point] = []
    dp = None
    if not asked.attacks:
        found += histogram(laboratory, seen)
        found += traffic(laboratory) if "eavesdropper" in views else []
        found += exact_recovery([trial for group in groups for trial in group.trials], policy)
        if isinstance(run, FinishedRun) and "device" in views:
            found += remembered(laboratory, policy, seed=seed)
        points = list(curve(laboratory, number // 2))
        if claimed is not None:
            dp = audit_claim(laboratory, claimed, quick=quick)
    invalid = [] if claimed is None else reasons_against(claimed, settings)
    parts = {
        "subject": _run(run, data.name),
        "claim": None if claimed is None else _claim(claimed, asked.claim),
        "threat_model": advice.threat_model(settings),
        "dp": dp,
        "epsilon_lower_bound": None if dp is None else dp["lower_bound"],
        "curve": [point.plain() for point in points],
        "recommendations": advice.recommendations(settings, found, points, policy),
        "layers": advice.layers(settings),
        "utility": {key: run.summary.get(key) for key in ("accuracy_control", "accuracy_mean")},
    }
    pictures = shown_pictures(examples, data.class_names)
    return _concluded(
        parts,
        found,
        pictures,
        asked.out,
        begun,
        seed=seed,
        trials=number,
        invalid=invalid,
        dp=dp,
        limits=limits,
    )


def _opened(path: Path, config: Config | None) -> FinishedRun | StatisticsFile:
    if path.suffix == ".safetensors" or config is not None:
        if config is None:
            raise UsageError(
                f"{path} does not say which data it is of", hint="add --config CONFIG.toml"
            )
        return StatisticsFile.open(path, config)
    run = FinishedRun.open(path)
    if run.is_served or run.is_home:
        # Scored against another's images, every attack would fail and every run pass.
        raise RunError(
            f"{path}: whose images are where is known to the clients of this run alone",
            hint="audit a rehearsal of it with data that are here: "
            f"fedvtc-edge run {path / 'config.toml'} --engine local --out DIR",
        )
    return run


def _concluded(
    parts: Mapping[str, Any],
    found: Sequence[Finding],
    pictures: Sequence[Picture],
    out: Path | None,
    begun: float,
    *,
    seed: int,
    trials: int,
    invalid: Sequence[str] = (),
    dp: Mapping[str, Any] | None = None,
    limits: Thresholds | None = None,
) -> Audit:
    verdict, reasons = judge(found, invalid=invalid, dp=dp, limits=limits or Thresholds())
    claim = parts["claim"] or {}
    document = {
        "schema": SCHEMA,
        "version": version(),
        "subject": parts["subject"],
        "verdict": verdict,
        "exit_code": EXIT[verdict],
        "reasons": reasons,
        "claim": parts["claim"],
        "threat_model": [],
        "unit": claim.get("unit"),
        "neighbouring": claim.get("neighbouring"),
        "confidence": Policy().confidence,
        "seed": seed,
        "trials": trials,
        "findings": [finding.plain() for finding in found],
        "epsilon_lower_bound": None,
        "dp": None,
        "curve": [],
        "recommendations": [],
        "layers": [],
        "seconds": round(time.monotonic() - begun, 1),
        "utility": {"accuracy_control": None, "accuracy_mean": None},
        **parts,
    }
    if out is not None:
        _write(out, document, pictures)
    return Audit(document, out)


def _run(run: FinishedRun | StatisticsFile, data: str) -> dict[str, Any]:
    config = run.config
    return {
        "kind": "run" if isinstance(run, FinishedRun) else "statistics",
        "name": run.path.name,
        "data": data,
        "share": shared(config),
        "moments": config.method.moments,
        "privacy": config.privacy.mode,
        "masking": config.transport.masking,
        "sealed": config.transport.seal,
        "clients": config.clients.count,
        "digest": run.digest,
    }


def _bundle(path: Path) -> dict[str, Any]:
    return {"kind": "bundle", "name": path.name}


def _claim(claim: PrivacyClaim, file: Path | None) -> dict[str, Any]:
    return {
        "epsilon": claim.epsilon,
        "delta": claim.delta,
        "unit": claim.unit,
        "neighbouring": claim.neighbouring,
        "mechanism": claim.mechanism,
        "source": "the run's settings" if file is None else file.name,
    }


def _write(folder: Path, document: Mapping[str, Any], pictures: Sequence[Picture]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        write_atomic(folder / "report.json", text.encode())
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}", hint="choose --out") from None
    render(document, pictures, folder / "report.html")
