"""Attempts: each attack on each group of trials, again with more where nothing was decided."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fedvtc_edge.errors import UsageError
from fedvtc_edge.progress import Progress

from .adversary.observations import Observation
from .adversary.staging import REPETITIONS, UploadStager
from .adversary.subjects import READ
from .adversary.trials import FEWEST, AuditedRun, Trial, size_of
from .adversary.view import Attack, Guess
from .answers import Answers, Yardsticks, answers_of
from .direct_disclosures import recovered, recovery_error
from .scoring.findings import Finding, Policy
from .scoring.metrics import bonferroni

VIEWS = ("server", "server+device", "colluders", "device", "eavesdropper")
"""Adversaries, see :class:`~fedvtc_edge.attacks.adversary.view.View`."""

STAGED = (1, 2, 5, 20, 100)
"""Numbers of records of each class of a staged client."""

LOOKS = 6
"""Times that undecided findings on staged uploads are looked at, each with as many trials as all
before together: at most 32 times as many as at first. The intervals of all looks hold together."""

_AT_ONCE = 300
"""Most trials whose images are in memory together."""

More = Callable[[int, bool], list[Trial]]


@dataclass(frozen=True, eq=False)
class Group:
    """Trials that are reported together: of one adversary, and of about as many records.

    Args:
        who: Name of the adversary.
        least: Smallest number of records of its uploads.
        trials: Empty where the group exists and could not be tested.
        more: Makes so many more trials, with uploads before and after, and repetitions, if the
            flag is set; None where there are no others.
    """

    name: str
    who: str
    least: int
    trials: list[Trial]
    more: More | None = None


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
            pools.setdefault((one.who, size_of(count)), [])
        for trial in audited.trials(one, -(-2 * number // among), audited.extractor(one)):
            pool = pools[one.who, size_of(trial.count)]
            if len(pool) < number:
                pool.append(trial)
    groups = [
        Group(f"n = {_named(size)}", who, size[0], trials) for (who, size), trials in pools.items()
    ]
    if audited.anchor is None and not audited.uploaders:
        return groups
    stage = UploadStager(audited)

    def more_of(count: int) -> More:
        def more(number: int, pairs: bool) -> list[Trial]:
            repetitions = REPETITIONS if pairs else 0
            return stage.trials(count, number, repetitions=repetitions, after=pairs)

        return more

    for count in staged:
        trials = stage.trials(count, number)
        if trials:
            who, name = trials[0].case.view.who, f"n = {count}, staged"
            groups.append(Group(name, who, count, trials, more_of(count)))
    return groups


@dataclass(eq=False)
class Attempts:
    """Answers of all attacks on all groups, as far as they were tried.

    Args:
        answered: By group and attack, in the order of the report.
        errors: By group of one or two records, how far each record was from what was read off.
    """

    policy: Policy
    groups: dict[str, Group]
    answered: dict[tuple[str, str], Answers] = field(default_factory=dict)
    errors: dict[str, list[float]] = field(default_factory=dict)

    def found(self) -> list[Finding]:
        """All findings, those on few uploads settled by those on staged ones."""
        keys = [key for key, _ in self.answered]
        tests = sum(self._looks(key) for key in [*keys, *keys, *self.errors])
        confidence = bonferroni(self.policy.confidence, max(tests, 1))
        found = [
            finding
            for answers in self.answered.values()
            for finding in answers.findings(self.policy, confidence)
        ]
        for key, errors in self.errors.items():
            group = self.groups[key]
            found.append(
                recovered(
                    errors,
                    group.who,
                    group.least,
                    group.name,
                    self.policy,
                    confidence,
                    staged=group.more is not None,
                )
            )
        tried = {(one.view, one.group) for one in found}
        for group in self.groups.values():
            if (group.who, group.name) not in tried:
                found.append(_untested(group, self.policy))
        return _settled(found, {(g.who, g.name): g.least for g in self.groups.values()})

    def _looks(self, key: str) -> int:
        """Number of looks that share a group's confidence: one at a run's own uploads."""
        return 1 if self.groups[key].more is None else LOOKS


def attempt(
    attacks: Sequence[Attack],
    groups: Sequence[Group],
    policy: Policy,
    *,
    seed: int,
    progress: Progress,
) -> tuple[list[Finding], list[Example]]:
    """Findings and examples of each attack on each group.

    Intervals that decide hold together (Bonferroni), over all that were answered and over all
    looks: what is undecided on staged uploads is tried again with more, :data:`LOOKS` times at
    most, unless something else is a leak already. That may stop at any look and stays valid.
    """
    stream = torch.Generator().manual_seed(seed)
    made = Attempts(policy, {f"{group.who}/{group.name}": group for group in groups})
    examples: list[Example] = []
    progress.start(len(attacks) * len(groups), "attacks")
    for key, group in made.groups.items():
        yardsticks = Yardsticks.of(group.trials, stream)
        _read_off(made, key, group.trials, attacks)
        for attack in attacks:
            trials = group.trials[: getattr(attack, "most", None)]
            guesses = attack.guess([trial.case for trial in trials], stream) if trials else []
            some = Yardsticks(yardsticks.plain[: len(trials)], yardsticks.ceilings[: len(trials)])
            answers = answers_of(attack.name, trials, guesses, group.name, stream, some)
            if answers is not None:
                answers.uncovered = getattr(attack, "uncovered", "")
                made.answered[key, attack.name] = answers
                examples += _examples(attack.name, group, guesses)
            progress.advance(f"{attack.name}, {group.name}")
    found = made.found()
    for look in range(LOOKS - 1):
        if any(finding.passed is False for finding in found):
            break
        if not _look_again(made, attacks, found, 2**look, stream, progress):
            break
        found = made.found()
    progress.close()
    return found, examples


def _look_again(
    made: Attempts,
    attacks: Sequence[Attack],
    found: Sequence[Finding],
    times: int,
    stream: torch.Generator,
    progress: Progress,
) -> bool:
    """More trials for what is undecided on staged uploads; False where there is nothing."""
    again = False
    for key, group in made.groups.items():
        open_ = {f.attack for f in found if f.undecided and (f.view, f.group) == _place(group)}
        if group.more is None or not open_:
            continue
        again = True
        retried = [
            attack
            for attack in attacks
            if attack.name in open_ and (key, attack.name) in made.answered
        ]
        pairs = any(getattr(attack, "needs_pairs", True) for attack in retried)
        progress.say(f"{group.name}: undecided, {times * len(group.trials)} more trials")
        left = times * len(group.trials)
        while left > 0:
            trials = group.more(min(left, _AT_ONCE), pairs)
            if not trials:
                break  # no class has enough other records
            left -= len(trials)
            yardsticks = Yardsticks.of(trials, stream)
            if "exact" in open_:
                _read_off(made, key, trials, attacks)
            for attack in retried:
                guesses = attack.guess([trial.case for trial in trials], stream)
                made.answered[key, attack.name].add(trials, guesses, yardsticks, stream)
    return again


def _place(group: Group) -> tuple[str, str]:
    return group.who, group.name


def _read_off(made: Attempts, key: str, trials: Sequence[Trial], attacks: Sequence[Attack]) -> None:
    """Note how far single records are from what is read off."""
    if all(attack.name != "exact" for attack in attacks):
        return
    errors = [error for trial in trials if (error := recovery_error(trial)) is not None]
    if errors:
        made.errors.setdefault(key, []).extend(errors)


def _untested(group: Group, policy: Policy) -> Finding:
    """A finding on a group that exists and that nothing was tried on: undecided."""
    scarce = "its classes have too few other images", f"{FEWEST} more images of each class"
    blind = "no attack that was made applies to it", "an attack that applies"
    note, wanted = blind if group.trials else scarce
    metric, limit = "identification", policy.limit("identification", group.who)
    if limit is None:
        metric, limit = "tpr_at_1_percent_fpr", policy.limit("membership", group.who)
    return Finding(
        attack="untested",
        view=group.who,
        metric=metric,
        low=0.0,
        high=1.0,
        threshold=limit,
        group=group.name,
        note=note,
        decides_by=wanted,
    )


def left_out(policy: Policy, views: Collection[str], *, noise: bool, bytes_: bool) -> list[Finding]:
    """Findings on what a claim covers and this audit was told, or had no means, to leave out.

    Args:
        views: Adversaries that were looked through.
        noise: Whether the audit of the noise was made.
        bytes_: Whether the run's own releases are at hand, to be tested for their noise.
    """
    missing = [
        (view, "not looked through", "an audit without --view")
        for view in sorted((policy.covered or frozenset()) - frozenset(views))
    ]
    if not noise:
        missing.append(("server", "the noise was not audited", "an audit without --attacks"))
    elif not bytes_:
        why = "the noise of the releases was not tested: they are not at hand"
        missing.append(("server", why, "an audit of the run"))
    return [
        Finding(
            attack="left out",
            view=view,
            metric="what the claim covers",
            low=0.0,
            high=1.0,
            threshold=0.0,
            note=note,
            decides_by=by,
        )
        for view, note, by in missing
    ]


def unread(uploaded: str) -> list[Finding]:
    """Finding on uploads that no attack here reads: they were not attacked, whatever else passed.

    Args:
        uploaded: Content of uploads, as a method names it.
    """
    if uploaded in READ:
        return []
    return [
        Finding(
            attack="left out",
            view="server",
            metric="what clients upload",
            low=0.0,
            high=1.0,
            threshold=0.0,
            note=f"not attacked: no attack here reads uploads of {uploaded!r}",
            decides_by="an attack of one's own, see docs/plugins.md",
        )
    ]


def _settled(found: Sequence[Finding], least: Mapping[tuple[str, str], int]) -> list[Finding]:
    """Findings, of which the undecided ones on few uploads are left to staged ones, if there are.

    A run has few classes of one size. What the auditor staged of as many records or fewer, by the
    run's own path, gives away as much or more: where the same attack passed on that (or all did,
    for uploads that could not be tested), the run's own uploads need no decision of their own.

    Args:
        least: Smallest number of records of each adversary's groups, by their names.
    """
    staged = [one for one in found if one.staged and one.threshold is not None]
    settled = []
    for one in found:
        if one.undecided and not one.staged:
            size = least[one.view, one.group]
            twins = [
                twin
                for twin in staged
                if twin.view == one.view
                and least[twin.view, twin.group] <= size
                and (one.attack, one.metric) in (("untested", one.metric), _kind(twin))
            ]
            nearest = max((least[twin.view, twin.group] for twin in twins), default=0)
            near = [twin for twin in twins if least[twin.view, twin.group] == nearest]
            if near and all(twin.passed for twin in near):
                note = f"decided by {near[0].group}"
                one = replace(one, required=False, decides_by="", note=note)
            else:
                words = [one.decides_by, "staged uploads of as many records"]
                one = replace(one, decides_by=", or ".join(word for word in words if word))
        settled.append(one)
    return settled


def _kind(finding: Finding) -> tuple[str, str]:
    return finding.attack, finding.metric


def _named(size: tuple[int, int]) -> str:
    low, high = size
    if high > 10**9:
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
