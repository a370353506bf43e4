"""Threat model, layers of protection, recommendations and verdict of an audit, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedvtc_edge.config import Config
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.privacy.claim import Claim
from fedvtc_edge.privacy.mechanism import mechanism_of

from .adversary.subjects import READ, shared
from .adversary.trials import CANDIDATES
from .curve import MINIMUM_COUNTS
from .dp.claims import Thresholds
from .dp.own_bytes import ATTACK
from .scoring.findings import DECIDING_RATE, Finding, Limited, Point, Policy, decided

Entry = dict[str, str | bool]


def threat_model(config: Config) -> list[Entry]:
    """Adversaries with what each sees of this run, and whether the run's claim covers it."""
    mechanism, masked, mode = mechanism_of(config), config.transport.masking, shared(config)
    private, trained = mechanism is not None, mechanism is not None and mechanism.protects_models
    noised = mechanism is not None and mechanism.unit == "example"
    trusted = mechanism is not None and mechanism.noised_by_server
    if mode == "nothing":
        sees = "a client's own classifier; nothing is uploaded"
        return [{"view": "device", "sees": sees, "covered": False}]
    moments = METHODS.find(config.method.name).sends_moments
    upload = "counts, class means and second moments" if moments else "counts and class means"
    if noised:
        upload = f"noised {upload}"
    each = f"each client's {upload}"
    if masked:
        groups = f"sums of {config.sums} groups of clients"
        each = "only the sum over the clients" if config.sums == 1 else f"only the {groups}"
    if mode not in READ:
        sees = f"each client's uploads of {mode!r}, which no attack here reads"
        own = "a client's own networks, and what is published"
        views = {"server": sees, "device": own, "server+device": "both together"}
        return [{"view": view, "sees": sees, "covered": False} for view, sees in views.items()]
    anchored = mode == "anchored"
    space = "in the anchor's space, which it can compute" if anchored else "of hidden features"
    weights = ", and every decoder's weights" if mode == "features+decoder" else ""
    lengths = "addresses, times and sizes; the sizes are the same for all clients"
    everything = "all that the server sees: nothing is sealed"
    told = "what is published, less what all clients but one know of themselves"
    own = "a client's own classifier and decoder, and what is published"
    both = "both together: hidden features become computable"
    rows = (
        ("server", f"{each}, {space}{weights}", private and not trusted),
        ("colluders", told, private),
        ("device", own, trained),
        ("server+device", both, trained),
        (
            "eavesdropper",
            lengths if config.transport.seal else everything,
            noised,
        ),
    )
    return [{"view": view, "sees": sees, "covered": covered} for view, sees, covered in rows]


def layers(config: Config) -> list[Entry]:
    """Layers of protection with what each stops and does not stop, on or off."""
    mechanism = mechanism_of(config)
    about = "nothing: it is off" if mechanism is None else mechanism.covers
    rows = (
        (
            "anchor",
            shared(config) == "anchored",
            "repeated uploads, and features that were trained on the data",
            "anybody from computing features of a guess and comparing",
        ),
        (
            "sealing",
            config.transport.seal,
            "eavesdroppers, forgery and replay",
            "the server, which opens what it receives",
        ),
        (
            "masking",
            config.transport.masking,
            "the server from seeing one client's statistics",
            "what the sum says; a client whose class nobody else has; all other clients together",
        ),
        (
            "noise",
            mechanism is not None,
            "reconstruction, and membership as far as ε says",
            f"whatever it does not cover; it covers {about}",
        ),
        (
            "minimum contributors",
            config.server.minimum_contributors > 1,
            "publishing a class that one client alone holds",
            "the server, or all other contributors together",
        ),
    )
    keys = ("layer", "on", "stops", "does_not_stop")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def recommendations(
    config: Config, findings: Sequence[Finding], points: Sequence[Point], policy: Policy
) -> list[Entry]:
    """Settings to choose, each with the measurement that speaks for it.

    What points of the curve say goes by the rule for findings: a setting is good enough if the
    upper limit is within the threshold, and not if the lower one is above it.
    """
    advice: list[Entry] = []

    def advise(setting: str, why: str) -> None:
        advice.append({"setting": setting, "why": why})

    if shared(config).startswith("features"):
        advise(
            'method.share = "anchored"',
            "one upload of features that saw no data, in place of one a round of features that "
            "were trained on them",
        )
    most = Policy().identification if policy.identification is None else policy.identification
    assert most is not None
    moments = "pooled" if config.method.moments == "covariance" else "class"
    # Of a run that has noise, what exact sums would leak says nothing, nor of means alone what
    # second moments would.
    noised = mechanism_of(config) is not None
    means = not METHODS.find(config.method.name).sends_moments
    exact = [point for point in points if point.epsilon is None and not noised and not means]
    first = 'method.name = "statistics", ' if means else ""  # whose server needs no single upload
    enough = [
        minimum
        for minimum in MINIMUM_COUNTS
        if (here := [p for p in exact if p.minimum == minimum and p.moments == moments])
        and all(decided(point.low, point.high, most) for point in here)
    ]
    if enough and min(enough) > 1:
        advise(
            f"no class of fewer than {min(enough)} records",
            f"from there on single records are identified in at most {most:.0%} of the trials; "
            "of smaller ones that was not shown",
        )
    last = max((p for p in exact if p.moments == moments), key=lambda p: p.minimum, default=None)
    if last is not None and decided(last.low, last.high, most) is False:
        advise(
            "noise; a minimum class count is not enough",
            f"in classes of {last.minimum} records {last.identification:.0%} of the members are "
            "still identified",
        )
    kinds = {"pooled": "covariance", "class": "diagonal"}
    told = {kind: _at(exact, kind, MINIMUM_COUNTS[-1]) for kind in kinds}
    other = next(kind for kind in kinds if kind != moments)
    own, rival = told[moments], told[other]
    if own is not None and rival is not None and decided(own.low, own.high, rival.high) is False:
        advise(
            f'method.moments = "{kinds[other]}"',
            f"in classes of {MINIMUM_COUNTS[-1]}, {moments} second moments identify "
            f"{own.identification:.0%} of the members, {other} ones {rival.identification:.0%}",
        )
    if not config.transport.masking:
        advise(
            f"{first}transport.masking = true",
            "the server then sees the sum alone: counts and means of single clients are gone",
        )
    private = [point for point in points if point.epsilon is not None and point.minimum == 1]
    good = [point for point in private if decided(point.low, point.high, most)]
    if good and not noised:
        best = max(good, key=lambda point: point.epsilon or 0)
        advise(
            f'{first}privacy.mode = "anchored", privacy.epsilon = {best.epsilon:g} or less',
            f"identification {best.identification:.0%} even for a single record, at an accuracy "
            f"of {best.accuracy:.1%} from statistics only",
        )
    if config.server.minimum_contributors < 5:
        advise(
            "server.minimum_contributors = 5",
            "a class that one client holds is published as that client's own mean",
        )
    if any(f.attack == "bundle" and f.passed is False for f in findings):
        advise("export again, without what the scan found", "see the findings about the bundle")
    return advice


def _at(points: Sequence[Point], moments: str, minimum: int) -> Point | None:
    found = [point for point in points if (point.moments, point.minimum) == (moments, minimum)]
    return found[0] if found else None


_LIMITED: dict[str, Limited] = {
    "identification": "identification",
    "tpr_at_1_percent_fpr": "membership",
    "recovered_exactly": "recovery",
}


def beyond(findings: Sequence[Finding], policy: Policy) -> list[dict[str, Any]]:
    """Verdicts on the adversaries that the claim does not cover, by the limits without a claim.

    They are no part of the audit's own verdict, which is about what is claimed; whoever reads it
    has to know that a device, say, gives images away all the same.

    Returns:
        ``view``, ``verdict`` and ``reasons`` each; none without a claim.
    """
    if policy.covered is None:
        return []
    usual, told = Policy(), []
    for view in dict.fromkeys(finding.view for finding in findings):
        own = [
            replace(finding, threshold=usual.limit(_LIMITED[finding.metric], view))
            for finding in findings
            if finding.view == view and finding.metric in _LIMITED
        ]
        if view not in policy.covered and own:
            verdict, reasons = judge(own)
            told.append({"view": view, "verdict": verdict, "reasons": reasons})
    return told


EXIT = {"pass": 0, "leak": 1, "inconclusive": 3, "claim invalid": 4}
"""Exit codes of the verdicts."""


def policy_of(config: Config, claim: Claim | None, limits: Thresholds) -> Policy:
    """Limits: what a user allows, else what the claim allows, else five times chance.

    (ε, δ) allows a test with a false-positive rate f to find e^ε·f + δ of the members, and one
    record to be told from K − 1 others in e^ε/K + δ of the trials. Only adversaries that the
    claim covers are held to it. Where e^ε·f + δ reaches 1, everything is allowed and no attack
    can decide: there is no limit, and the audit of the noise decides alone. Exact counts, the list
    of missing classes and single records that are read off exactly are allowed by no finite ε.

    Args:
        claim: None where nothing is claimed: then all adversaries are judged.
    """
    usual = Policy()
    identification, membership = usual.identification, usual.membership
    counts, covered = None, None
    if claim is not None:
        grown, delta = math.exp(min(claim.epsilon, 700.0)), claim.delta or 0.0
        identification = _allowed(grown / CANDIDATES + delta)
        membership = _allowed(grown * DECIDING_RATE + delta)
        # Told right in both of two worlds that differ in one record: a <= e^ε (1 - a) + δ.
        counts = min((grown + delta) / (1 + grown), _NEARLY_ALL)
        covered = frozenset(str(e["view"]) for e in threat_model(config) if e["covered"])
    recovery = usual.recovery
    if limits.max_identification is not None:
        identification = recovery = limits.max_identification
    if limits.max_membership_tpr is not None:
        membership = limits.max_membership_tpr
    return Policy(identification, membership, recovery, counts, usual.confidence, covered)


def _allowed(limit: float) -> float | None:
    """A limit that something can exceed, or None: a share of all records decides nothing."""
    return limit if limit < 1 else None


_NEARLY_ALL = 1 - 1e-9
"""No finite ε allows what noise would hide to be stated always."""


def judge(
    findings: Sequence[Finding],
    *,
    invalid: Sequence[str] = (),
    dp: Mapping[str, Any] | None = None,
    limits: Thresholds = Thresholds(),  # noqa: B008  (frozen)
) -> tuple[str, list[str]]:
    """The verdict and its reasons.

    A claim that cannot be true as it is worded is not tested. One lower limit above its threshold
    is a leak. What the policy requires and nothing decided, noise that could be halved without
    being noticed, or nothing tried at all make the audit inconclusive.

    Args:
        findings: All findings; those without a threshold decide nothing.
        dp: Result of :func:`~.dp.game.audit_claim`; None where there was none.
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
    caught = dp is not None and bool(dp["control_caught"])
    open_ = ["the audit would not have noticed half of the noise"] if dp and not caught else []
    open_ += [_open(finding) for finding in findings if finding.undecided]
    if not open_ and not caught and not any(finding.passed for finding in findings):
        open_ = ["no attack that decides anything could be made"]
    return ("inconclusive", open_) if open_ else ("pass", [])


_IN_WORDS = ("bundle", "replay", "training steps", ATTACK)
"""Attacks whose value is a count that says less than their note."""


def _said(finding: Finding) -> str:
    if finding.value is None or finding.attack in _IN_WORDS:
        return f"{finding.attack}: {finding.note}"
    low = "" if finding.low in (None, finding.value) else f", at least {finding.low:.1%}"
    return (
        f"{finding.attack} by {finding.view}, {finding.group}: {finding.metric} "
        f"{finding.value:.1%}{low}; allowed {finding.threshold:.1%}"
    )


def _open(finding: Finding) -> str:
    told = f"{finding.attack} by {finding.view}, {finding.group}: {finding.metric} "
    if finding.value is None or finding.low is None or finding.high is None:
        told += finding.note or "was not measured"
    else:
        told += f"{finding.low:.1%} to {finding.high:.1%}, allowed {finding.threshold:.1%}"
    return f"{told}; decided by {finding.decides_by}" if finding.decides_by else told
