"""Words and tables of an audit's page: verdicts, claims, adversaries, attacks, measures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedvtc_edge.report.wording import NOTHING, count, duration, percent

from ..scoring.findings import Finding
from .document import AuditDocument, ClaimRecord, ReleaseRecord, SubjectRecord

__all__ = ["count", "duration", "percent"]  # for the template, beside what follows

VERDICTS = {
    "pass": (
        "Pass",
        "No attack of this audit learned more than is allowed. That bounds these attacks, "
        "not better ones.",
    ),
    "leak": (
        "Leak",
        "More can be learned about single training examples than is allowed, and not by chance.",
    ),
    "inconclusive": (
        "Inconclusive",
        "Something that has to be decided is not: take it for no audit. What would decide it "
        "stands below.",
    ),
    "claim invalid": (
        "Claim invalid",
        "The privacy claim does not hold as it is stated, whatever the attacks measured.",
    ),
}

SUBJECTS = {"run": "run", "bundle": "exported bundle", "statistics": "published statistics"}

VIEWS = {
    "server": "The server",
    "server+device": "The server, with a client's device",
    "colluders": "All clients but one, together",
    "device": "Whoever takes a device apart",
    "eavesdropper": "An eavesdropper",
}

ATTACKS = {
    "decode": "one pass through a decoder",
    "inversion": "a picture whose features fit",
    "exact": "reads single records off",
    "membership": "likelihood-ratio test",
    "second-moments": "from second moments",
    "differencing": "one upload less another",
    "rounds": "inversion over repetitions",
    "shadow": "without the extractor",
    "histogram": "class counts as stated",
    "memorised": "the model on its own data",
    "eigenvectors": "top eigenvectors of second moments",
    "averaging": "two noised runs, averaged",
    "property": "what a class has in common",
    "risk": "predicted from distances",
    "own bytes": "noise in what was released",
    "replay": "the release path on neighbours",
}

MOMENTS = {
    "mean": "means alone",
    "pooled": "means, pooled second moments",
    "class": "means, a std per class",
}

METRICS = {
    "identification": "Identification",
    "auc": "AUC",
    "tpr_at_1_percent_fpr": "TPR at 1% FPR",
    "tpr_at_0.1_percent_fpr": "TPR at 0.1% FPR",
    "ssim": "SSIM",
    "psnr": "PSNR",
    "recovered_exactly": "Recovered exactly",
    "counts_exact": "Class counts told exactly",
    "missing_classes_told": "Missing classes told",
    "property_told": "Attribute's share told apart",
    "predicted_tpr_at_1_percent_fpr": "Predicted TPR at 1% FPR",
    "noise_missing": "Noise missing",
    "refused": "Releases refused",
    "untested": "Releases not tested",
    "violations": "Violations",
}

_PLAIN = {"auc": "{:.3f}", "ssim": "{:.2f}", "psnr": "{:.1f} dB"}
_PLAIN |= dict.fromkeys(("refused", "untested", "violations"), "{:.0f}")
_PERCENT = METRICS.keys() - _PLAIN


def fleet(subject: SubjectRecord) -> str | None:
    """Number of clients, and of those whose uploads were attacked, in words."""
    if subject.clients is None:
        return None
    if subject.attacked is None or subject.attacked >= subject.clients:
        return count(subject.clients)
    return f"{count(subject.clients)}, {count(subject.attacked)} of them attacked"


def claimed(audit: AuditDocument) -> ClaimRecord | None:
    """The claim, completed by what the document says beside it; None: nothing is claimed."""
    claim = audit.claim
    if claim is None or claim.epsilon is None:
        return None
    said = {
        "unit": claim.unit or audit.unit,
        "neighbouring": claim.neighbouring or audit.neighbouring,
    }
    return claim.model_copy(update=said)


def odds(epsilon: float) -> str:
    """The odds that an ε grants whoever reads the release."""
    factor = math.exp(min(epsilon, 20.0))
    if factor > 1e6:
        most = "more than a million, which is no protection"
    else:
        most = count(factor) if factor >= 10 else f"{factor:.2g}"
    return f"A release can raise the odds that the unit is in the data by a factor of up to {most}"


def number(value: float | None) -> str:
    """Three digits, as a person writes them: ``1e-5``, ``0.97``, ``12 400``."""
    if value is None:
        return NOTHING
    if 1000 <= abs(value) < 1e9:
        return count(value).replace("-", "\u2212")
    text = f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return "\u2212" + text[1:] if text.startswith("-") else text


def amount(metric: str, value: float | None) -> str:
    """A value in the unit of its metric; unknown metrics are plain numbers."""
    if value is None:
        return NOTHING
    if metric in _PERCENT:
        return percent(value)
    return _PLAIN[metric].format(value) if metric in _PLAIN else number(value)


def whole(value: float | None) -> str:
    """A fraction as whole percent, without the sign, for what stands in small."""
    return NOTHING if value is None else f"{100 * value:.0f}"


def interval(metric: str, low: float | None, high: float | None) -> str:
    """``95.1–99.4%``, or nothing where there is none."""
    if low is None or high is None:
        return ""
    first, last = amount(metric, low), amount(metric, high)
    if metric in _PERCENT:
        first = first.removesuffix("%")
    return f"{first}–{last}"


def judged(finding: Finding) -> tuple[str, str]:
    """Style class and word for how a finding counts."""
    if finding.threshold is None:
        return ("", "not judged")
    return outcome(finding.passed)


def outcome(passed: bool | None) -> tuple[str, str]:
    """Style class and word for what a limit hangs on."""
    if passed is None:
        return ("open", "undecided")
    return ("fine", "pass") if passed else ("leaks", "leak")


def ruled(verdict: str) -> tuple[str, str]:
    """Style class and word for a verdict within a table."""
    passed = {"pass": True, "leak": False}.get(verdict)
    return (outcome(passed)[0], verdict)


MOST_RELEASES = 12
"""Releases that the page has; all are in ``report.json``."""


def releases(audit: AuditDocument) -> list[ReleaseRecord]:
    """Releases of the run, those that leak first, then the undecided, then by how little noise."""
    found = audit.own_bytes.releases if audit.own_bytes else ()
    order = {False: 0, None: 1, True: 2}
    return sorted(found, key=lambda one: (order[one.passed], one.noise or 0.0))


def tally(audit: AuditDocument) -> str:
    """Number of releases by outcome, as ``6 releases: 5 pass, 1 undecided`` reads."""
    found = [outcome(one.passed)[1] for one in releases(audit)]
    each = [f"{found.count(word)} {word}" for word in unique(found)]
    return f"{len(found)} release{'' if len(found) == 1 else 's'}: {', '.join(each)}."


def sender(release: ReleaseRecord) -> str:
    """Sender and round of a release."""
    who = {"sum": "the masked sum", "server": "the server"}.get(release.sender, release.sender)
    return f"{who}, round {release.round}" if release.round else who


def replays(audit: AuditDocument) -> list[Finding]:
    """Findings on the release path, where it was replayed."""
    return [finding for finding in audit.findings if finding.attack == "replay"]


def metric(name: str) -> str:
    """A measure's name."""
    return METRICS.get(name, name.replace("_", " "))


def view(name: str) -> str:
    """An adversary's name."""
    return VIEWS.get(name, name)


def told(text: str | None) -> str:
    """A note, without the words that programs have for numbers that are none."""
    return re.sub(r"(?<!\w)[-+]?(?i:nan|inf)(?!\w)", NOTHING, text or "")


def setting(epsilon: float | None, moments: str) -> str:
    """A setting of the curve."""
    noise = "no noise" if epsilon is None else f"ε = {number(epsilon)}"
    return f"{noise}, {MOMENTS.get(moments, moments)}"


def worst(audit: AuditDocument) -> str | None:
    """Sentence on the surest identification; None without one."""
    found = [f for f in audit.findings if f.metric == "identification" and f.value is not None]
    if not found:
        return None
    top = max(found, key=lambda f: (f.low or 0.0, f.value or 0.0))
    within = interval("identification", top.low, top.high)
    sure = f" ({within})" if within else ""
    where = "" if top.group == "all" else f" ({top.group})"
    null = "" if top.null is None else f"; of records that nobody uploaded, {percent(top.null)}"
    return (
        f"At worst, “{top.attack}” tells the true record from non-members of its class in "
        f"{percent(top.value)}{sure} of {top.trials} trials{where}{null}."
    )


IDENTIFICATION = ("identification",)
MEMBERSHIP = ("auc", "tpr_at_1_percent_fpr", "tpr_at_0.1_percent_fpr")

Cell = dict[str, Finding]
"""Findings on one attack and one group, by metric."""


@dataclass(frozen=True)
class Table:
    """An attack per row, a group of uploads per column.

    Args:
        staged: Whether the auditor made the uploads.
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
        covered: Whether the claim covers it; None where nothing is claimed or nobody says.
    """

    view: str
    sees: str | None
    covered: bool | None
    tables: list[Table]


def adversaries(audit: AuditDocument) -> list[Adversary]:
    """Adversaries of the threat model, then any others that findings name."""
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
    """Findings that stand in no other table: heading, whether it is open, and rows."""
    rest = [f for f in audit.findings if f.metric not in IDENTIFICATION + MEMBERSHIP]
    leaks = [finding for finding in rest if finding.passed is False]
    undecided = [finding for finding in rest if finding.undecided]
    sound = [one for one in rest if one not in leaks and one not in undecided]
    groups = [
        ("beyond their limit", True, leaks),
        ("undecided", True, undecided),
        ("within it, or not judged", False, sound),
    ]
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
