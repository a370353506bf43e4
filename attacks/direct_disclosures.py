"""Direct disclosures: counts, sizes and records that uploads state outright."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .adversary.observations import EVERYONE, Observation, uploads
from .adversary.trials import AuditedRun, Trial
from .inference.exact_recovery import exactness, recover_one
from .scoring.findings import Finding, Policy, decided, more_trials
from .scoring.metrics import proportion_interval

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


def recovered(
    errors: Sequence[float],
    who: str,
    count: int,
    group: str,
    policy: Policy,
    confidence: float,
    *,
    staged: bool,
) -> Finding:
    """A finding on records that can be read off: n = 1, and n = 2 up to signs.

    Of a run's own uploads it is a fact about their records; staged ones are a sample.

    Args:
        errors: Of :func:`recovery_error`, one per trial.
        count: Records of a class in an upload, 1 or 2.
        group: Name of the group of trials.
        confidence: Of the interval of staged uploads.
    """
    hits = sum(error < EXACT for error in errors)
    share, limit = hits / len(errors), policy.limit("recovery", who)
    low = high = share
    if staged:
        low, high = proportion_interval(hits, len(errors), confidence)
    undecided = limit is not None and decided(low, high, limit) is None
    note = "exact recovery" if share > 0.5 else "not recovered"
    if count == 2:
        note += ", up to order and the sign of each feature"
    return Finding(
        attack="exact",
        view=who,
        metric="recovered_exactly",
        value=share,
        low=low,
        high=high,
        threshold=limit,
        group=group,
        trials=len(errors),
        staged=staged,
        decides_by=more_trials(share, limit or 0.0, confidence) if undecided else "",
        note=f"{note}; median relative error {np.median(errors):.2g}",
    )


def recovery_error(trial: Trial) -> float | None:
    """Error of a record's features as an upload of one or two records states them.

    Returns:
        The largest error, relative to the record's largest feature; of two records, of features
        up to their signs. None for more, or where no adversary can tell.
    """
    view = trial.case.view
    if trial.count > 2 or view.extract is None:
        return None
    truth = trial.case.features()[[trial.target]]
    if trial.count == 1:
        return float(exactness(recover_one(view.mean), truth))
    if view.std is None:
        return None
    # |z − c| = σ for both of two records: all but the signs.
    scale = max(float(np.abs(truth).max()), 1e-12)
    return float(np.abs(np.abs(truth[0] - view.mean) - view.std).max() / scale)
