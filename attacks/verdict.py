"""What may leak, and what all findings come to: pass, leak, inconclusive or claim invalid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedvtc_edge.config import Config

from .advice import threat_model
from .dp import Claim, Thresholds
from .findings import DECIDING_RATE, Finding, Policy
from .laboratory import CANDIDATES

EXIT = {"pass": 0, "leak": 1, "inconclusive": 3, "claim invalid": 4}
"""Exit codes of the verdicts."""


def policy_of(config: Config, claim: Claim | None, limits: Thresholds) -> Policy:
    """What may leak: what a user allows, else what the claim allows, else five times chance.

    (ε, δ) allows a test with a false-positive rate f to find e^ε·f + δ of the members, and one
    record to be told from K − 1 others in e^ε/K + δ of the trials. Only adversaries that the
    claim covers are held to it.

    Args:
        config: Of the run.
        claim: None where nothing is claimed: then all adversaries are judged.
        limits: A user's own.
    """
    usual = Policy()
    identification, membership, covered = usual.identification, usual.membership, None
    if claim is not None:
        grown, delta = math.exp(min(claim.epsilon, 700.0)), claim.delta or 0.0
        identification = min(1.0, grown / CANDIDATES + delta)
        membership = min(1.0, grown * DECIDING_RATE + delta)
        covered = frozenset(str(e["view"]) for e in threat_model(config) if e["covered"])
    if limits.max_identification is not None:
        identification = limits.max_identification
    if limits.max_membership_tpr is not None:
        membership = limits.max_membership_tpr
    return Policy(identification, membership, usual.confidence, covered)


def judge(
    findings: Sequence[Finding],
    *,
    invalid: Sequence[str] = (),
    dp: Mapping[str, Any] | None = None,
    limits: Thresholds = Thresholds(),  # noqa: B008  (frozen)
) -> tuple[str, list[str]]:
    """The verdict, and why.

    A claim that cannot be true as it is worded is not tested. One limit passed is a leak. If
    nothing was decided, or half of the noise would have gone unnoticed, nothing was shown.

    Args:
        findings: All of them; those without a threshold decide nothing.
        invalid: What is wrong with the claim itself.
        dp: What the audit of the claim's noise came to; None where there was none.
        limits: A user's own.
    """
    if invalid:
        return "claim invalid", list(invalid)
    failed = [_said(finding) for finding in findings if finding.passed is False]
    if dp is not None:
        most = min(dp["epsilon"], limits.max_epsilon or math.inf)
        if dp["lower_bound"] > most:
            failed.insert(0, f"epsilon is at least {dp['lower_bound']:.3g}, allowed {most:.3g}")
    if failed:
        return "leak", failed
    if dp is not None and not dp["control_caught"]:
        return "inconclusive", ["the audit would not have noticed half of the noise"]
    if not any(finding.passed for finding in findings):
        return "inconclusive", ["no attack that decides anything could be made"]
    return "pass", []


def _said(finding: Finding) -> str:
    if finding.value is None:
        return f"{finding.attack}: {finding.note}"
    low = "" if finding.low is None else f", at least {finding.low:.1%}"
    return (
        f"{finding.attack} by {finding.view}, {finding.group}: {finding.metric} "
        f"{finding.value:.1%}{low}; allowed {finding.threshold:.1%}"
    )
