"""Direct disclosures: counts, sizes and records that uploads state outright."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedvtc_edge.statistics.class_statistics import Array

from .adversary.observations import EVERYONE, Observation, uploads
from .adversary.trials import AuditedRun, Trial
from .inference.exact_recovery import exactness, recover_one
from .scoring.findings import Finding, Policy

EXACT = 1e-3
"""Relative error up to which a record's features count as recovered."""


def histogram(audited: AuditedRun, seen: Sequence[Observation], policy: Policy) -> list[Finding]:
    """Findings on class counts, and on missing classes, that are stated exactly.

    A count that is right to the record says who is there; a class whose count is 0, to the last
    digit, is missing, which no noise ever says.
    """
    found = []
    for who in sorted({one.who for one in seen}):
        right, guessed, cells, told, absent = 0, 0, 0, 0, 0
        for one in seen:
            if one.who != who or one.client == EVERYONE:
                continue
            where = audited.holdings[one.client]
            truth = np.bincount(audited.labels[where], minlength=audited.classes)
            even = np.full(audited.classes, round(len(where) / audited.classes))
            right += int(np.sum(np.rint(one.count) == truth))
            guessed += int(np.sum(even == truth))
            cells += audited.classes
            told += int(np.sum((one.count == 0) & (truth == 0)))
            absent += int(np.sum(truth == 0))
        common: dict[str, Any] = {"attack": "histogram", "view": who}
        common["threshold"] = policy.limit("counts", who)
        if cells:
            share = {"value": right / cells, "null": guessed / cells, "trials": cells}
            found.append(Finding.fact(metric="counts_exact", **share, **common))
        if absent:
            share = {"value": told / absent, "trials": absent}
            found.append(Finding.fact(metric="missing_classes_told", **share, **common))
    return found


def traffic(audited: AuditedRun) -> list[Finding]:
    """Findings on lengths of messages that tell one client from another."""
    sizes: dict[tuple[int, str], set[int]] = {}
    number = 0
    for context, data in uploads(audited.run.path, audited.config):
        if context.sender in audited.holdings:
            sizes.setdefault((context.round, context.kind), set()).add(len(data))
            number += 1
    if not number:
        return []
    telling = sum(len(lengths) > 1 for lengths in sizes.values())
    sealed = audited.config.transport.seal
    return [
        Finding.fact(
            attack="traffic",
            view="eavesdropper",
            metric="kinds_of_uploads_whose_length_tells",
            value=float(telling),
            threshold=0.0,
            trials=number,
            note="sealed" if sealed else "not sealed: all that the server sees is seen here, too",
        )
    ]


def exact_recovery(trials: Sequence[Trial], policy: Policy) -> list[Finding]:
    """Findings on features of single records that can be read off: n = 1, and n = 2 up to signs."""
    found = []
    for count, staged in ((1, False), (1, True), (2, False), (2, True)):
        errors, who = [], "server"
        for trial in trials:
            view = trial.case.view
            if trial.count != count or view.extract is None or trial.staged != staged:
                continue
            who = view.who
            truth = trial.case.features()[[trial.target]]
            errors.append(_error(trial, truth))
        known = [error for error in errors if error is not None]
        if not known:
            continue
        share = float(np.mean([error < EXACT for error in known]))
        limit = policy.limit("recovery", who)
        note = "exact recovery" if share > 0.5 else "not recovered"
        if count == 2:
            note += ", up to order and the sign of each feature"
        found.append(
            Finding.fact(
                attack="exact",
                view=who,
                metric="recovered_exactly",
                value=share,
                threshold=limit,
                group=f"n = {count}",
                trials=len(known),
                staged=staged,
                note=f"{note}; median relative error {np.median(known):.2g}",
            )
        )
    return found


def _error(trial: Trial, truth: Array) -> float | None:
    view = trial.case.view
    if trial.count == 1:
        return float(exactness(recover_one(view.mean), truth))
    if view.std is None:
        return None
    # |z − c| = σ for both of two records: all but the signs.
    scale = max(float(np.abs(truth).max()), 1e-12)
    return float(np.abs(np.abs(truth[0] - view.mean) - view.std).max() / scale)
