"""Risk of each record: how well its own membership shows in the mean of its class.

For a mean c of n records that is noised with τ, the likelihood-ratio test of one record φ has a
separation δ = ‖(φ − μ₀)/n‖ in units of c's own spread, Σ₀/n + τ²I: the Mahalanobis distance of the
record (arXiv 2402.10065, for exact means). It finds Φ(Φ⁻¹(f) + δ) of the members at a false
-positive rate f. That is a prediction from a model, and names who is most at risk; attacks measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.statistics.class_statistics import Array

from ..adversary.observations import Observation
from ..adversary.trials import AuditedRun
from ..adversary.view import populations, spectrum
from ..scoring.findings import DECIDING_RATE, Finding

_TINY = 1e-30


@dataclass(frozen=True)
class Risk:
    """One record of the run.

    Args:
        view: Adversary to whom it shows.
        client: Who holds it.
        record: Its place in the training set.
        count: Records n of its class at its client.
        distance: Mahalanobis distance from its class, in standard deviations per feature.
        found: Predicted true-positive rate at 1 % false positives.
    """

    view: str
    client: str
    record: int
    label: int
    count: int
    distance: float
    found: float


def risk_map(audited: AuditedRun, seen: Observation) -> list[Risk]:
    """Risks of the records that an upload is of, the highest first.

    Args:
        seen: An upload whose extractor the adversary has.
    """
    extract = audited.extractor(seen)
    assert extract is not None
    known = in_chunks(extract, audited.public).double().numpy()
    people = populations(known, audited.public_labels, audited.classes)
    where = audited.holdings[seen.client]
    features = audited.embedded(extract, where, exactly=False).double().numpy()
    labels, risks = audited.labels[where], list[Risk]()
    counts = np.bincount(labels, minlength=audited.classes)
    normal = NormalDist()
    for label in np.unique(labels):
        n, noise = int(counts[label]), float(seen.noise[label])
        values, axes = spectrum(people[label].covariance)
        off = (features[labels == label] - people[label].mean) @ axes
        distance = np.sqrt((np.square(off) / values).mean(1))
        # Of the n − 1 others' mean and the noise; of one exact record nothing is left.
        spread: Array = values * (n - 1) / n**2 + noise**2 + _TINY
        apart = np.sqrt((np.square(off / n) / spread).sum(1))
        for record, far, delta in zip(where[labels == label], distance, apart, strict=True):
            found = normal.cdf(normal.inv_cdf(DECIDING_RATE) + min(float(delta), 40.0))
            place = (seen.who, seen.client, int(record), int(label))
            risks.append(Risk(*place, n, float(far), found))
    return sorted(risks, key=_order)


def risks_of(audited: AuditedRun, seen: Sequence[Observation]) -> list[Risk]:
    """Risks of all records whose uploads were seen by who has their extractor, the highest first.

    Returns:
        None of them where no such upload was seen: under masks, or without the extractor.
    """
    return sorted(
        (
            risk
            for one in seen
            if one.who in ("server", "server+device") and audited.extractor(one) is not None
            for risk in risk_map(audited, one)
        ),
        key=_order,
    )


def _order(risk: Risk) -> tuple[float, float, int]:
    return (-risk.found, -risk.distance, risk.record)


def risk_findings(audited: AuditedRun, risks: Sequence[Risk]) -> list[Finding]:
    """The record that is most at risk, and what half of all records are at least at.

    Args:
        risks: The highest first.
    """
    if not risks:
        return []
    worst = risks[0]
    name = audited.names[worst.label]
    common: dict[str, Any] = {
        "attack": "risk",
        "view": worst.view,
        "metric": "predicted_tpr_at_1_percent_fpr",
    }
    rest = np.array([risk.found for risk in risks])
    return [
        Finding(
            value=worst.found,
            null=DECIDING_RATE,
            group="worst record",
            trials=len(risks),
            note=f"{worst.client}, training image {worst.record}, class {name}: "
            f"{worst.count} of its class there, {worst.distance:.1f} standard deviations out",
            **common,
        ),
        Finding(
            value=float(np.median(rest)),
            null=DECIDING_RATE,
            group="median record",
            trials=len(risks),
            note=f"nine of ten at most {np.quantile(rest, 0.9):.1%}; predicted from a model",
            **common,
        ),
    ]
