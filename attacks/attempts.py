"""Attempts: each attack on each group of trials, and the findings that its guesses come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvtc_edge.errors import UsageError
from fedvtc_edge.progress import Progress
from fedvtc_edge.statistics.class_statistics import Array

from .adversary.observations import Observation
from .adversary.trials import FEWEST, AuditedRun, Trial, UploadStager
from .adversary.view import Attack, Guess
from .inference.reconstruction import ClassMean
from .scoring.findings import Finding, Policy, credit, decided, more_trials, rates_of
from .scoring.metrics import auc, bonferroni, mean_interval, proportion_interval, psnr, ssim

VIEWS = ("server", "server+device", "colluders", "device", "eavesdropper")
"""Adversaries, see :class:`~fedvtc_edge.attacks.adversary.view.View`."""

GROUPS = ((1, 1), (2, 2), (3, 5), (6, 19), (20, 99), (100, 2**62))
"""Numbers of records of a class that are reported together."""

STAGED = (1, 2, 5, 20, 100)
"""Numbers of records of each class of a staged client."""


@dataclass(frozen=True, eq=False)
class Group:
    """Trials that are reported together: of one adversary, and of about as many records.

    Args:
        who: Name of the adversary.
        least: Smallest number of records of its uploads.
        trials: Empty where the group exists and could not be tested.
    """

    name: str
    who: str
    least: int
    trials: list[Trial]


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
    """Groups of trials on what was seen, and on what is staged.

    Each size of class that exists in the run has its group, with trials or without.
    """
    pools: dict[tuple[str, tuple[int, int]], list[Trial]] = {}
    for one in seen:
        among = sum(other.who == one.who for other in seen)
        own = audited.labels[audited.holdings[one.client]]
        for count in np.unique(own, return_counts=True)[1]:
            pools.setdefault((one.who, _range(count)), [])
        for trial in audited.trials(one, -(-2 * number // among), audited.extractor(one)):
            pools[one.who, _range(trial.count)].append(trial)
    groups = [
        Group(f"n = {_named(size)}", who, size[0], trials[:number])
        for (who, size), trials in pools.items()
    ]
    if audited.anchor is not None:
        stage = UploadStager(audited)
        made = ((count, stage.trials(count, number)) for count in staged)
        groups += [
            Group(f"n = {count}, staged", trials[0].case.view.who, count, trials)
            for count, trials in made
            if trials
        ]
    return groups


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
            if not group.trials:
                progress.advance(f"{attack.name}, {group.name}")
                continue
            trials = group.trials[: getattr(attack, "most", None)]
            guesses = attack.guess([trial.case for trial in trials], stream)
            answers = Answers.of(attack, trials, guesses, group.name)
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
    tried = {(finding.view, finding.group) for finding in found}
    found += [_untested(group, policy) for group in groups if (group.who, group.name) not in tried]
    least = {(group.who, group.name): group.least for group in groups}
    return _settled(found, least), examples


def _untested(group: Group, policy: Policy) -> Finding:
    """A finding on a group that exists and that nothing was tried on: undecided."""
    scarce = "its classes have too few other images", f"{FEWEST} more images of each class"
    blind = "no attack that was made applies to it", "an attack that applies"
    note, wanted = blind if group.trials else scarce
    return Finding(
        attack="untested",
        view=group.who,
        metric="identification",
        low=0.0,
        high=1.0,
        threshold=policy.limit("identification", group.who),
        group=group.name,
        note=note,
        decides_by=wanted,
    )


def _settled(found: Sequence[Finding], least: Mapping[tuple[str, str], int]) -> list[Finding]:
    """Findings, of which the undecided ones on few uploads are left to staged ones, if there are.

    A run has few classes of one size. What the auditor staged of as many records or fewer, by the
    run's own path, gives away as much or more: where the same attack passed on that, the run's
    own uploads need no decision of their own.

    Args:
        least: Smallest number of records of each adversary's groups, by their names.
    """
    staged = {(f.attack, f.view, f.metric, least[f.view, f.group]): f for f in found if f.staged}
    settled = []
    for one in found:
        if one.undecided and not one.staged:
            size = least[one.view, one.group]
            kind = (one.attack, one.view, one.metric)
            near = max((key[3] for key in staged if key[:3] == kind and key[3] <= size), default=0)
            twin = staged.get((*kind, near))
            if twin is not None and twin.passed:
                note = f"decided by {twin.group}"
                one = replace(one, required=False, decides_by="", note=note)
            else:
                words = [one.decides_by, "staged uploads of as many records"]
                one = replace(one, decides_by=", or ".join(word for word in words if word))
        settled.append(one)
    return settled


def _range(count: int) -> tuple[int, int]:
    return next((low, high) for low, high in GROUPS if low <= count <= high)


def _named(size: tuple[int, int]) -> str:
    low, high = size
    if high == GROUPS[-1][1]:
        return f"{low} or more"
    return str(low) if low == high else f"{low} to {high}"


def _examples(
    name: str, group: Group, guesses: Sequence[Guess | None], most: int = 6
) -> list[Example]:
    pairs = [
        (trial, guess)
        for trial, guess in zip(group.trials, guesses, strict=False)
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
        """The trials with an attack's guesses; None where it applied to none of them.

        Where it applied to some, it guesses blindly at the others: how often it finds a record
        is a share of all of them.
        """
        if all(guess is None for guess in guesses):
            return None
        common = {
            "attack": attack.name,
            "view": trials[0].case.view.who,
            "group": group,
            "trials": len(trials),
            "staged": trials[0].staged,
        }
        blind = (Guess(np.full(len(trial.case.candidates), -np.inf)) for trial in trials)
        pairs = zip(guesses, blind, strict=True)
        return cls(list(trials), [guess or other for guess, other in pairs], common)

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
    undecided = limit is not None and decided(low, high, limit) is None
    value = float(np.mean(hits))
    guessing = [(g.scores, place) for g, place in zip(plain, places, strict=True) if g is not None]
    return Finding(
        metric="identification",
        value=value,
        low=low,
        high=high,
        # A non-member in the place of the member: what is said of records that nobody uploaded.
        null=_mean(_credits(answers.others, strangers)),
        baseline=_mean([credit(scores, place) for scores, place in guessing]),
        ceiling=_mean(_credits(knowing, places)),
        threshold=limit,
        decides_by=more_trials(value, limit or 0.0, confidence) if undecided else "",
        note=policy.silence("identification", answers.common["view"]),
        **answers.common,
    )


def _auc(answers: Answers, strangers: Sequence[int], confidence: float) -> Finding:
    pairs = list(zip(answers.members, answers.others, strict=True))
    each = [auc([member], others) for member, others in pairs]
    null = [
        auc([others[place]], np.delete(others, place))
        for (_, others), place in zip(pairs, strangers, strict=True)
    ]
    # Of a single trial there is no spread.
    low, high = mean_interval(each, confidence) if len(each) > 1 else (0.0, 1.0)
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
