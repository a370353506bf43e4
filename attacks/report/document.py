"""Typed content of an audit's ``report.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from fedvtc_edge.errors import RunError
from fedvtc_edge.runs.records import Amount, Count, Fraction, Record

from ..scoring.findings import Finding

SCHEMA = 2
"""2: a finding passes by its *upper* confidence limit."""

Verdict = Literal["pass", "leak", "inconclusive", "claim invalid"]


class SubjectRecord(Record):
    """Subject of the audit."""

    kind: str = "run"
    name: str | None = None
    data: str | None = None
    share: str | None = None
    moments: str | None = None
    privacy: str | None = None
    masking: bool | None = None
    sealed: bool | None = None
    clients: Count | None = None
    attacked: Count | None = None
    digest: str | None = None


class ClaimRecord(Record):
    """Claim about the subject's privacy; without ε nothing is claimed."""

    epsilon: Amount | None = None
    delta: Amount | None = None
    unit: str | None = None
    neighbouring: str | None = None
    mechanism: str | None = None
    source: str | None = None


class Threat(Record):
    """An adversary: what it sees, and whether the claim covers it."""

    view: str
    sees: str | None = None
    covered: bool = False


class BeyondRecord(Record):
    """Verdict on an adversary that the claim does not cover, by the limits without a claim."""

    view: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()


class MechanismRecord(Record):
    """A noise mechanism that the audit of ε tried to refute."""

    name: str
    lower_bound: Amount | None = None
    verdict: str | None = None


class EpsilonAudit(Record):
    """The audit of ε, with its positive control: an upload whose noise is half of what it says."""

    epsilon: Amount | None = None
    lower_bound: Amount | None = None
    control_lower_bound: Amount | None = None
    control_caught: bool | None = None
    trials: Count | None = None
    confidence: Fraction | None = None
    worlds: str | None = None
    mechanisms: tuple[MechanismRecord, ...] = ()


class ReleaseRecord(Record):
    """A release of the run, with the noise in its bytes as a share of what is claimed."""

    sender: str
    round: Count = 0
    numbers: Count = 0
    noise: Amount | None = None
    low: Amount | None = None
    high: Amount | None = None
    passed: bool | None = None
    refused: tuple[str, ...] = ()
    reason: str = ""


class OwnBytesRecord(Record):
    """Tests of the run's own bytes against the noise that it claims."""

    level: Fraction | None = None
    tests: Count | None = None
    reused: tuple[tuple[str, ...], ...] = ()
    releases: tuple[ReleaseRecord, ...] = ()


class PointRecord(Record):
    """One setting of the curve, a :class:`~fedvtc_edge.attacks.scoring.findings.Point`."""

    epsilon: Amount | None = None
    minimum: Count
    moments: str
    identification: Fraction | None = None
    low: Fraction | None = None
    high: Fraction | None = None
    accuracy: Fraction | None = None


class Recommendation(Record):
    """Setting to choose, and why."""

    setting: str
    why: str | None = None


class Layer(Record):
    """A layer of protection, and what it is no protection against."""

    layer: str
    on: bool = False
    stops: str | None = None
    does_not_stop: str | None = None


class Utility(Record):
    """Accuracies of the run."""

    accuracy_control: Fraction | None = None
    accuracy_mean: Fraction | None = None


class AuditDocument(Record):
    """``report.json``: every key but ``verdict`` may be missing or null."""

    version: str | None = None
    subject: SubjectRecord = SubjectRecord()
    verdict: Verdict
    exit_code: int | None = None
    reasons: tuple[str, ...] = ()
    claim: ClaimRecord | None = None
    beyond: tuple[BeyondRecord, ...] = ()
    threat_model: tuple[Threat, ...] = ()
    unit: str | None = None
    neighbouring: str | None = None
    confidence: Fraction = 0.95
    seed: int | None = None
    trials: Count | None = None
    findings: tuple[Finding, ...] = ()
    epsilon_lower_bound: Amount | None = None
    dp: EpsilonAudit | None = None
    own_bytes: OwnBytesRecord | None = None
    curve: tuple[PointRecord, ...] = ()
    recommendations: tuple[Recommendation, ...] = ()
    layers: tuple[Layer, ...] = ()
    seconds: Amount | None = None
    utility: Utility = Utility()


def read(document: Mapping[str, Any]) -> AuditDocument:
    """Check a document; numbers that are not finite count as not known.

    Raises:
        RunError: It is of another schema, or a value is of a wrong type or out of range.
    """
    if document.get("schema", SCHEMA) != SCHEMA:
        raise RunError(
            f"the audit has schema {document['schema']!r}, this version draws {SCHEMA}",
            hint="draw the page with the fedvtc-edge version that made the audit",
        )
    try:
        return AuditDocument.model_validate(_known(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise RunError(
            f"the audit's {where} is {first['input']!r:.80}: {first['msg']}",
            hint="audit again: 'fedvtc-edge audit RUN'",
        ) from error


def _known(value: Any) -> Any:
    """Without what is null or no finite number: both mean that nobody knows it."""
    if isinstance(value, Mapping):
        pairs = ((key, _known(item)) for key, item in value.items())
        return {key: item for key, item in pairs if item is not None}
    if isinstance(value, list | tuple):
        return [_known(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
