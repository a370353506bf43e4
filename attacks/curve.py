"""Leakage against utility: what each setting costs, and what it stops.

Leakage is what the membership test identifies in staged uploads of the smallest class that
a setting allows; utility is the accuracy of the training-free classifier on what the server
would publish. Both are of the run's data, and cheap: nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedvtc_edge.privacy.release import estimate, release
from fedvtc_edge.privacy.release_spec import ReleaseSpec, spec_for_examples
from fedvtc_edge.statistics.class_statistics import GlobalStatistics, sum_of
from fedvtc_edge.statistics.discriminant import Discriminant
from fedvtc_edge.training.client import in_chunks, one_by_one

from .adversary.laboratory import Laboratory, Trial
from .adversary.staging import Path, UploadStager
from .inference.membership import Membership
from .scoring.findings import credit
from .scoring.metrics import proportion_interval

EPSILONS = (None, 8.0, 4.0, 1.0)
MINIMUM_COUNTS = (1, 5, 20)
MOMENTS = ("mean", "pooled", "class")
"""What is uploaded beside class means: nothing, one second-moment matrix, or a std per class."""


@dataclass(frozen=True)
class Point:
    """One setting.

    Args:
        epsilon: Of a private release; None: exact sums.
        minimum: Smallest class count that is uploaded.
        moments: See :data:`MOMENTS`; of private releases, what their public rule allows.
        identification: Share of members told from 49 decoys.
        low: Its lower limit, of 95 %.
        high: Its upper limit.
        accuracy: Of the control on held-out images.
    """

    epsilon: float | None
    minimum: int
    moments: str
    identification: float
    low: float
    high: float
    accuracy: float

    def plain(self) -> dict[str, Any]:
        """As ``report.json`` holds it."""
        return dict(vars(self))


def curve(
    laboratory: Laboratory, number: int, *, epsilons: Sequence[float | None] = EPSILONS
) -> Iterator[Point]:
    """All settings, one after the other; none for a run without an anchor.

    Args:
        laboratory: The run.
        number: Trials per setting.
        epsilons: Of the settings.
    """
    if laboratory.anchor is None:
        return
    for epsilon in epsilons:
        for moments in MOMENTS if epsilon is None else ("pooled",):
            path = _path(laboratory, epsilon, moments)
            stage = UploadStager(laboratory, path)
            for minimum in MINIMUM_COUNTS:
                trials = stage.trials(minimum, number, repetitions=0)
                if not trials:
                    continue
                if moments == "mean":
                    trials = [_without_moments(trial) for trial in trials]
                guesses = Membership().guess([t.case for t in trials], torch.Generator())
                hits = [
                    credit(guess.scores, trial.target)
                    for guess, trial in zip(guesses, trials, strict=True)
                    if guess is not None
                ]
                low, high = proportion_interval(sum(hits), len(hits), 0.95)
                yield Point(
                    epsilon,
                    minimum,
                    moments,
                    float(np.mean(hits)),
                    low,
                    high,
                    accuracy(laboratory, stage, moments, minimum),
                )


def _path(laboratory: Laboratory, epsilon: float | None, moments: str) -> Path:
    if epsilon is None:
        return Path(None, moments == "pooled")
    config = laboratory.config
    spec = spec_for_examples(
        classes=laboratory.classes,
        clients=config.clients.count,
        population=config.privacy.population,
        epsilon=epsilon,
        delta=config.privacy.delta,
        clip=config.privacy.clip,
        widest=config.method.anchor,
        second=True,
    )
    return Path(spec, pooled=True)


def _without_moments(trial: Trial) -> Trial:
    view = replace(trial.case.view, std=None, scatter=None, freedom=0.0)
    return replace(trial, case=replace(trial.case, view=view))


def accuracy(laboratory: Laboratory, stage: UploadStager, moments: str, minimum: int) -> float:
    """Of the control, on what the run's clients would bring under this setting."""
    spec = stage.path.spec
    owners = [where for name, where in laboratory.holdings.items() if name != "all"]
    if spec is not None:
        world = _private_world(laboratory, stage, spec, owners)
    else:
        kept = []
        for where in owners:
            labels = laboratory.labels[where]
            count = np.bincount(labels, minlength=laboratory.classes)
            kept.append(where[count[labels] >= minimum])
        sums = [laboratory.sums(stage.anchor, where, pooled=stage.path.pooled) for where in kept]
        world = GlobalStatistics.from_sum(sum_of(sums))
        if moments == "mean":
            world = replace(world, std=np.ones_like(world.std), covariance=None)
    classify = Discriminant(world, device=torch.device("cpu"))
    scores = classify(in_chunks(stage.anchor, laboratory.held))
    right = scores.argmax(1).numpy() == laboratory.held_labels
    return float(right.mean())


def _private_world(
    laboratory: Laboratory, stage: UploadStager, spec: ReleaseSpec, owners: Sequence[Any]
) -> GlobalStatistics:
    about, total = laboratory.centre(stage.anchor), np.zeros(spec.size, np.int64)
    for where in owners:
        features = one_by_one(stage.anchor, laboratory.images[where]).numpy()
        total += release(spec, features, laboratory.labels[where], about)
    return estimate(spec, total, len(owners), about)
