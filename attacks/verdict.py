"""What all findings come to: pass, leak, inconclusive or claim invalid."""

from __future__ import annotations

from collections.abc import Sequence

from .findings import Finding

EXIT = {"pass": 0, "leak": 1, "inconclusive": 3, "claim invalid": 4}
"""Exit codes of the verdicts."""


def judge(findings: Sequence[Finding], *, invalid: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The verdict, and why.

    A claim that cannot be true as it is worded is not tested. One limit passed is a leak. If
    nothing was decided, nothing was shown.

    Args:
        findings: All of them; those without a threshold decide nothing.
        invalid: What is wrong with the claim itself.
    """
    if invalid:
        return "claim invalid", list(invalid)
    failed = [finding for finding in findings if finding.passed is False]
    if failed:
        return "leak", [_said(finding) for finding in failed]
    if not any(finding.passed for finding in findings):
        return "inconclusive", ["no attack that decides anything could be made"]
    return "pass", []


def _said(finding: Finding) -> str:
    value = f"{finding.value:.1%}" if finding.value is not None else "not known"
    low = "" if finding.low is None else f", at least {finding.low:.1%}"
    return (
        f"{finding.attack} by {finding.view}, {finding.group}: {finding.metric} {value}{low}; "
        f"allowed {finding.threshold:.1%}"
    )
