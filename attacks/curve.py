"""Curve of leakage against utility: what each setting costs, and what it stops.

Leakage is the share that the membership test identifies in staged uploads of the smallest
class that a setting allows; utility is the accuracy of the statistics-only classifier on what
the server would publish. Both are of the run's data, and cheap: nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from fedvtc_edge.privacy.release import estimate, release
from fedvtc_edge.privacy.release_spec import ReleaseSpec, spec_for_examples
from fedvtc_edge.statistics.class_statistics import GlobalStatistics, sum_of
from fedvtc_edge.statistics.discriminant import Discriminant

from .adversary.observations import EVERYONE
from .adversary.staging import ReleasePath, UploadStager
from .adversary.trials import AuditedRun, Indices, Trial
from .inference.membership import Membership
from .scoring.findings import Point, credit
from .scoring.metrics import proportion_interval

EPSILONS = (None, 8.0, 4.0, 1.0)
MINIMUM_COUNTS = (1, 5, 20)
MOMENTS = ("mean", "pooled", "class")
"""Uploads beside class means: nothing, one second-moment matrix, or a std per class."""


def curve(
    audited: AuditedRun, number: int, *, epsilons: Sequence[float | None] = EPSILONS
) -> Iterator[Point]:
    """Points of all settings; none for a run without an anchor.

    Args:
        epsilons: Private releases' ε, None for exact sums.
    """
    if audited.anchor is None:
        return
    for epsilon in epsilons:
        for moments in MOMENTS if epsilon is None else ("pooled",):
            path = _path(audited, epsilon, moments)
            stage = UploadStager(audited, path)
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
                    accuracy(stage, moments, minimum),
                )


def _path(audited: AuditedRun, epsilon: float | None, moments: str) -> ReleasePath:
    if epsilon is None:
        return ReleasePath(None, moments == "pooled")
    config = audited.config
    spec = spec_for_examples(
        classes=audited.classes,
        clients=config.clients.count,
        population=config.privacy.population,
        epsilon=epsilon,
        delta=config.privacy.delta,
        clip=config.privacy.clip,
        widest=config.method.anchor,
        second=True,
        pretrained=config.method.pretrained,
    )
    return ReleasePath(spec, pooled=True)


def _without_moments(trial: Trial) -> Trial:
    view = replace(trial.case.view, std=None, scatter=None, freedom=0.0)
    return replace(trial, case=replace(trial.case, view=view))


def accuracy(stage: UploadStager, moments: str, minimum: int) -> float:
    """Accuracy of the statistics-only classifier on what clients would upload."""
    audited, spec = stage.audited, stage.path.spec
    owners = [where for name, where in audited.holdings.items() if name != EVERYONE]
    if spec is not None:
        published = _private_statistics(stage, spec, owners)
    else:
        kept = []
        for where in owners:
            labels = audited.labels[where]
            count = np.bincount(labels, minlength=audited.classes)
            kept.append(where[count[labels] >= minimum])
        sums = [audited.sums(stage.anchor, where, pooled=stage.path.pooled) for where in kept]
        published = GlobalStatistics.from_sum(sum_of(sums))
        if moments == "mean":
            published = replace(published, std=np.ones_like(published.std), covariance=None)
    classify = Discriminant(published, device=torch.device("cpu"))
    scores = classify(stage.anchor.embed(audited.held))
    return float((scores.argmax(1).numpy() == audited.held_labels).mean())


def _private_statistics(
    stage: UploadStager, spec: ReleaseSpec, owners: Sequence[Indices]
) -> GlobalStatistics:
    audited = stage.audited
    about, total = audited.centre(stage.anchor), np.zeros(spec.size, np.int64)
    for where in owners:
        features = audited.embedded(stage.anchor, where).numpy()
        total += release(spec, features, audited.labels[where], about)
    return estimate(spec, total, len(owners), about)
