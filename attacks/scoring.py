"""From an attack's scores to what they prove: AUC, TPR at a low FPR, a lower bound on ε.

Everywhere a higher score means "more likely a member". numpy only.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvtc_edge.errors import ScoreError

Scores = NDArray[np.float64]

_LOW_RATE, _LEAST_ACCUSED = 0.01, 10
"""Below this false-positive rate, so many non-members must be accused."""


def auc(members: ArrayLike, nonmembers: ArrayLike) -> float:
    """Chance that a random member scores higher than a random non-member; a tie counts half.

    Args:
        members: Scores [M]; infinities are allowed.
        nonmembers: Scores [N].

    Raises:
        ScoreError: Empty, not one-dimensional, or with NaN.
    """
    inside, outside = _scores(members, "members"), np.sort(_scores(nonmembers, "nonmembers"))
    # Below plus not-above counts a tie once and a win twice, in integers: no rounding.
    wins = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    return int(wins.sum()) / (2 * len(inside) * len(outside))


def tpr_at_fpr(members: ArrayLike, nonmembers: ArrayLike, fpr: float) -> float:
    """Share of members found when at most ``fpr`` of the non-members are accused.

    The threshold is the most permissive one whose empirical false-positive rate
    is at most ``fpr`` (Carlini et al. 2022); nothing is interpolated.

    Rates below 1 % are where such claims are made and where a single non-member moves
    them: they need ten accused ones, 10,000 non-members at 0.1 %.

    Args:
        members: Scores [M].
        nonmembers: Scores [N].
        fpr: From 1/N to 1; below 1 % only from 10/N.

    Raises:
        ScoreError: Unusable scores, or an ``fpr`` that so few non-members cannot resolve.
    """
    inside, outside = _scores(members, "members"), np.sort(_scores(nonmembers, "nonmembers"))
    count = len(outside)
    least = max(1 / count, min(_LOW_RATE, _LEAST_ACCUSED / count))
    if not least <= fpr <= 1:  # also refuses NaN
        raise ScoreError(
            f"fpr = {fpr}: {count} nonmembers resolve rates from {least:.6g} to 1",
            hint=_remedy(fpr),
        )
    accused = min(int(fpr * count) + 1, count)
    while accused / count > fpr:  # not floor(fpr · N): 0.29 · 100 is 28.999… in floats
        accused -= 1
    if accused == count:
        return 1.0
    return float(np.mean(inside > outside[count - accused - 1]))


def epsilon_lower_bound(
    members: ArrayLike, nonmembers: ArrayLike, delta: float, confidence: float
) -> float:
    """An ε that the mechanism does not stay below, proved by the attack's success.

    (ε, δ)-DP limits every test of membership: TPR ≤ e^ε · FPR + δ and
    TNR ≤ e^ε · FNR + δ (Kairouz et al. 2015). One half of the scores chooses the
    threshold, the other half bounds TPR from below and FPR from above by one-sided
    Clopper–Pearson limits, each at half of 1 - ``confidence`` (Jagielski et al.
    2020; Nasr et al. 2021). TNR and FNR are their complements, so that the two
    inequalities hold or fail on the same event and the better one is free.

    Halves rather than Bonferroni over thresholds: thresholds are themselves scores,
    and a correction for a number of tests does not cover tests made from the data.
    The halves are drawn by a fixed stream, so that the order of the scores does not
    matter to the guarantee, and the same scores give the same bound.

    Guarantee: if the mechanism is (ε, δ)-DP with respect to membership, and the
    scores are independent draws from its two worlds, the result exceeds ε with a
    chance of at most 1 - ``confidence``. Not covered: scores that depend on each
    other (many records of one trained model), an attack tuned on the same scores.
    A small result proves nothing: the attack may be weak.

    Args:
        members: Scores [M], M ≥ 2.
        nonmembers: Scores [N], N ≥ 2.
        delta: δ in [0, 1).
        confidence: In (0, 1), 0.95 for example.

    Returns:
        ε ≥ 0, finite.

    Raises:
        ScoreError: Unusable or too few scores, or a parameter out of range.
    """
    inside, outside = _scores(members, "members", 2), _scores(nonmembers, "nonmembers", 2)
    if not 0 <= delta < 1:
        raise ScoreError(
            f"delta = {delta}: expected 0 or more, below 1", hint="use the δ of the claim"
        )
    if not 0 < confidence < 1:
        raise ScoreError(
            f"confidence = {confidence}: expected a value between 0 and 1, both excluded",
            hint="use 0.95",
        )
    error = (1 - confidence) / 2
    stream = np.random.default_rng(0)
    (choose_in, prove_in), (choose_out, prove_out) = (
        np.array_split(stream.permutation(scores), 2) for scores in (inside, outside)
    )
    threshold = _best_threshold(choose_in, choose_out, delta, error)
    missed = int(np.sum(prove_in < threshold))
    accused = int(np.sum(prove_out >= threshold))
    return _epsilon(
        upper_limit(missed, len(prove_in), error),
        upper_limit(accused, len(prove_out), error),
        delta,
    )


def upper_limit(successes: int, trials: int, error: float) -> float:
    """One-sided Clopper–Pearson limit: the p at which so few successes have chance ``error``.

    By bisection on the exact binomial tail, because the beta quantile would need
    scipy, which fedvtc-edge itself does not depend on. Errs upward by rounding only.
    """
    if successes >= trials:
        return 1.0
    counts = np.arange(successes + 1)
    steps = np.log(trials - counts[1:] + 1.0) - np.log(counts[1:])
    choices = np.concatenate([[0.0], np.cumsum(steps)])  # log of trials over count
    low, high = successes / trials, 1.0
    for _ in range(60):
        p = (low + high) / 2
        if not low < p < high:
            break
        logs = choices + counts * math.log(p) + (trials - counts) * math.log1p(-p)
        peak = float(logs.max())
        if peak + math.log(float(np.exp(logs - peak).sum())) > math.log(error):
            low = p
        else:
            high = p
    return high


def _best_threshold(inside: Scores, outside: Scores, delta: float, error: float) -> float:
    """The threshold with the best approximate bound; any choice would be valid here."""
    thresholds = np.unique(np.concatenate([inside, outside]))
    missed = np.searchsorted(np.sort(inside), thresholds, "left")
    accused = len(outside) - np.searchsorted(np.sort(outside), thresholds, "left")
    z = NormalDist().inv_cdf(1 - error)
    fnr, fpr = _wilson(missed, len(inside), z), _wilson(accused, len(outside), z)
    values = [_epsilon(float(a), float(b), delta) for a, b in zip(fnr, fpr, strict=True)]
    return float(thresholds[int(np.argmax(values))])


def _wilson(successes: NDArray[np.int64], trials: int, z: float) -> Scores:
    """Upper Wilson limits: close to Clopper–Pearson's and cheap for thousands at once."""
    rate = successes / trials
    spread = z * np.sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2)
    limits: Scores = (rate + z * z / (2 * trials) + spread) / (1 + z * z / trials)
    return limits


def _epsilon(fnr: float, fpr: float, delta: float) -> float:
    """The better of both inequalities, from upper limits of FNR and FPR; never below 0."""
    bounds = [
        math.log(power / rate)
        for power, rate in ((1 - fnr - delta, fpr), (1 - fpr - delta, fnr))
        if power > 0
    ]
    return max([0.0, *bounds])


def _remedy(fpr: float) -> str:
    if not 0 < fpr < 1:
        return "ask for a rate above 0 and up to 1"
    needed = np.ceil((1 if fpr >= _LOW_RATE else _LEAST_ACCUSED) / fpr)
    return f"score {needed:,.0f} nonmembers or more, or ask for a higher rate"


def _scores(values: ArrayLike, name: str, least: int = 1) -> Scores:
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ScoreError(
            f"{name} are not numbers: {error}", hint="give one score per record"
        ) from None
    if scores.ndim != 1:
        raise ScoreError(
            f"{name} have shape {list(scores.shape)}: expected [N]",
            hint="give one score per record",
        )
    if len(scores) < least:
        raise ScoreError(
            f"{len(scores)} {name}: expected {least} or more", hint="score more records"
        )
    if np.isnan(scores).any():
        raise ScoreError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} scores of {name} are NaN",
            hint="find out why: to leave them out would bias the result",
        )
    return scores
