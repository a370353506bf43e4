"""Audits of noise: uploads of two worlds are told apart, and ε is bounded from below."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.errors import PrivacyError, ScoreError
from fedvtc_edge.models.extractor import one_by_one
from fedvtc_edge.privacy.accountant import noise_for
from fedvtc_edge.privacy.claim import Claim
from fedvtc_edge.privacy.release_spec import Array, ClientReleaseSpec

from ..adversary.observations import EVERYONE
from ..adversary.trials import AuditedRun
from .bounds import Blocks, Bounds, bounds_of, choose
from .releases import ClientRelease, ExampleRelease, Records, canary, canary_client, joined

Verdict = Literal["pass", "leak", "inconclusive"]

FEWEST_TRIALS = 8
"""With fewer, not even the absence of noise is proved."""

AFFORDABLE = 3_000_000
"""Numbers of exact noise that are drawn in about a minute."""

CONFIDENCE = 0.99
"""That a true claim is not called refuted: at 0.95, six of a hundred true ones were, at worst."""

_MOST_RECORDS = 200
"""Most records of the client whose upload is made over and over: others add only time."""

_PER_TRIAL = 5
"""Uploads per trial: two that decide, two of the control, and one that chooses the score."""


class AuditedMechanism(Protocol):
    """Uploads of a client in two worlds that differ in one unit.

    All but the privacy noise is equal whenever it is asked: training has a fixed seed.
    """

    @property
    def blocks(self) -> Blocks:
        """Block of each number of an upload, [d]; noise within one is alike."""

    def release(self, world: int) -> NDArray[Any]:
        """One *whole* upload, [d] integers or floats, of world 0 or 1, with noise drawn afresh."""

    def exact(self, world: int) -> NDArray[Any] | None:
        """The same without noise, for auditors who know it: it points out where to look.

        It never enters a bound; None leaves it to be estimated.
        """


@dataclass(frozen=True)
class MechanismAudit:
    """Outcome of an audit of one mechanism.

    Args:
        verdict: ``leak``: the claim is refuted. ``pass``: it is not, and the same attack
            refutes it for half of the noise. ``inconclusive``: it would not have noticed.
        control: Bounds of its double with half of the noise.
        trials: Uploads of each world that decided.
        confidence: Confidence in ``bounds``, together with those of all other attacks.
    """

    verdict: Verdict
    bounds: Bounds
    control: Bounds
    trials: int
    confidence: float

    @property
    def lower_bound(self) -> float:
        """Lower bound on ε."""
        return self.bounds.best


def audit(
    mechanism: AuditedMechanism,
    claim: Claim,
    *,
    trials: int,
    confidence: float,
    control: AuditedMechanism,
    attacks: int = 1,
) -> MechanismAudit:
    """Try to refute a claim.

    Half as many uploads as decide choose the score before, and are not used again: its means
    where they are not known, and the noise of each block and world. The control is
    attacked by the same score.

    Guarantee: a true claim is called a leak with a chance of at most 1 - ``confidence``, over
    all of ``attacks``. For a claim of Gaussian noise the claim is also *that* it is one.
    A pass proves nothing but that half of the noise would have been noticed: other units
    than this one may be worse off.

    Args:
        mechanism: Its two worlds must be neighbours as the claim means it.
        trials: Uploads of each world that decide, 8 or more; see :func:`trials_for`.
        confidence: In (0, 1).
        control: The same mechanism with half of the noise.
        attacks: How many audits share the confidence (Bonferroni).

    Raises:
        PrivacyError: A claim without δ, or uploads whose length tells of the world.
        ScoreError: Too few trials, a parameter out of range, or numbers that are not finite.
    """
    delta = claim.delta
    if delta is None:
        raise PrivacyError("a claim without delta cannot be audited", hint="add delta to the claim")
    _check(trials, confidence, attacks)
    size = len(mechanism.blocks)
    zeros, ones = (_uploads(mechanism, world, trials // 2, size) for world in (0, 1))
    score = choose(zeros, ones, mechanism.blocks, _known(mechanism, size))

    def bounds(played: AuditedMechanism) -> Bounds:
        zeros, ones = (score(_uploads(played, world, trials, size)) for world in (0, 1))
        error = (1 - confidence) / attacks
        return bounds_of(zeros, ones, delta, error, gaussian=claim.gaussian)

    found, noticed = bounds(mechanism), bounds(control)
    verdict: Verdict = "pass" if noticed.best > claim.epsilon else "inconclusive"
    if found.best > claim.epsilon:
        verdict = "leak"
    return MechanismAudit(verdict, found, noticed, trials, confidence)


def trials_for(
    claim: Claim,
    *,
    confidence: float,
    attacks: int = 1,
    numbers: int = 0,
    power: float = 0.999,
) -> int:
    """Number of trials that notice half of a Gaussian's noise, if they can be afforded.

    Args:
        numbers: Numbers of exact noise in one upload: so many trials, at most, that an
            audit takes about a minute; 0 where noise costs nothing.
        power: Chance that the control is caught, where it can be afforded.

    Raises:
        PrivacyError: A δ or ε for which no noise can be calibrated.
    """
    mu = 1 / noise_for(claim.epsilon, claim.delta or 0.0)
    sure, likely = (NormalDist().inv_cdf(p) for p in (1 - (1 - confidence) / attacks / 2, power))
    # At 2μ the estimate has a variance of (2 + μ²) / N, its limit allows for (2 + 2μ²) / N.
    spread = sure * math.sqrt(2 + 2 * mu * mu) + likely * math.sqrt(2 + mu * mu)
    needed = math.ceil((spread / mu) ** 2) + FEWEST_TRIALS
    most = AFFORDABLE // (_PER_TRIAL * numbers) if numbers else needed
    return max(min(needed, most), FEWEST_TRIALS)


def _check(trials: int, confidence: float, attacks: int) -> None:
    if trials < FEWEST_TRIALS:
        raise ScoreError(
            f"{trials} trials: expected {FEWEST_TRIALS} or more", hint="trials_for says how many"
        )
    if not 0 < confidence < 1:
        raise ScoreError(
            f"confidence = {confidence}: expected a value between 0 and 1, both excluded",
            hint="use 0.95",
        )
    if attacks < 1:
        raise ScoreError(f"{attacks} attacks: expected 1 or more", hint="1 where there is but one")


def _known(mechanism: AuditedMechanism, size: int) -> tuple[Array, Array] | None:
    zero, one = mechanism.exact(0), mechanism.exact(1)
    if zero is None or one is None:
        return None
    return _checked(zero, 0, size), _checked(one, 1, size)


def _uploads(mechanism: AuditedMechanism, world: int, count: int, size: int) -> Array:
    """Uploads of one world, [count, size]."""
    made = np.empty((count, size))
    for row in made:
        row[:] = _checked(mechanism.release(world), world, size)
    return made


def _checked(upload: NDArray[Any], world: int, size: int) -> Array:
    if upload.shape != (size,):
        raise PrivacyError(
            f"an upload of shape {list(upload.shape)} of world {world}, expected [{size}]",
            hint="uploads must be of one length, or their length gives the world away",
        )
    numbers = upload.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ScoreError(
            f"an upload of world {world} has numbers that are not finite",
            hint="find out why: an honest release is of finite numbers",
        )
    return numbers


def audit_claim(audited: AuditedRun, claim: Claim, *, quick: bool) -> Mapping[str, Any] | None:
    """Try to refute the claim of a run on its own release path.

    The worlds differ in a canary, which moves the sums by all of the clip bound, and in a natural
    record (or a whole client); all other data are the run's.

    Args:
        claim: Claim of the run, or a user's.
        quick: Whether to try the canary alone.

    Returns:
        ``dp`` of the report; None where the run has no noise or its claim no δ.
    """
    if audited.mechanism is None or claim.delta is None:
        return None
    played = _mechanisms(audited)
    played = dict(list(played.items())[:1]) if quick else played
    worlds = f"with and without one {claim.unit or 'example'}, all else equal"
    if audited.mechanism.protects_models:
        # DP-SGD's steps are not played over: what is audited is the release, by its own claim.
        claim = next(iter(played.values())).claim
        worlds += "; of the whole budget, the share that uploads spend"
    results: dict[str, MechanismAudit] = {}
    for name, mechanism in played.items():
        numbers = len(mechanism.blocks) * mechanism.draws
        trials = trials_for(claim, confidence=CONFIDENCE, attacks=len(played), numbers=numbers)
        results[name] = audit(
            mechanism,
            claim,
            trials=trials,
            confidence=CONFIDENCE,
            control=mechanism.halved(),
            attacks=len(played),
        )
    worst = max(results.values(), key=lambda result: result.lower_bound)
    return {
        "epsilon": claim.epsilon,
        "lower_bound": worst.lower_bound,
        "control_lower_bound": max(result.control.best for result in results.values()),
        "control_caught": any(r.control.best > claim.epsilon for r in results.values()),
        "trials": min(result.trials for result in results.values()),
        "worlds": worlds,
        "mechanisms": [
            {"name": name, "lower_bound": result.lower_bound, "verdict": result.verdict}
            for name, result in results.items()
        ],
    }


def _mechanisms(audited: AuditedRun) -> dict[str, ExampleRelease | ClientRelease]:
    spec, centre = audited.spec, audited.centre(audited.anchor)
    assert spec is not None
    owners = [name for name in audited.holdings if name != EVERYONE]
    away: Array = np.ones(spec.width) / spec.width**0.5
    label = int(audited.labels[audited.holdings[owners[0]][0]])
    if isinstance(spec, ClientReleaseSpec):
        clients = [_records(audited, name) for name in owners]
        odd = canary_client(spec, centre, away, label)

        def worlds(one: Records) -> ClientRelease:
            return ClientRelease(spec, (clients, [*clients, one]), centre, draws=spec.shares)

        return {
            "a client that moves the sum most": worlds(odd),
            f"{owners[0]}": ClientRelease(spec, (clients[1:], clients), centre, draws=spec.shares),
        }
    features, labels = _records(audited, owners[0])
    own = (features, labels)
    return {
        "a record that moves the sums most": ExampleRelease(
            spec, (own, joined(own, canary(spec, centre, away, label))), centre, spec.shares
        ),
        f"a record of {owners[0]}": ExampleRelease(
            spec, ((features[1:], labels[1:]), own), centre, spec.shares
        ),
    }


def _records(audited: AuditedRun, client: str) -> Records:
    where = audited.holdings[client][:_MOST_RECORDS]
    extract = audited.anchor or audited.uploaded(client)
    features = one_by_one(extract, audited.images[where]).double().numpy()
    return features, audited.labels[where]
