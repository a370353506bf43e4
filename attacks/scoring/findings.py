"""Findings of an audit as ``report.json`` holds them, and what decides about them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fedvtc_edge.runs.records import Count
from fedvtc_edge.statistics.class_statistics import Array

from .metrics import proportion_interval, tpr_at_fpr

Limited = Literal["identification", "membership", "recovery", "counts"]
"""Measures that a policy limits."""

DECIDING_RATE = 0.01
"""False-positive rate at which membership is judged."""

_MOST_TRIALS = 2**17

LEAST_ACCUSED = 10
"""Non-members that must be accused at a rate: 1 % needs 1,000 of them, 0.1 % needs 10,000."""


def decided(low: float | None, high: float | None, threshold: float | None) -> bool | None:
    """Outcome of one measure: the only rule by which anything passes.

    Args:
        low: Lower confidence limit; None where nothing was measured.
        high: Upper one.
        threshold: Most that may be; None where nothing hangs on it.

    Returns:
        True where the upper limit is at or below the threshold, False where the lower one is
        above it; None, *undecided*, for all else.
    """
    if threshold is None:
        return None
    if low is not None and low > threshold:
        return False
    return True if high is not None and high <= threshold else None


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
        threshold: Most that may be; None where nothing hangs on it.
        group: Uploads that were attacked, by how many records they are of.
        trials: Number of trials.
        staged: Whether uploads were made by the auditor, on the run's own path.
        required: Whether an audit without a decision on this is inconclusive; of no account
            without a threshold.
        decides_by: What would decide it, if it is undecided.
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
    group: str = "all"
    trials: Count = 0
    staged: bool = False
    required: bool = True
    decides_by: str = ""
    note: str = ""

    @classmethod
    def fact(cls, *, value: float, **fields: Any) -> Finding:
        """A finding that is no estimate: its limits are the value."""
        return cls(value=value, low=value, high=value, **fields)

    @property
    def passed(self) -> bool | None:
        """True: within the threshold; False: a leak; None: undecided, or without a threshold."""
        return decided(self.low, self.high, self.threshold)

    @property
    def undecided(self) -> bool:
        """Whether an audit is inconclusive for want of a decision on this."""
        return self.required and self.threshold is not None and self.passed is None

    def plain(self) -> dict[str, Any]:
        """The finding as JSON holds it; numbers that JSON has no word for are None."""
        document = asdict(self) | {
            "passed": self.passed,
            "required": self.required and self.threshold is not None,
        }
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
        identification: Largest share of records told from non-members of their class; None
            where the claim allows all of them, so that no attack could decide.
        membership: Largest true-positive rate at 1 % false positives; None likewise.
        recovery: Largest share of single records whose features are read off exactly.
        counts: Largest share of class counts, or of missing classes, that an upload states
            exactly; None where that is by design.
        confidence: Confidence of all intervals that decide, together.
        covered: Adversaries that are judged; None judges all.
    """

    identification: float | None = 0.1
    membership: float | None = 0.05
    recovery: float = 0.1
    counts: float | None = None
    confidence: float = 0.95
    covered: frozenset[str] | None = None

    def limit(self, metric: Limited, view: str) -> float | None:
        """The most that may be; None where nothing hangs on it."""
        if self.covered is not None and view not in self.covered:
            return None
        limits = {
            "identification": self.identification,
            "membership": self.membership,
            "recovery": self.recovery,
            "counts": self.counts,
        }
        return limits[metric]

    def silence(self, metric: Literal["identification", "membership"], view: str) -> str:
        """Why nothing hangs on a measure; empty where something does."""
        if self.covered is not None and view not in self.covered:
            return "not covered by the claim"
        if self.limit(metric, view) is None:
            return "the claim allows it always: no attack decides"
        return ""


def more_trials(value: float, threshold: float, confidence: float) -> str:
    """About how many trials would decide, if the value stayed as it is.

    Args:
        confidence: Of the interval.
    """
    trials = 16
    while trials <= _MOST_TRIALS:
        low, high = proportion_interval(value * trials, trials, confidence)
        if decided(low, high, threshold) is not None:
            return f"about {trials:,} trials"
        trials *= 2
    return f"more than {_MOST_TRIALS:,} trials: the value is too near to the limit"


def credit(scores: Array, place: int) -> float:
    """Identification in one trial: 1 if the candidate ranks first, divided among ties."""
    best = scores.max()
    return float(scores[place] == best) / int((scores == best).sum())


def rates_of(
    members: Array, others: Array, policy: Policy, confidence: float, common: dict[str, Any]
) -> list[Finding]:
    """Findings on true positives at low false-positive rates.

    With too few non-members there is none, but where something hangs on it: then an undecided one.

    Args:
        members: Scores [M].
        others: Scores of non-members [N].
        confidence: Of each interval.
        common: Fields that the findings share, ``view`` among them.
    """
    found = []
    for rate, name in ((0.01, "tpr_at_1_percent_fpr"), (0.001, "tpr_at_0.1_percent_fpr")):
        decides = rate == DECIDING_RATE
        limit = policy.limit("membership", common["view"]) if decides else None
        if len(others) * rate < LEAST_ACCUSED:
            if limit is not None:
                needed = math.ceil(LEAST_ACCUSED / rate)
                missing = f"{len(others):,} non-members; the rate is from {needed:,} on"
                wanted = f"{needed:,} non-members or more"
                found.append(
                    Finding(
                        metric=name,
                        low=0.0,
                        high=1.0,
                        null=rate,
                        threshold=limit,
                        note=missing,
                        decides_by=wanted,
                        **common,
                    )
                )
            continue
        share = tpr_at_fpr(members, others, rate)
        low, high = proportion_interval(round(share * len(members)), len(members), confidence)
        undecided = limit is not None and decided(low, high, limit) is None
        found.append(
            Finding(
                metric=name,
                value=share,
                low=low,
                high=high,
                null=rate,
                threshold=limit,
                decides_by=more_trials(share, limit or 0.0, confidence) if undecided else "",
                note=policy.silence("membership", common["view"]) if decides else "",
                **common,
            )
        )
    return found
