"""Audits of noise: uploads of two worlds are told apart, and ε is bounded from below."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
from ..inference.risk import Risk
from .bounds import Blocks, Bounds, bounds_of, choose
from .releases import (
    ClientRelease,
    ExampleRelease,
    Records,
    canary,
    canary_client,
    claim_of_spec,
    joined,
)

Verdict = Literal["pass", "leak", "inconclusive"]

FEWEST_TRIALS = 8
"""With fewer, not even the absence of noise is proved."""

AFFORDABLE = 1_500_000
"""Numbers of exact noise that are drawn in about a minute."""

CONFIDENCE = 0.999
"""That a true claim is not called refuted: at 0.95, six of a hundred true ones were, at worst, and
at 0.99 still one now and then. Planned trials grow by a quarter from 0.99 to this."""

LOOKS = ((0.25, 0.125), (0.5, 0.125), (1.0, 0.5), (2.0, 0.125), (4.0, 0.125))
"""When the scores are looked at, in planned trials, and the part of the error that each look has.
Bounds of all looks hold together, whenever one stops."""

_MOST_RECORDS = 200
"""Most records of the client whose upload is made over and over: others add only time."""


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


Sampler = Callable[[int], tuple[Array, Array]]
"""Draws scores of worlds 0 and 1, at least so many of each, afresh."""


@dataclass(frozen=True)
class MechanismAudit:
    """Outcome of an audit of one mechanism.

    Args:
        verdict: ``leak``: the claim is refuted. ``pass``: it is not, the same attack refutes it
            for half of the noise, and less than half of the noise is missing.
            ``inconclusive``: neither, before what can be afforded was spent.
        control: Bounds of its double with half of the noise.
        trials: Scores of each world that decided.
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
    most: int | None = None,
) -> MechanismAudit:
    """Try to refute a claim by uploads of two worlds, as :func:`audit_scores` does.

    Half as many uploads as are planned choose the score before, and are not used again: its means
    where they are not known, and the noise of each block and world. The control is
    attacked by the same score.

    Args:
        mechanism: Its two worlds must be neighbours as the claim means it.
        control: The same mechanism with half of the noise.

    Raises:
        PrivacyError: A claim without δ, or uploads whose length tells of the world.
        ScoreError: Too few trials, a parameter out of range, or numbers that are not finite.
    """
    _check(trials, confidence, attacks)
    size = len(mechanism.blocks)
    zeros, ones = (_uploads(mechanism, world, trials // 2, size) for world in (0, 1))
    score = choose(zeros, ones, mechanism.blocks, _known(mechanism, size))

    def sampler(played: AuditedMechanism) -> Sampler:
        def scores(number: int) -> tuple[Array, Array]:
            zero, one = (score(_uploads(played, world, number, size)) for world in (0, 1))
            return zero, one

        return scores

    return audit_scores(
        sampler(mechanism),
        sampler(control),
        claim,
        trials=trials,
        confidence=confidence,
        attacks=attacks,
        most=most,
    )


def audit_scores(
    found: Sampler,
    control: Sampler,
    claim: Claim,
    *,
    trials: int,
    confidence: float,
    attacks: int = 1,
    most: int | None = None,
) -> MechanismAudit:
    """Try to refute a claim, in steps, for no longer than it takes.

    At each of :data:`LOOKS` the scores so far bound ε, each look with its own part of the error
    (a confidence sequence by the union bound), so that stopping at any of them is
    valid: at a refutation, or when half of the noise is caught in the control and excluded
    in the mechanism.

    Guarantee: a true claim is called a leak with a chance of at most 1 - ``confidence``, over
    all of ``attacks`` and looks; half of the noise that a Gaussian claim needs passes with no
    more. For a claim of Gaussian noise the claim is also *that* it is one, equal and independent
    in all numbers. A pass proves nothing but that half of the noise would have been noticed:
    other units than these may be worse off.

    Args:
        trials: Planned scores of each world, 8 or more; see :func:`trials_for`.
        confidence: In (0, 1).
        attacks: How many audits share the confidence (Bonferroni).
        most: Most scores of each world that can be afforded; None: all looks.

    Raises:
        PrivacyError: A claim without δ.
        ScoreError: Too few trials or a parameter out of range.
    """
    if claim.delta is None:
        raise PrivacyError("a claim without delta cannot be audited", hint="add delta to the claim")
    _check(trials, confidence, attacks)
    delta, gaussian = claim.delta, claim.gaussian
    half = 2 / noise_for(claim.epsilon, delta) if gaussian else math.inf
    kept, halved = _Scores(found), _Scores(control)
    bounds, noticed = Bounds(0.0), Bounds(0.0)
    for looked, part in _looks(trials, most):
        error = (1 - confidence) / attacks * part
        bounds = bounds.tightened(kept.bounds(looked, delta, error, gaussian=gaussian))
        if bounds.best > claim.epsilon:
            # The control is for those who would believe a pass.
            return MechanismAudit("leak", bounds, noticed, kept.number, confidence)
        noticed = noticed.tightened(halved.bounds(looked, delta, error, gaussian=gaussian))
        caught = noticed.best > claim.epsilon
        excluded = looked >= trials if bounds.most_mu is None else bounds.most_mu < half
        if caught and excluded:
            return MechanismAudit("pass", bounds, noticed, kept.number, confidence)
    return MechanismAudit("inconclusive", bounds, noticed, kept.number, confidence)


class _Scores:
    """Scores of two worlds, of which more are drawn when more are asked for."""

    def __init__(self, draw: Sampler) -> None:
        self._draw = draw
        self._zeros, self._ones = np.zeros(0), np.zeros(0)

    @property
    def number(self) -> int:
        return min(len(self._zeros), len(self._ones))

    def bounds(self, number: int, delta: float, error: float, *, gaussian: bool) -> Bounds:
        """Bounds from at least so many scores of each world."""
        if self.number < number:
            zeros, ones = self._draw(number - self.number)
            self._zeros = np.concatenate([self._zeros, zeros])
            self._ones = np.concatenate([self._ones, ones])
        return bounds_of(self._zeros, self._ones, delta, error, gaussian=gaussian)


def _looks(trials: int, most: int | None) -> list[tuple[int, float]]:
    """Numbers of trials at which one looks, and their parts of the error."""
    limit = max(FEWEST_TRIALS, trials * 4 if most is None else most)
    looks: dict[int, float] = {}
    for times, part in LOOKS:
        number = min(max(math.ceil(times * trials), FEWEST_TRIALS), limit)
        looks[number] = looks.get(number, 0.0) + part
    return sorted(looks.items())


def trials_for(claim: Claim, *, confidence: float, attacks: int = 1, power: float = 0.999) -> int:
    """Number of trials that notice half of a Gaussian's noise.

    Args:
        power: Chance that the control is caught.

    Raises:
        PrivacyError: A δ or ε for which no noise can be calibrated.
    """
    mu = 1 / noise_for(claim.epsilon, claim.delta or 0.0)
    part = max(part for _, part in LOOKS)
    error = (1 - confidence) / attacks / 2 * part
    sure, likely = (NormalDist().inv_cdf(p) for p in (1 - error, power))
    # At 2μ the estimate has a variance of (2 + μ²) / N, its limit allows for (2 + 2μ²) / N.
    spread = sure * math.sqrt(2 + 2 * mu * mu) + likely * math.sqrt(2 + mu * mu)
    return math.ceil((spread / mu) ** 2) + FEWEST_TRIALS


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


def audit_claim(
    audited: AuditedRun, claim: Claim, *, quick: bool, riskiest: Risk | None = None
) -> Mapping[str, Any] | None:
    """Try to refute the claim of a run on its own release path.

    Many canaries, each of which moves the sums by all of the clip bound in a direction of its own,
    are or are not among a client's records (or among the clients); and two worlds differ in a
    natural record (or a whole client): the one most at risk, where it is known which that is. All
    other data are the run's.

    Args:
        claim: Claim of the run, or a user's.
        quick: Whether to try the canaries alone.
        riskiest: The record that the risk map has first, or None without one.

    Returns:
        ``dp`` of the report; None where the run has no noise or its claim no δ.
    """
    if audited.mechanism is None or claim.delta is None:
        return None
    games = _games(audited, claim, riskiest)
    games = dict(list(games.items())[:1]) if quick else games
    worlds = f"with and without one {claim.unit or 'example'}, all else equal"
    if audited.mechanism.protects_models:
        # What is audited here is the release, by its own claim.
        assert audited.spec is not None
        claim = claim_of_spec(audited.spec)
        worlds += "; of the whole budget, the share that uploads spend"
    trials = trials_for(claim, confidence=CONFIDENCE, attacks=len(games))
    options: dict[str, Any] = {"trials": trials, "confidence": CONFIDENCE, "attacks": len(games)}
    results = {name: game(claim, options) for name, game in games.items()}
    worst = max(results.values(), key=lambda result: result.lower_bound)
    return {
        "epsilon": claim.epsilon,
        "lower_bound": worst.lower_bound,
        "control_lower_bound": max(result.control.best for result in results.values()),
        "control_caught": any(result.verdict == "pass" for result in results.values()),
        "trials": min(result.trials for result in results.values()),
        "confidence": CONFIDENCE,
        "worlds": worlds,
        "mechanisms": [
            {"name": name, "lower_bound": result.lower_bound, "verdict": result.verdict}
            for name, result in results.items()
        ],
    }


_Game = Callable[[Claim, dict[str, Any]], MechanismAudit]


def _games(audited: AuditedRun, claim: Claim, riskiest: Risk | None) -> dict[str, _Game]:
    """Games by name, the sharpest first: canaries, and a natural unit."""
    spec, centre = audited.spec, audited.centre(audited.anchor)
    assert spec is not None
    owners = [name for name in audited.holdings if name != EVERYONE]
    own = _records(audited, owners[0])
    worst: ExampleRelease | ClientRelease
    natural: ExampleRelease | ClientRelease
    if isinstance(spec, ClientReleaseSpec):
        kind = "client"
        clients = [own, *(_records(audited, name) for name in owners[1:])]
        odd = canary_client(spec, centre, np.ones(spec.width), int(own[1][0]))
        worst = ClientRelease(spec, (clients, [*clients, odd]), centre, spec.shares)
        natural = ClientRelease(spec, (clients[1:], clients), centre, spec.shares)
        among = owners[0]
    else:
        kind, labels = "record", own[1]
        odd = joined(own, canary(spec, centre, np.ones(spec.width), int(labels[0])))
        worst = ExampleRelease(spec, (own, odd), centre, spec.shares)
        among, drawn = natural_worlds(audited, owners[0], riskiest)
        natural = ExampleRelease(spec, drawn, centre, spec.shares)
    games = {f"a {kind} that moves the sums most": _pairs(worst, AFFORDABLE)}
    if claim.gaussian:
        games = {f"{kind}s that move the sums most, many in one upload": _many(worst)}
    return games | {among: _pairs(natural, AFFORDABLE // 3)}


def _pairs(mechanism: ExampleRelease | ClientRelease, numbers: int) -> _Game:
    """One unit, in or out: an upload makes one trial."""
    # Two worlds, their control, and half as many uploads of both to choose the score.
    most = numbers // (5 * mechanism.numbers)
    control = mechanism.halved()

    def game(claim: Claim, options: dict[str, Any]) -> MechanismAudit:
        trials = max(min(options["trials"], most), FEWEST_TRIALS)
        limited = {**options, "trials": trials, "most": most}
        return audit(mechanism, claim, control=control, **limited)

    return game


def _many(mechanism: ExampleRelease | ClientRelease) -> _Game:
    """Many units, each in or out: an upload makes as many trials."""
    found, control = (one.many_canaries() for one in (mechanism, mechanism.halved()))
    uploads = AFFORDABLE // (2 * mechanism.numbers)

    def game(claim: Claim, options: dict[str, Any]) -> MechanismAudit:
        most = uploads * len(found.moves) // 2
        return audit_scores(found.scores, control.scores, claim, most=most, **options)

    return game


def natural_worlds(
    audited: AuditedRun, client: str, riskiest: Risk | None
) -> tuple[str, tuple[Records, Records]]:
    """Records without and with a natural one, and its name in words.

    Args:
        client: Whose first record it is, where no other is most at risk.
    """
    name, first = f"a record of {client}", None
    if riskiest is not None:
        client, first = riskiest.client, riskiest.record
        name = f"the record most at risk: training image {first} of {client}"
    features, labels = own = _records(audited, client, first)
    return name, ((features[1:], labels[1:]), own)


def _records(audited: AuditedRun, client: str, first: int | None = None) -> Records:
    """Features and classes of some of a client's records; ``first`` is the first of them."""
    where = audited.holdings[client]
    if first is not None:
        where = np.concatenate([[first], where[where != first]])
    where = where[:_MOST_RECORDS]
    extract = audited.anchor or audited.uploaded(client)
    features = one_by_one(extract, audited.images[where]).double().numpy()
    return features, audited.labels[where]
