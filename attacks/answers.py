"""Answers: an attack's guesses on one group of trials as numbers, and the findings on them.

Trials come in portions, since what is undecided is tried again with more; of a portion the
numbers are kept, not the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvtc_edge.statistics.class_statistics import Array

from .adversary.trials import Trial
from .adversary.view import Guess
from .inference.reconstruction import ClassMean
from .scoring.findings import Finding, Policy, credit, decided, more_trials, rates_of
from .scoring.metrics import auc, mean_interval, proportion_interval, psnr, ssim


@dataclass(frozen=True, eq=False)
class Yardsticks:
    """Identification that any attack is compared with, on one portion of trials.

    Args:
        plain: Guesses by the mean of public images; None where there are none.
        ceilings: Identification by who knows the mean image of the very records, per trial.
    """

    plain: list[Guess | None]
    ceilings: list[float]

    @classmethod
    def of(cls, trials: Sequence[Trial], stream: torch.Generator) -> Yardsticks:
        """Yardsticks of some trials."""
        ceilings = []
        for trial in trials:
            off = (trial.case.candidates - trial.average).square().flatten(1).sum(1)
            ceilings.append(credit(-off.double().numpy(), trial.target))
        return cls(ClassMean().guess([trial.case for trial in trials], stream), ceilings)


@dataclass(eq=False)
class Answers:
    """Numbers of one attack on one group of trials.

    Args:
        common: Fields that all findings share: attack, adversary, group.
        members: Scores of the members, [T].
        others: Scores of each trial's non-members, [T] of [K − 1].
        hits: Identification of the member, [T].
        nulls: Identification of a non-member in its place, [T].
        strangers: Which non-member that was, [T].
        baselines: Identification by the class mean, where there is one.
        ceilings: Identification by who knows the records' mean image, [T].
        likeness: SSIM and PSNR of pictures, and of class means, to the target.
        uncovered: What the attack has beyond the audited run, in words: nothing hangs on it.
    """

    common: dict[str, Any]
    members: list[float] = field(default_factory=list)
    others: list[Array] = field(default_factory=list)
    hits: list[float] = field(default_factory=list)
    nulls: list[float] = field(default_factory=list)
    strangers: list[int] = field(default_factory=list)
    baselines: list[float] = field(default_factory=list)
    ceilings: list[float] = field(default_factory=list)
    likeness: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    uncovered: str = ""

    def add(
        self,
        trials: Sequence[Trial],
        guesses: Sequence[Guess | None],
        yardsticks: Yardsticks,
        stream: torch.Generator,
    ) -> None:
        """Take up guesses on more trials.

        Where an attack applied to some of a group and not to these, it guesses blindly: how often
        it finds a record is a share of all of them.

        Args:
            stream: Draws the non-members that the null looks for.
        """
        blank = {"ssim": (list[float](), list[float]()), "psnr": (list[float](), list[float]())}
        pictured = all(guess is not None and guess.picture is not None for guess in guesses)
        if not self.members and pictured:
            self.likeness = blank
        elif not pictured:
            self.likeness = {}
        rows = zip(trials, guesses, yardsticks.plain, yardsticks.ceilings, strict=True)
        for trial, guess, plain, ceiling in rows:
            place = trial.target
            scores = np.full(len(trial.case.candidates), -np.inf) if guess is None else guess.scores
            others = np.delete(scores, place)
            stranger = int(torch.randint(len(others), (1,), generator=stream))
            self.members.append(float(scores[place]))
            self.others.append(others)
            self.hits.append(credit(scores, place))
            # What is said of records that nobody uploaded.
            self.nulls.append(credit(others, stranger))
            self.strangers.append(stranger)
            self.ceilings.append(ceiling)
            if plain is not None:
                self.baselines.append(credit(plain.scores, place))
            for name, (own, mean) in self.likeness.items():
                measure, truth = _LIKENESS[name], _pixels(trial.case.candidates[place])
                own.append(measure(_pixels(None if guess is None else guess.picture), truth))
                if plain is not None:
                    mean.append(measure(_pixels(plain.picture), truth))

    def findings(self, policy: Policy, confidence: float) -> list[Finding]:
        """Findings on what was answered so far.

        Args:
            confidence: Confidence of each interval.
        """
        common = self.common | {"trials": len(self.members)}
        members, others = np.array(self.members), np.concatenate(self.others)
        if self.uncovered:
            policy = replace(policy, covered=frozenset())
        found = [
            self._identification(policy, confidence, common),
            self._auc(confidence, common),
            *rates_of(members, others, policy, confidence, common),
            *(
                Finding(metric=name, value=_mean(own), baseline=_mean(mean), **common)
                for name, (own, mean) in self.likeness.items()
            ),
        ]
        if not self.uncovered:
            return found
        return [replace(one, note=self.uncovered) if one.note else one for one in found]

    def _identification(self, policy: Policy, confidence: float, common: dict[str, Any]) -> Finding:
        value, trials = float(np.mean(self.hits)), len(self.hits)
        low, high = proportion_interval(sum(self.hits), trials, confidence)
        limit = policy.limit("identification", common["view"])
        undecided = limit is not None and decided(low, high, limit) is None
        return Finding(
            metric="identification",
            value=value,
            low=low,
            high=high,
            null=_mean(self.nulls),
            baseline=_mean(self.baselines),
            ceiling=_mean(self.ceilings),
            threshold=limit,
            decides_by=more_trials(value, limit or 0.0, confidence) if undecided else "",
            note=policy.silence("identification", common["view"]),
            **common,
        )

    def _auc(self, confidence: float, common: dict[str, Any]) -> Finding:
        """The AUC within trials, which decides nothing."""
        each = [
            auc([member], others) for member, others in zip(self.members, self.others, strict=True)
        ]
        null = [
            auc([others[place]], np.delete(others, place))
            for others, place in zip(self.others, self.strangers, strict=True)
        ]
        # Of a single trial there is no spread.
        low, high = mean_interval(each, confidence) if len(each) > 1 else (0.0, 1.0)
        value, chance = float(np.mean(each)), float(np.mean(null))
        return Finding(metric="auc", value=value, low=low, high=high, null=chance, **common)


_LIKENESS = {"ssim": ssim, "psnr": psnr}
"""They decide nothing: the class mean alone has a high SSIM."""


def answers_of(
    name: str,
    trials: Sequence[Trial],
    guesses: Sequence[Guess | None],
    group: str,
    stream: torch.Generator,
    yardsticks: Yardsticks | None = None,
) -> Answers | None:
    """An attack's answers on a group's first trials; None where it applied to none of them."""
    if all(guess is None for guess in guesses):
        return None
    view, staged = trials[0].case.view, trials[0].staged
    answers = Answers({"attack": name, "view": view.who, "group": group, "staged": staged})
    answers.add(trials, guesses, yardsticks or Yardsticks.of(trials, stream), stream)
    return answers


def _pixels(picture: Tensor | None) -> Array:
    assert picture is not None
    pixels: Array = picture.double().clamp(0, 1).numpy()
    return pixels


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None
