"""One audit: all attacks on all views of a run, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedvtc_edge.errors import UsageError
from fedvtc_edge.plugins import Registry
from fedvtc_edge.progress import Progress

from .adversary.laboratory import Laboratory, Trial
from .adversary.observations import Observation
from .adversary.staging import UploadStager
from .adversary.view import Attack, Guess
from .inference.differencing import Differencing
from .inference.exact_recovery import ExactRecovery
from .inference.membership import Membership, SecondMoments
from .inference.reconstruction import Decode, Inversion
from .inference.shadow import Shadow
from .scoring.findings import Answers, Finding, Policy, findings_of
from .scoring.metrics import bonferroni

ATTACKS: Registry[Attack] = Registry("attack", "--attacks", "fedvtc_edge.attacks", error=UsageError)
"""In the order of the report."""


def register(attack: Attack) -> None:
    """Make an attack part of every audit, and available to ``--attacks`` by its name.

    Raises:
        UsageError: The name is taken.
    """
    ATTACKS.register(attack.name, attack)


for _attack in (
    Decode(),
    Inversion(),
    ExactRecovery(),
    Membership(),
    SecondMoments(),
    Differencing(),
    Inversion(joint=True),
    Shadow(),
):
    register(_attack)

VIEWS = ("server", "server+device", "colluders", "device", "eavesdropper")
"""Adversaries, see :class:`~fedvtc_edge.attacks.adversary.view.View`."""

GROUPS = ((1, 1), (2, 2), (3, 5), (6, 19), (20, 99), (100, 2**62))
"""Numbers of records of a class that are reported together."""

STAGED = (1, 2, 5, 20, 100)
"""Numbers of records of each class of a staged client."""


@dataclass(frozen=True, eq=False)
class Group:
    """Trials that are reported together: of one adversary, and of about as many records."""

    name: str
    trials: list[Trial]

    @property
    def who(self) -> str:
        """The adversary."""
        return self.trials[0].case.view.who


@dataclass(frozen=True, eq=False)
class Example:
    """One trial's picture, for the report's grid.

    Args:
        attack: Whose.
        group: Of which group.
        trial: With the truth.
        guess: With the picture.
        null: Picture of another trial of the class, or None.
    """

    attack: str
    group: str
    trial: Trial
    guess: Guess
    null: Guess | None


def parse_attacks(names: Sequence[str] | None) -> list[Attack]:
    """Attacks by name, all where none is named.

    Raises:
        UsageError: An unknown name.
    """
    return [ATTACKS.find(name) for name in names or ATTACKS.names()]


def parse_views(names: Sequence[str] | None) -> frozenset[str]:
    """Adversaries by name, all where none is named.

    Raises:
        UsageError: An unknown name.
    """
    unknown = [name for name in names or () if name not in VIEWS]
    if unknown:
        raise UsageError(f"no adversary {unknown[0]!r}", hint=f"adversaries: {', '.join(VIEWS)}")
    return frozenset(names or VIEWS)


def groups_of(
    laboratory: Laboratory, seen: Sequence[Observation], number: int, *, staged: Sequence[int]
) -> list[Group]:
    """All trials: on what was seen, and on what is staged.

    Args:
        laboratory: The run.
        seen: What adversaries saw of it.
        number: Trials per group, about.
        staged: Records per class of staged clients.
    """
    pools: dict[tuple[str, str], list[Trial]] = {}
    for one in seen:
        among = sum(other.who == one.who for other in seen)
        extract = laboratory.extractor(one)
        for trial in laboratory.trials(one, -(-2 * number // among), extract):
            pools.setdefault((one.who, _range(trial.count)), []).append(trial)
    groups = [Group(f"n = {name}", trials[:number]) for (_, name), trials in pools.items()]
    if laboratory.anchor is not None:
        stage = UploadStager(laboratory)
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
    """Let each attack answer each group.

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
