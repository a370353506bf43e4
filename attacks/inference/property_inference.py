"""Property inference: which share of a class' records has an attribute, told from its mean.

The attribute is one that any images have: brighter than most of the class. Uploads are staged
in pairs, one with a quarter of bright records and one with three quarters; an adversary with public
images says which is which. No threshold hangs on it: a claim about one record or client does not
cover what many records have in common, which is what statistics are for. The report says so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.statistics.class_statistics import Array

from ..adversary.staging import UploadStager
from ..adversary.trials import AuditedRun
from ..scoring.findings import Finding
from ..scoring.metrics import proportion_interval

RECORDS = 20
"""Records of each class in a staged upload."""

_FEW, _MANY = 0.25, 0.75
_RIDGE = 0.1
_CONFIDENCE = 0.95

Flags = NDArray[np.bool_]


def property_inference(audited: AuditedRun, number: int) -> list[Finding]:
    """The share of pairs that are told apart; nothing where there is no anchor, or too few records.

    Args:
        number: Pairs of class means, about.
    """
    if audited.anchor is None:
        return []
    stage = UploadStager(audited)
    bright = _bright(audited.images.flatten(1).mean(1).numpy(), audited.labels, audited)
    public = _bright(audited.public.flatten(1).mean(1).numpy(), audited.public_labels, audited)
    features = in_chunks(stage.anchor, audited.public).double().numpy()
    direction = _direction(features, audited.public_labels, public)
    pools = _pools(audited, bright)
    if not pools:
        return []
    told: list[float] = []
    null: list[float] = []
    who = "server"
    while len(told) < number:
        means = []
        for share in (_FEW, _MANY, 0.5, 0.5):
            where = np.concatenate([_drawn(audited, *pool, share) for pool in pools.values()])
            seen = stage.upload(where, stage.anchor, client="staged", who=who)
            who = seen.who
            means.append(seen.mean @ direction)
        for label in pools:
            few, many, one, other = (float(mean[label]) for mean in means)
            told.append(float(many > few))
            null.append(float(other > one))
    low, high = proportion_interval(sum(told), len(told), _CONFIDENCE)
    return [
        Finding(
            attack="property",
            view=who,
            metric="property_told",
            value=float(np.mean(told)),
            low=low,
            high=high,
            null=float(np.mean(null)),
            group=f"n = {RECORDS}, staged",
            trials=len(told),
            staged=True,
            note="a quarter or three quarters of a class brighter than most: guessing tells half; "
            "no claim about one record or client covers what many have in common",
        )
    ]


def _bright(brightness: Array, labels: NDArray[np.int64], audited: AuditedRun) -> Flags:
    """Whether each image is brighter than the median of the adversary's images of its class."""
    own = audited.public.flatten(1).mean(1).numpy()
    usual = np.array(
        [
            np.median(own[audited.public_labels == label])
            if np.any(audited.public_labels == label)
            else np.median(own)
            for label in range(audited.classes)
        ]
    )
    return np.asarray(brightness > usual[labels])


def _direction(features: Array, labels: NDArray[np.int64], bright: Flags) -> Array:
    """Linear discriminant of bright and dark images, within classes."""
    centred = features.copy()
    for label in np.unique(labels):
        centred[labels == label] -= features[labels == label].mean(0)
    covariance = centred.T @ centred / len(centred)
    covariance += _RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    apart = centred[bright].mean(0) - centred[~bright].mean(0)
    direction: Array = np.linalg.solve(covariance, apart)
    return direction


def _pools(
    audited: AuditedRun, bright: Flags
) -> dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Dark and bright records of each class that has enough of both."""
    most = round(RECORDS * _MANY)
    pools = {}
    for label in range(audited.classes):
        own = np.flatnonzero(audited.labels == label)
        dark, light = own[~bright[own]], own[bright[own]]
        if min(len(dark), len(light)) >= most:
            pools[label] = (dark, light)
    return pools


def _drawn(
    audited: AuditedRun, dark: NDArray[np.int64], light: NDArray[np.int64], share: float
) -> NDArray[np.int64]:
    many = round(RECORDS * share)
    return np.concatenate(
        [
            audited.rng.choice(dark, RECORDS - many, replace=False),
            audited.rng.choice(light, many, replace=False),
        ]
    )
