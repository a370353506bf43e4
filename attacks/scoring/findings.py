"""From guesses to findings: what was measured, how sure it is, and what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedvtc_edge.statistics.class_statistics import Array

from ..adversary.laboratory import Trial
from ..adversary.view import Attack, Guess
from ..inference.reconstruction import ClassMean
from .metrics import auc, mean_interval, proportion_interval, tpr_at_fpr
from .similarity import psnr, ssim

FEWEST_TRIALS = 20
"""With fewer, no share of them says anything."""

DECIDING_RATE = 0.01
"""False-positive rate at which membership is judged."""

LEAST_ACCUSED = 10
"""Decoys that must be accused at a rate: 1 % needs 1,000 of them, 0.1 % needs 10,000."""


@dataclass(frozen=True)
class Finding:
    """One number about one attack, as it stands in ``report.json``.

    Args:
        attack: Its name.
        view: Whose eyes it looks through.
        metric: What was measured.
        value: Of it.
        low: Lower confidence limit, or None where the value is no estimate.
        high: Upper one.
        null: What the same attack reaches on records that it was not told of.
        baseline: What the mean of public images reaches.
        ceiling: What one reaches who knows the mean of the very records.
        threshold: What ``low`` may not pass; None where nothing hangs on it.
        passed: Whether it does not; None without a threshold.
        group: Which uploads: how many records they are of.
        trials: How many trials the value is of.
        staged: Whether uploads were made by the auditor, on the run's own path.
        note: In words.
    """

    attack: str
    view: str
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    null: float | None = None
    baseline: float | None = None
    ceiling: float | None = None
    threshold: float | None = None
    passed: bool | None = None
    group: str = "all"
    trials: int = 0
    staged: bool = False
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON holds it; numbers that JSON has no word for are None."""
        document = asdict(self)
        return {
            key: None if isinstance(value, float) and not np.isfinite(value) else value
            for key, value in document.items()
        }


@dataclass(frozen=True)
class Policy:
    """What may leak before a verdict is *leak*.

    Where nothing is claimed, five times what chance reaches.

    Args:
        identification: Largest share of records told from same-class decoys.
        membership: Largest true-positive rate at 1 % false positives.
        confidence: Of all intervals that decide, together.
        covered: Adversaries that are judged; None judges all.
    """

    identification: float = 0.1
    membership: float = 0.05
    confidence: float = 0.95
    covered: frozenset[str] | None = None

    def limit(self, metric: Literal["identification", "membership"], view: str) -> float | None:
        """What a lower confidence limit may not pass; None where nothing hangs on it."""
        if self.covered is not None and view not in self.covered:
            return None
        limits = {"identification": self.identification, "membership": self.membership}
        return limits[metric]


def credit(scores: Array, place: int) -> float:
    """1 if the candidate at ``place`` ranks first, divided among ties."""
    best = scores.max()
    return float(scores[place] == best) / int((scores == best).sum())


@dataclass(frozen=True, eq=False)
class Answers:
    """An attack's answers to a group of trials, beside the truth.

    Args:
        trials: With the truth.
        guesses: One per trial.
        common: Fields that all findings on them share.
    """

    trials: list[Trial]
    guesses: list[Guess]
    common: dict[str, Any]

    @classmethod
    def of(
        cls, attack: Attack, trials: Sequence[Trial], guesses: Sequence[Guess | None], group: str
    ) -> Answers | None:
        """Those trials to which the attack applied; None where they are too few."""
        pairs = [(t, g) for t, g in zip(trials, guesses, strict=True) if g is not None]
        if len(pairs) < FEWEST_TRIALS:
            return None
        answered = [trial for trial, _ in pairs]
        common = {
            "attack": attack.name,
            "view": answered[0].case.view.who,
            "group": group,
            "trials": len(answered),
            "staged": answered[0].staged,
        }
        return cls(answered, [guess for _, guess in pairs], common)

    @property
    def members(self) -> Array:
        """Scores of the members, [T]."""
        pairs = zip(self.guesses, self.trials, strict=True)
        return np.array([guess.scores[trial.target] for guess, trial in pairs])

    @property
    def others(self) -> list[Array]:
        """Scores of each trial's decoys."""
        pairs = zip(self.guesses, self.trials, strict=True)
        return [np.delete(guess.scores, trial.target) for guess, trial in pairs]


def findings_of(
    answers: Answers, *, policy: Policy, confidence: float, stream: torch.Generator
) -> list[Finding]:
    """All numbers about one attack on one group of trials.

    Args:
        answers: What it answered.
        policy: Thresholds.
        confidence: Of each interval.
        stream: Draws the records that the null pretends to look for.
    """
    plain = ClassMean().guess([trial.case for trial in answers.trials], stream)
    strangers = [
        int(torch.randint(len(scores), (1,), generator=stream)) for scores in answers.others
    ]
    members, others = answers.members, np.concatenate(answers.others)
    return [
        _identification(answers, plain, strangers, policy, confidence),
        _auc(answers, strangers, confidence),
        *rates_of(members, others, policy, confidence, answers.common),
        *_pictures(answers, plain),
    ]


def _identification(
    answers: Answers,
    plain: Sequence[Guess | None],
    strangers: Sequence[int],
    policy: Policy,
    confidence: float,
) -> Finding:
    places = [trial.target for trial in answers.trials]
    hits = _credits([guess.scores for guess in answers.guesses], places)
    low, high = proportion_interval(sum(hits), len(hits), confidence)
    knowing = [
        -(trial.case.candidates - trial.average).square().flatten(1).sum(1).double().numpy()
        for trial in answers.trials
    ]
    limit = policy.limit("identification", answers.common["view"])
    guessing = [(g.scores, place) for g, place in zip(plain, places, strict=True) if g is not None]
    return Finding(
        metric="identification",
        value=float(np.mean(hits)),
        low=low,
        high=high,
        # A decoy, as if it were the member: what is said of records that nobody uploaded.
        null=_mean(_credits(answers.others, strangers)),
        baseline=_mean([credit(scores, place) for scores, place in guessing]),
        ceiling=_mean(_credits(knowing, places)),
        threshold=limit,
        passed=None if limit is None else low <= limit,
        **answers.common,
    )


def _auc(answers: Answers, strangers: Sequence[int], confidence: float) -> Finding:
    pairs = list(zip(answers.members, answers.others, strict=True))
    each = [auc([member], others) for member, others in pairs]
    null = [
        auc([others[place]], np.delete(others, place))
        for (_, others), place in zip(pairs, strangers, strict=True)
    ]
    low, high = mean_interval(each, confidence)
    return Finding(
        metric="auc",
        value=float(np.mean(each)),
        low=low,
        high=high,
        null=float(np.mean(null)),
        **answers.common,
    )


def rates_of(
    members: Array, others: Array, policy: Policy, confidence: float, common: dict[str, Any]
) -> list[Finding]:
    """True positives at low false-positive rates, where there are non-members enough to say.

    Args:
        members: Scores [M].
        others: Scores of non-members [N].
        policy: Thresholds.
        confidence: Of each interval.
        common: Fields that the findings share, ``view`` among them.
    """
    found = []
    for rate, name in ((0.01, "tpr_at_1_percent_fpr"), (0.001, "tpr_at_0.1_percent_fpr")):
        if len(others) * rate < LEAST_ACCUSED:
            continue
        share = tpr_at_fpr(members, others, rate)
        low, high = proportion_interval(round(share * len(members)), len(members), confidence)
        decides = rate == DECIDING_RATE
        limit = policy.limit("membership", common["view"]) if decides else None
        found.append(
            Finding(
                metric=name,
                value=share,
                low=low,
                high=high,
                null=rate,
                threshold=limit,
                passed=None if limit is None else low <= limit,
                **common,
            )
        )
    return found


def _credits(scores: Sequence[Array], places: Sequence[int]) -> list[float]:
    return [credit(each, place) for each, place in zip(scores, places, strict=True)]


def _pictures(answers: Answers, plain: Sequence[Guess | None]) -> list[Finding]:
    """SSIM and PSNR, which decide nothing: the class mean alone has a high SSIM."""
    painted = list(zip(answers.trials, answers.guesses, plain, strict=True))
    if any(guess.picture is None for _, guess, _ in painted):
        return []
    found = []
    for name, measure in (("ssim", ssim), ("psnr", psnr)):
        values, base = [], []
        for trial, guess, mean in painted:
            truth = _pixels(trial.case.candidates[trial.target])
            values.append(measure(_pixels(guess.picture), truth))
            if mean is not None:
                base.append(measure(_pixels(mean.picture), truth))
        found.append(
            Finding(metric=name, value=_mean(values), baseline=_mean(base), **answers.common)
        )
    return found


def _pixels(picture: Tensor | None) -> Array:
    assert picture is not None
    pixels: Array = picture.double().clamp(0, 1).numpy()
    return pixels


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None
