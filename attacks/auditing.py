"""Audit of one run, bundle or publication: all attacks on all views, and the report of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_data
from fedvtc_edge.errors import RunError, UsageError
from fedvtc_edge.privacy.claim import Claim
from fedvtc_edge.progress import Progress, SilentProgress
from fedvtc_edge.runs.directory import version
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.storage.atomic import write_atomic
from fedvtc_edge.training.compute import deterministic

from . import advice
from .adversary.subjects import StatisticsFile, shared
from .adversary.trials import AuditedRun
from .adversary.view import Attack
from .advice import EXIT, judge, policy_of
from .attempts import STAGED, attempt, groups_of, left_out, parse_views, unread
from .bundle.auditing import audit_bundle
from .bundle.reading import MANIFEST
from .curve import curve
from .direct_disclosures import histogram, traffic
from .dp.claims import Thresholds, claim_of_run, read_claim, reasons_against
from .dp.game import audit_claim
from .dp.own_bytes import with_own_bytes
from .dp.replay import with_replay
from .dp.training_steps import step_findings
from .inference.device_membership import memorisation
from .inference.property_inference import property_inference
from .inference.risk import risk_findings, risks_of
from .registry import parse_attacks
from .report import Picture, render, shown
from .report.document import SCHEMA
from .scoring.findings import Finding, Point, Policy

TRIALS, QUICK_TRIALS = 300, 60
"""Trials per group; 60 still tell an identification of a tenth from chance."""

CURVE_TRIALS = 60
"""Fewest per point of the curve: of 30, not even none shows that it is at most a tenth."""


@dataclass(frozen=True, eq=False)
class AuditResult:
    """Outcome of an audit.

    Args:
        document: Content of ``report.json``.
        directory: Where it and the page were written, or None.
    """

    document: Mapping[str, Any]
    directory: Path | None


def audit(
    run: Path,
    *,
    attacks: Sequence[str | Attack] | None = None,
    views: Sequence[str] | None = None,
    trials: int | None = None,
    quick: bool = False,
    replay: bool = False,
    claim: Path | None = None,
    config: Config | None = None,
    exported_from: Path | None = None,
    data: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> AuditResult:
    """Attack a finished run as its adversaries could, and try to refute its claim.

    Args:
        run: A run directory, a bundle's folder, or a file of published statistics.
        attacks: Attacks to make, by name or one's own; None makes all that have a name.
        views: Names of adversaries to look through; None looks through all.
        trials: Trials per group; None is 300, or 60 if ``quick``.
        quick: Whether to make fewer trials and try fewer settings.
        replay: Whether the release path is also played on neighbouring data, noise frozen.
        claim: A TOML file with what is claimed; None takes the run's own claim.
        config: Settings of the run that a statistics file is of.
        exported_from: The run that a bundle is of.
        data: The images of the client that a bundle is of, where its run is not at hand.
        out: Folder for ``report.json`` and ``report.html``; None writes nothing.
        seed: Seed of everything that is drawn but privacy noise.
        progress: Told of each attack.

    Raises:
        UsageError: An attack, adversary or claim that does not exist.
        RunError: No finished run there, a damaged one, or one of whose data nothing is known.
        DataError: Its data set is not to be had.
    """
    begun, path = time.monotonic(), Path(run)
    picked, chosen = parse_attacks(attacks), parse_views(views)
    number = trials or (QUICK_TRIALS if quick else TRIALS)
    claimed, limits = (None, Thresholds()) if claim is None else read_claim(claim)
    if (path / MANIFEST).is_file():
        if replay:
            raise UsageError(f"{path} is a bundle: it releases nothing", hint="leave out --replay")
        looked = audit_bundle(path, run=exported_from, data=data)
        claimed = claimed or looked.claim
        parts: dict[str, Any] = {
            "subject": {"kind": "bundle", "name": path.name, "client": looked.client},
            "claim": None if claimed is None else _claim(claimed, claim, "the manifest"),
            "seed": seed,
            "trials": 0,
        }
        return _concluded(parts, looked.findings, [], limits, out, begun, looked.invalid)
    if exported_from is not None or data is not None:
        raise UsageError(
            f"{path} is no bundle, and --run and --data are of bundles",
            hint="give a folder that export wrote, with a manifest.json",
        )
    opened = _opened(path, config)
    settings = opened.config
    claimed = claimed or claim_of_run(settings)
    policy = policy_of(settings, claimed, limits)
    # Matrices are small: a second thread only waits for the first.
    with deterministic(), threadpool_limits(limits=1):
        dataset = load_data(settings)
        audited = AuditedRun(opened, dataset, seed=seed)
        seen = [one for one in audited.observed() if one.who in chosen]
        groups = groups_of(audited, seen, number, staged=STAGED[:4] if quick else STAGED)
        groups = [group for group in groups if group.who in chosen]
        found, examples = attempt(
            picked, groups, policy, seed=seed, progress=progress or SilentProgress()
        )
        points: list[Point] = []
        dp = noise = None
        found += unread(shared(settings))
        if not attacks:
            found += histogram(audited, seen, policy)
            found += traffic(audited) if "eavesdropper" in chosen else []
            if isinstance(opened, FinishedRun) and "device" in chosen:
                found += memorisation(audited, policy, seed=seed)
            risks = risks_of(audited, seen)
            found += risk_findings(audited, risks)
            found += property_inference(audited, min(number, 100))
            points = list(curve(audited, max(number // 2, CURVE_TRIALS)))
            if claimed is not None:
                worst = risks[0] if risks else None
                dp = audit_claim(audited, claimed, quick=quick, riskiest=worst)
            if isinstance(opened, FinishedRun):
                found, noise = with_own_bytes([*step_findings(audited), *found], audited)
        if replay:
            found = [*with_replay(audited), *found]
    if claimed is not None:
        whole = isinstance(opened, FinishedRun)
        found += left_out(policy, chosen, noise=not attacks, bytes_=whole)
    parts = {
        "subject": _subject(opened, dataset.name) | {"attacked": len(audited.sample)},
        "beyond": advice.beyond(found, policy),
        "claim": None if claimed is None else _claim(claimed, claim),
        "threat_model": advice.threat_model(settings),
        "seed": seed,
        "trials": number,
        "dp": dp,
        "own_bytes": noise,
        "epsilon_lower_bound": None if dp is None else dp["lower_bound"],
        "curve": [asdict(point) for point in points],
        "recommendations": advice.recommendations(settings, found, points, policy),
        "layers": advice.layers(settings),
        "utility": {
            key: getattr(opened.summary, key) if isinstance(opened, FinishedRun) else None
            for key in ("accuracy_control", "accuracy_mean")
        },
    }
    invalid = [] if claimed is None else reasons_against(claimed, settings)
    pictures = shown(examples, dataset.class_names)
    return _concluded(parts, found, pictures, limits, out, begun, invalid)


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
    parts: dict[str, Any],
    found: Sequence[Finding],
    pictures: Sequence[Picture],
    limits: Thresholds,
    out: Path | None,
    begun: float,
    invalid: Sequence[str] = (),
) -> AuditResult:
    verdict, reasons = judge(found, invalid=invalid, dp=parts.get("dp"), limits=limits)
    claim = parts["claim"] or {}
    document = {
        "schema": SCHEMA,
        "version": version(),
        "subject": None,
        "verdict": verdict,
        "exit_code": EXIT[verdict],
        "reasons": reasons,
        "claim": None,
        "beyond": [],
        "threat_model": [],
        "unit": claim.get("unit"),
        "neighbouring": claim.get("neighbouring"),
        "confidence": Policy().confidence,
        "seed": None,
        "trials": None,
        "findings": [finding.plain() for finding in found],
        "epsilon_lower_bound": None,
        "dp": None,
        "own_bytes": None,
        "curve": [],
        "recommendations": [],
        "layers": [],
        "seconds": round(time.monotonic() - begun, 1),
        "utility": {"accuracy_control": None, "accuracy_mean": None},
        **parts,
    }
    if out is not None:
        _write(out, document, pictures)
    return AuditResult(document, out)


def _subject(run: FinishedRun | StatisticsFile, data: str) -> dict[str, Any]:
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


def _claim(claim: Claim, file: Path | None, of: str = "the run's settings") -> dict[str, Any]:
    return {
        "epsilon": claim.epsilon,
        "delta": claim.delta,
        "unit": claim.unit,
        "neighbouring": claim.neighbouring,
        "mechanism": claim.mechanism,
        "source": of if file is None else file.name,
    }


def _write(folder: Path, document: Mapping[str, Any], pictures: Sequence[Picture]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        write_atomic(folder / "report.json", text.encode())
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}", hint="choose --out") from None
    render(document, pictures, folder / "report.html")
