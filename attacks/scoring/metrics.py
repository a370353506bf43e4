"""Metrics of attacks, with confidence limits: AUC, TPR at a low FPR, bounds on ε, similarity.

A higher score means "more likely a member". Textbook intervals are too narrow near 0 and 1:
scores that separate perfectly have no spread at all, which is no certainty. Shares get exact
limits here. Means and AUCs count one observation more at each end of the scale, as Agresti and
Caffo (2000) do for two shares, and reach out from both averages, the plain one and the cautious
one. Similarity of pictures never says that a record was found: the mean of its class alone scores
high. numpy only.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
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


_ROUNDING = 1e-9
"""Largest error of sums of thirds and sevenths."""


def bonferroni(confidence: float, tests: int) -> float:
    """Confidence of each of several intervals, so that all hold together with ``confidence``.

    Args:
        confidence: In (0, 1), of all together; they may depend on each other.
        tests: How many, 1 or more.

    Raises:
        ScoreError: A value out of range.
    """
    _error(confidence)
    if not tests >= 1:
        raise ScoreError(f"{tests} tests: expected 1 or more", hint="count every interval shown")
    return 1 - (1 - confidence) / tests


def proportion_interval(successes: float, trials: int, confidence: float) -> tuple[float, float]:
    """Exact two-sided limits of a share (Clopper and Pearson 1934).

    Args:
        successes: From 0 to ``trials``. Parts of a success, from ties, are rounded outward:
            down for the lower limit and up for the upper one.
        trials: 1 or more, independent of each other.
        confidence: In (0, 1).

    Returns:
        Limits in [0, 1] around the share.

    Raises:
        ScoreError: A value out of range.
    """
    error = _error(confidence)
    if not trials >= 1 or not 0 <= successes <= trials:  # also refuses NaN
        raise ScoreError(
            f"{successes} successes in {trials} trials: expected 1 trial or more, and from 0 "
            "successes to as many as trials",
            hint="count each trial once",
        )
    least, most = math.floor(successes + _ROUNDING), math.ceil(successes - _ROUNDING)
    return 1 - upper_limit(trials - least, trials, error), upper_limit(most, trials, error)


def mean_interval(values: ArrayLike, confidence: float) -> tuple[float, float]:
    """Student's limits of a mean of values in [0, 1], as if one 0 and one 1 had been seen too.

    For scores that depend on each other inside a trial: reduce each trial to one value, and
    the trials are what varies. Student's own limits hold a mean of 20 trials near 1 in 80 % of
    experiments instead of 95 %; these hold the worst, of values that are 0 or 1, in 93.6 %
    or more, and in 98.6 % instead of 99.8 %.

    Args:
        values: One per trial, [N], N ≥ 2; independent of each other.
        confidence: In (0, 1).

    Returns:
        Limits in [0, 1] around the mean.

    Raises:
        ScoreError: Too few values, or not in [0, 1].
    """
    error, given = _error(confidence), _scores(values, "values", 2)
    if given.min() < 0 or given.max() > 1:
        raise ScoreError(
            f"values from {given.min():g} to {given.max():g}: expected 0 to 1",
            hint="give one share or AUC per trial",
        )
    plus = np.append(given, [0.0, 1.0])
    spread = float(plus.std(ddof=1)) / math.sqrt(len(plus))
    reach = student_limit(error, len(plus) - 1) * spread
    return _around(float(given.mean()), float(plus.mean()), reach)


def auc_interval(
    members: ArrayLike, nonmembers: ArrayLike, confidence: float
) -> tuple[float, float]:
    """DeLong's limits of an AUC, as if each side had one score more at -∞ and one at ∞.

    The variance is that of DeLong et al. (1988), from ranks in O(n log n) as in Sun and Xu
    (2014). Of scores that separate perfectly or are all tied it would be 0; with the added
    scores it is not: of 20 against 20 in perfect order the lower limit is 0.788 at 95 %.
    DeLong's own limits hold an AUC of 0.97 of 20 against 200 in 65 to 83 % of experiments instead
    of 95 %; these hold all that was tried in 93 % or more, and in 98.6 % instead of 99.8 %. The
    reach is Student's, with the freedom of the rarer side.

    Args:
        members: Scores [M], M ≥ 2; independent of each other and of the non-members'.
        nonmembers: Scores [N], N ≥ 2; likewise.
        confidence: In (0, 1).

    Returns:
        Limits in [0, 1] around ``auc(members, nonmembers)``.

    Raises:
        ScoreError: Unusable or too few scores, or a ``confidence`` out of range.
    """
    error = _error(confidence)
    given = _scores(members, "members", 2), _scores(nonmembers, "nonmembers", 2)
    inside, outside = (np.append(scores, [-math.inf, math.inf]) for scores in given)
    beaten = _beaten(inside, outside), _beaten(outside, inside)
    variance = sum(float(share.var(ddof=1)) / len(share) for share in beaten)
    freedom = min(len(inside), len(outside)) - 1
    reach = student_limit(error, freedom) * math.sqrt(variance)
    return _around(auc(*given), auc(inside, outside), reach)


@cache  # all intervals of one report ask for the same few
def student_limit(error: float, freedom: int) -> float:
    """Limit that Student's t exceeds with chance ``error``, by bisection on its exact tail.

    The tail is a finite sum in θ = atan(t / √freedom) (Abramowitz and Stegun 26.7.3-4),
    because the beta quantile would need scipy; right to about 1e-16 / ``error``, relatively.

    Args:
        error: In (0, 0.5).
        freedom: Degrees of freedom, 1 or more.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        if _student_tail(angle, freedom) > error:
            low = angle
        else:
            high = angle
    return math.sqrt(freedom) * math.tan(high)


def _student_tail(angle: float, freedom: int) -> float:
    cosine, sine, odd = math.cos(angle), math.sin(angle), freedom % 2
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return (1 - (2 / math.pi * (angle + sine * total) if odd else sine * total)) / 2


def _beaten(scores: Scores, others: Scores) -> Scores:
    """Share of ``others`` that each score beats; a tie counts half."""
    order = np.sort(others)
    wins = np.searchsorted(order, scores, "left") + np.searchsorted(order, scores, "right")
    shares: Scores = wins / (2 * len(order))
    return shares


def _around(plain: float, cautious: float, reach: float) -> tuple[float, float]:
    return max(min(plain, cautious) - reach, 0.0), min(max(plain, cautious) + reach, 1.0)


def _error(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ScoreError(
            f"confidence = {confidence}: expected a value between 0 and 1, both excluded",
            hint="use 0.95",
        )
    return (1 - confidence) / 2


_WINDOW = 7
_BRIGHTNESS, _CONTRAST = 0.01**2, 0.03**2  # C1 and C2 of the paper for a range of 1
_SLACK = 1e-6
"""Distance by which float32 arithmetic may leave [0, 1]."""


def psnr(a: ArrayLike, b: ArrayLike) -> float:
    """Peak signal-to-noise ratio for a range of 1, in dB; infinite for equal pictures.

    Args:
        a: Values in [0, 1], of any shape.
        b: Of the same shape.

    Raises:
        ScoreError: Shapes that differ, or values that no picture has.
    """
    first, second = _pictures(a, b)
    error = float(np.square(first - second).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: ArrayLike, b: ArrayLike) -> float:
    """Structural similarity (Wang et al. 2004), in [-1, 1].

    Uniform windows of 7×7 (smaller pictures: the largest odd side that fits), unbiased
    variances, mean over all whole windows and channels. That is ``structural_similarity`` of
    scikit-image by default, not the Gaussian window of the paper.

    Args:
        a: [H, W] or [channels, H, W] in [0, 1], 3×3 at least.
        b: Of the same shape.

    Raises:
        ScoreError: Shapes that differ or have no window, or values that no picture has.
    """
    first, second = _pictures(a, b)
    if first.ndim not in (2, 3) or min(first.shape[-2:]) < 3:
        raise ScoreError(
            f"pictures of shape {list(first.shape)}: expected [H, W] or [channels, H, W], 3×3 "
            "or more",
            hint="a window needs pixels to vary over",
        )
    side = min(_WINDOW, *first.shape[-2:])
    side -= 1 - side % 2
    x, y = (sliding_window_view(picture, (side, side), (-2, -1)) for picture in (first, second))
    mean_x, mean_y = x.mean((-2, -1)), y.mean((-2, -1))
    bias = side * side / (side * side - 1)
    var_x = (np.square(x).mean((-2, -1)) - mean_x**2) * bias
    var_y = (np.square(y).mean((-2, -1)) - mean_y**2) * bias
    covariance = ((x * y).mean((-2, -1)) - mean_x * mean_y) * bias
    alike = (2 * mean_x * mean_y + _BRIGHTNESS) * (2 * covariance + _CONTRAST)
    apart = (mean_x**2 + mean_y**2 + _BRIGHTNESS) * (var_x + var_y + _CONTRAST)
    return float((alike / apart).mean())


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    """Cosine of the angle between two vectors, in [-1, 1]; 0 where one of them is zero.

    Args:
        a: Finite numbers of any shape, read as one vector.
        b: Of the same shape.

    Raises:
        ScoreError: Shapes that differ, or numbers that are not finite.
    """
    first, second = (_unit(vector) for vector in _alike(a, b))
    return min(max(float(np.vdot(first, second)), -1.0), 1.0)


def _unit(vector: Scores) -> Scores:
    largest = float(np.abs(vector).max())
    if largest == 0:
        return vector
    scaled = vector / largest  # first, because squares of 1e-200 or 1e200 have no float
    direction: Scores = scaled / np.linalg.norm(scaled)
    return direction


def _alike(a: ArrayLike, b: ArrayLike) -> tuple[Scores, Scores]:
    try:
        first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    except (TypeError, ValueError) as error:
        raise ScoreError(f"not numbers: {error}", hint="give two arrays of numbers") from None
    if first.shape != second.shape or not first.size:
        raise ScoreError(
            f"shapes {list(first.shape)} and {list(second.shape)}: expected two equal ones, not "
            "empty",
            hint="compare like with like",
        )
    finite = np.isfinite(first) & np.isfinite(second)
    if not finite.all():
        raise ScoreError(
            f"{int((~finite).sum())} of {first.size} pairs of numbers are not finite",
            hint="find out why: to leave them out would bias the result",
        )
    return first, second


def _pictures(a: ArrayLike, b: ArrayLike) -> tuple[Scores, Scores]:
    pair = _alike(a, b)
    low, high = min(p.min() for p in pair), max(p.max() for p in pair)
    if low < -_SLACK or high > 1 + _SLACK:
        raise ScoreError(
            f"brightness from {low:g} to {high:g}: expected 0 to 1", hint="divide bytes by 255"
        )
    return pair
