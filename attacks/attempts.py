"""Attempts: each attack on each group of trials, and the findings that its guesses come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvtc_edge.errors import UsageError
from fedvtc_edge.progress import Progress
from fedvtc_edge.statistics.class_statistics import Array

from .adversary.observations import Observation
from .adversary.trials import AuditedRun, Trial, UploadStager
from .adversary.view import Attack, Guess
from .inference.reconstruction import ClassMean
from .scoring.findings import Finding, Policy, credit, rates_of
from .scoring.metrics import auc, bonferroni, mean_interval, proportion_interval, psnr, ssim

VIEWS = ("server", "server+device", "colluders", "device", "eavesdropper")
"""Adversaries, see :class:`~fedvtc_edge.attacks.adversary.view.View`."""

GROUPS = ((1, 1), (2, 2), (3, 5), (6, 19), (20, 99), (100, 2**62))
"""Numbers of records of a class that are reported together."""

STAGED = (1, 2, 5, 20, 100)
"""Numbers of records of each class of a staged client."""

FEWEST_TRIALS = 20
"""With fewer, no share of them says anything."""


@dataclass(frozen=True, eq=False)
class Group:
    """Trials that are reported together: of one adversary, and of about as many records."""

    name: str
    trials: list[Trial]

    @property
    def who(self) -> str:
        """Name of the adversary."""
        return self.trials[0].case.view.who


@dataclass(frozen=True, eq=False)
class Example:
    """A trial with a picture, for the report's grid; ``null`` is of another trial of the class."""

    attack: str
    group: str
    trial: Trial
    guess: Guess
    null: Guess | None


def parse_views(names: Sequence[str] | None) -> frozenset[str]:
    """Adversaries by name; all where none is given.

    Raises:
        UsageError: An unknown name.
    """
    unknown = [name for name in names or () if name not in VIEWS]
    if unknown:
        raise UsageError(f"no adversary {unknown[0]!r}", hint=f"adversaries: {', '.join(VIEWS)}")
    return frozenset(names or VIEWS)


def groups_of(
    audited: AuditedRun, seen: Sequence[Observation], number: int, *, staged: Sequence[int]
) -> list[Group]:
    """Groups of trials on what was seen, and on what is staged."""
    pools: dict[tuple[str, str], list[Trial]] = {}
    for one in seen:
        among = sum(other.who == one.who for other in seen)
        extract = audited.extractor(one)
        for trial in audited.trials(one, -(-2 * number // among), extract):
            pools.setdefault((one.who, _range(trial.count)), []).append(trial)
    groups = [Group(f"n = {name}", trials[:number]) for (_, name), trials in pools.items()]
    if audited.anchor is not None:
        stage = UploadStager(audited)
        groups += [Group(f"n = {n}, staged", stage.trials(n, number)) for n in staged]
    return [group for group in groups if group.trials]


def attempt(
    attacks: Sequence[Attack],
    groups: Sequence[Group],
    policy: Policy,
    *,
    seed: int,
    progress: Progress,
) -> tuple[list[Finding], list[Example]]:
    """Findings and examples of each attack on each group.

    Intervals that decide hold together (Bonferroni), over all that were answered.
    """
    stream = torch.Generator().manual_seed(seed)
    answered: list[Answers] = []
    examples: list[Example] = []
    progress.start(len(attacks) * len(groups), "attacks")
    for group in groups:
        for attack in attacks:
            guesses = attack.guess([trial.case for trial in group.trials], stream)
            answers = Answers.of(attack, group.trials, guesses, group.name)
            if answers is not None:
                answered.append(answers)
                examples += _examples(attack.name, group, guesses)
            progress.advance(f"{attack.name}, {group.name}")
    progress.close()
    confidence = bonferroni(policy.confidence, max(2 * len(answered), 1))
    found = [
        finding
        for answers in answered
        for finding in findings_of(answers, policy=policy, confidence=confidence, stream=stream)
    ]
    return found, examples


def _range(count: int) -> str:
    low, high = next((low, high) for low, high in GROUPS if low <= count <= high)
    if high == GROUPS[-1][1]:
        return f"{low} or more"
    return str(low) if low == high else f"{low} to {high}"


def _examples(
    name: str, group: Group, guesses: Sequence[Guess | None], most: int = 6
) -> list[Example]:
    pairs = [
        (trial, guess)
        for trial, guess in zip(group.trials, guesses, strict=True)
        if guess is not None and guess.picture is not None
    ]
    made: list[Example] = []
    labels: set[int] = set()
    for trial, guess in pairs:
        label = trial.case.view.label
        if label in labels or len(made) >= most:
            continue
        labels.add(label)
        rest = [g for t, g in pairs if t is not trial and t.case.view.label == label]
        made.append(Example(name, group.name, trial, guess, rest[0] if rest else None))
    return made


@dataclass(frozen=True, eq=False)
class Answers:
    """An attack's guesses on a group of trials, and the fields that all findings on them share."""

    trials: list[Trial]
    guesses: list[Guess]
    common: dict[str, Any]

    @classmethod
    def of(
        cls, attack: Attack, trials: Sequence[Trial], guesses: Sequence[Guess | None], group: str
    ) -> Answers | None:
        """The trials to which the attack applied; None where they are too few."""
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
        """Scores of each trial's non-members."""
        pairs = zip(self.guesses, self.trials, strict=True)
        return [np.delete(guess.scores, trial.target) for guess, trial in pairs]


def findings_of(
    answers: Answers, *, policy: Policy, confidence: float, stream: torch.Generator
) -> list[Finding]:
    """Findings on one attack and one group of trials.

    Args:
        confidence: Confidence of each interval.
        stream: Draws the non-members that the null looks for.
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
        # A non-member in the place of the member: what is said of records that nobody uploaded.
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


def _credits(scores: Sequence[Array], places: Sequence[int]) -> list[float]:
    return [credit(each, place) for each, place in zip(scores, places, strict=True)]


def _pictures(answers: Answers, plain: Sequence[Guess | None]) -> list[Finding]:
    """SSIM and PSNR, which decide nothing: the class mean alone has a high SSIM."""
    pictured = list(zip(answers.trials, answers.guesses, plain, strict=True))
    if any(guess.picture is None for _, guess, _ in pictured):
        return []
    found = []
    for name, measure in (("ssim", ssim), ("psnr", psnr)):
        values, base = [], []
        for trial, guess, mean in pictured:
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
