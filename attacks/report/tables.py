"""Findings sorted into the tables of the page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..scoring.findings import Finding
from .document import AuditDocument
from .wording import claimed

IDENTIFICATION = ("identification",)
MEMBERSHIP = ("auc", "tpr_at_1_percent_fpr", "tpr_at_0.1_percent_fpr")

Cell = dict[str, Finding]
"""What was found of one attack on one group, by metric."""


@dataclass(frozen=True)
class Table:
    """An attack per row, a group of uploads per column.

    Args:
        staged: Whether the auditor made the uploads.
        groups: Columns.
        rows: Attacks and their cells; an empty one where nothing was measured.
        limits: All thresholds that hang on a cell.
    """

    staged: bool
    groups: list[str]
    rows: list[tuple[str, list[Cell]]]
    limits: list[float]


@dataclass(frozen=True)
class Adversary:
    """One adversary and its tables.

    Args:
        view: Its name.
        sees: What it sees.
        covered: Whether the claim covers it; None where nothing is claimed or nobody says.
        tables: What it learns.
    """

    view: str
    sees: str | None
    covered: bool | None
    tables: list[Table]


def adversaries(audit: AuditDocument) -> list[Adversary]:
    """Those of the threat model first, then any that findings speak of."""
    known = {threat.view: threat for threat in audit.threat_model}
    made = []
    for view in unique([*known, *(finding.view for finding in audit.findings)]):
        threat = known.get(view)
        made.append(
            Adversary(
                view,
                threat.sees if threat else None,
                threat.covered if threat and claimed(audit) else None,
                tables_of(audit, view, IDENTIFICATION),
            )
        )
    return made


def membership(audit: AuditDocument) -> list[tuple[str, list[Table]]]:
    """Adversaries, and their tables of AUC and true-positive rates."""
    views = unique(finding.view for finding in audit.findings if finding.metric in MEMBERSHIP)
    return [(view, tables_of(audit, view, MEMBERSHIP)) for view in views]


def others(audit: AuditDocument) -> list[tuple[str, bool, list[Finding]]]:
    """All that stands in no other table: in words, whether it has to be seen, and what it is."""
    rest = [f for f in audit.findings if f.metric not in IDENTIFICATION + MEMBERSHIP]
    leaks = [finding for finding in rest if finding.passed is False]
    sound = [finding for finding in rest if finding.passed is not False]
    groups = [("beyond their limit", True, leaks), ("within it, or not judged", False, sound)]
    return groups if rest else []


def tables_of(audit: AuditDocument, view: str, metrics: Sequence[str]) -> list[Table]:
    """One adversary's findings by some metrics: what was really seen, and what was staged."""
    tables = []
    for staged in (False, True):
        cells: dict[tuple[str, str], Cell] = {}
        for finding in audit.findings:
            if (finding.view, finding.staged) == (view, staged) and finding.metric in metrics:
                cells.setdefault((finding.attack, finding.group), {})[finding.metric] = finding
        groups = ordered(group for _, group in cells)
        rows = [
            (attack, [cells.get((attack, group), {}) for group in groups])
            for attack in unique(attack for attack, _ in cells)
        ]
        limits = {f.threshold for cell in cells.values() for f in cell.values()}
        names = [group.removesuffix(", staged") for group in groups]
        tables.append(
            Table(staged, names, rows, sorted(limit for limit in limits if limit is not None))
        )
    return [table for table in tables if table.rows]


def unique(values: Iterable[str]) -> list[str]:
    """Each once, in the order of its first."""
    return list(dict.fromkeys(values))


def records(group: str) -> float | None:
    """About how many records a group's uploads are of: ``n = 3 to 5`` is √15; None: any."""
    numbers = [int(digits) for digits in re.findall(r"\d{1,9}", group.split(",")[0])]
    if not numbers or not group.startswith("n"):
        return None
    return max(1.0, math.sqrt(numbers[0] * numbers[-1]))


def ordered(groups: Iterable[str]) -> list[str]:
    """Groups by size, those without one last."""

    def place(group: str) -> tuple[float, str]:
        size = records(group)
        return (float("inf") if size is None else size, group)

    return sorted(set(groups), key=place)
