"""Findings of an audit as ``report.json`` holds them, and what decides about them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fedvtc_edge.runs.records import Count
from fedvtc_edge.statistics.class_statistics import Array

from .metrics import proportion_interval, tpr_at_fpr

DECIDING_RATE = 0.01
"""False-positive rate at which membership is judged."""

LEAST_ACCUSED = 10
"""Non-members that must be accused at a rate: 1 % needs 1,000 of them, 0.1 % needs 10,000."""


@dataclass(frozen=True)
class Finding:
    """One number about one attack, as it stands in ``report.json``.

    Args:
        attack: Name of the attack.
        view: Name of the adversary.
        metric: Name of the measure.
        low: Lower confidence limit, or None where the value is no estimate.
        null: Value that the attack reaches on records that nobody uploaded.
        baseline: Value that the mean of public images reaches.
        ceiling: Value that whoever knows the mean of the very records reaches.
        threshold: Limit that ``low`` may not pass; None where nothing hangs on it.
        passed: Whether it does not; None without a threshold.
        group: Uploads that were attacked, by how many records they are of.
        trials: Number of trials.
        staged: Whether uploads were made by the auditor, on the run's own path.
    """

    attack: str
    view: str
    metric: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    null: float | None = None
    baseline: float | None = None
    ceiling: float | None = None
    threshold: float | None = None
    passed: bool | None = None
    group: str = "all"
    trials: Count = 0
    staged: bool = False
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """The finding as JSON holds it; numbers that JSON has no word for are None."""
        document = asdict(self)
        return {
            key: None if isinstance(value, float) and not np.isfinite(value) else value
            for key, value in document.items()
        }


@dataclass(frozen=True)
class Point:
    """One setting of the curve of leakage against utility.

    Args:
        epsilon: ε of a private release; None: exact sums.
        minimum: Smallest class count that is uploaded.
        moments: ``mean``, ``pooled`` or ``class``: means alone, with one second-moment matrix,
            or with a std per class.
        identification: Share of members told from 49 non-members.
        low: Its lower limit, of 95 %.
        accuracy: Accuracy of the statistics-only classifier on held-out images.
    """

    epsilon: float | None
    minimum: int
    moments: str
    identification: float
    low: float
    high: float
    accuracy: float


@dataclass(frozen=True)
class Policy:
    """Limits of what may leak; by default five times what chance reaches.

    Args:
        identification: Largest share of records told from non-members of their class.
        membership: Largest true-positive rate at 1 % false positives.
        confidence: Confidence of all intervals that decide, together.
        covered: Adversaries that are judged; None judges all.
    """

    identification: float = 0.1
    membership: float = 0.05
    confidence: float = 0.95
    covered: frozenset[str] | None = None

    def limit(self, metric: Literal["identification", "membership"], view: str) -> float | None:
        """The limit of a lower confidence limit; None where nothing hangs on it."""
        if self.covered is not None and view not in self.covered:
            return None
        limits = {"identification": self.identification, "membership": self.membership}
        return limits[metric]


def credit(scores: Array, place: int) -> float:
    """Identification in one trial: 1 if the candidate ranks first, divided among ties."""
    best = scores.max()
    return float(scores[place] == best) / int((scores == best).sum())


def rates_of(
    members: Array, others: Array, policy: Policy, confidence: float, common: dict[str, Any]
) -> list[Finding]:
    """Findings on true positives at low false-positive rates, where there are non-members enough.

    Args:
        members: Scores [M].
        others: Scores of non-members [N].
        confidence: Of each interval.
        common: Fields that the findings share, ``view`` among them.
    """
    found = []
    for rate, name in ((0.01, "tpr_at_1_percent_fpr"), (0.001, "tpr_at_0.1_percent_fpr")):
        if len(others) * rate < LEAST_ACCUSED:
            continue
        share = tpr_at_fpr(members, others, rate)
        low, high = proportion_interval(round(share * len(members)), len(members), confidence)
        decides = rate == DECIDING_RATE
        limit = policy.limit("membership", common["view"]) if decides else None
        found.append(
            Finding(
                metric=name,
                value=share,
                low=low,
                high=high,
                null=rate,
                threshold=limit,
                passed=None if limit is None else low <= limit,
                **common,
            )
        )
    return found
