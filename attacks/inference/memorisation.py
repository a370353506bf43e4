"""Measures of what a classifier or decoder remembers of images: scores, and nearness.

:mod:`.device_membership` puts them together over the devices of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge.errors import ScoreError
from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.statistics.class_statistics import Array
from fedvtc_edge.training.losses import ClassMoments

from ..adversary.view import Map

Indices = NDArray[np.int64]
Synthesis = Callable[[Tensor], Tensor]
"""Labels [N] to images [N, channels, size, size]; other images at each call."""

PER_CLASS, SPLITS = 50, 500
"""Images synthesised of a class, and random splits that the share nearer to training data is
compared with."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The networks of one device.

    Args:
        classify: Classifier f, images [N, channels, size, size] in [0, 1] to logits [N, C].
        extract: Extractor g, images to features [N, p].
        decode: Decoder ψ, features to images; None for methods without one. It is trained on
            g's features in anchored runs, too: only its codes are others there.
    """

    classify: Map
    extract: Map
    decode: Map | None


@dataclass(frozen=True, eq=False)
class Nearness:
    """Distances of synthetic images to training data, compared with those to other images.

    Args:
        ratios: Logarithm of the distance to the nearest training image over that to the nearest
            of equally many others of the class, [P]; below 0: nearer to training data.
        labels: Classes of the synthetic images, [P].
        share: Share of synthetic images that are nearer to training data; a tie is a half.
        chance: Share of random splits of the same images that reach ``share``: a p-value,
            for the images of a class share their nearest ones and are not independent.
    """

    ratios: Array
    labels: Indices
    share: float
    chance: float


def matched(members: Indices, others: Indices, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Places of as many members as others of every class, and of as many as there are.

    Args:
        members: Labels [N].
        others: Labels [M].

    Returns:
        Places of the chosen, both [K] and in the order of the same labels.

    Raises:
        ScoreError: No class has both.
    """
    inside, outside = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for label in np.intersect1d(members, others):
        sides = np.flatnonzero(members == label), np.flatnonzero(others == label)
        count = min(map(len, sides))
        inside.append(rng.choice(sides[0], count, replace=False))
        outside.append(rng.choice(sides[1], count, replace=False))
    if len(inside) == 1:
        raise ScoreError(
            "members and others have no class in common",
            hint="compare with images of the client's own classes",
        )
    return np.concatenate(inside), np.concatenate(outside)


def reconstruction_scores(extract: Map, decode: Map, images: Tensor) -> Array:
    """−‖x − ψ(g(x))‖² per image, [N]: ψ was trained to bring members back."""

    def score(x: Tensor) -> Tensor:
        return -(decode(extract(x)) - x).square().flatten(1).sum(1)

    scores: Array = in_chunks(score, images).double().numpy()
    return scores


def confidence_scores(classify: Map, images: Tensor, labels: Indices) -> Array:
    """log(p / (1 − p)) of the true class, [N] (Carlini et al. 2022, without shadow models).

    Computed from logits: a p that rounds to 1 has lost its order.
    """
    logits = in_chunks(classify, images).double()
    places = torch.from_numpy(np.asarray(labels, np.int64))[:, None]
    true = logits.gather(1, places)[:, 0]
    rest = logits.scatter(1, places, -torch.inf).logsumexp(1)
    scores: Array = (true - rest).numpy()
    return scores


def synthesis_of(decode: Map, codes: ClassMoments, stream: torch.Generator) -> Synthesis:
    """Synthesis by ψ(c + σε)."""

    def synthesise(labels: Tensor) -> Tensor:
        mean, std = codes.mean[labels], codes.std[labels]
        return in_chunks(decode, mean + std * torch.randn(mean.shape, generator=stream))

    return synthesise


def nearest_ratio(
    synthesise: Synthesis,
    members: Tensor,
    member_labels: Indices,
    others: Tensor,
    other_labels: Indices,
    rng: np.random.Generator,
    *,
    per_class: int = PER_CLASS,
) -> Nearness:
    """Compare synthetic images' distances to training data and to equally many others.

    Args:
        member_labels: Classes, [N].
        others: Images of the same distribution that were not trained on.
        other_labels: Classes, [M].
        rng: Draws which images stand for a class, and random splits.
        per_class: Images synthesised of each class that has both.

    Raises:
        ScoreError: No class has both.
    """
    inside, outside = matched(member_labels, other_labels, rng)
    ratios, labels, splits = [], [], np.zeros(SPLITS)
    for label in np.unique(member_labels[inside]):
        ours = members[inside[member_labels[inside] == label]]
        theirs = others[outside[other_labels[outside] == label]]
        made = synthesise(torch.full((per_class,), int(label)))
        distance = _distances(made, torch.cat([ours, theirs]))
        ratios.append(_ratio(distance, np.arange(len(ours))))
        labels.append(np.full(per_class, label, np.int64))
        for split in range(SPLITS):
            chosen = rng.permutation(distance.shape[1])[: len(ours)]
            splits[split] += _nearer(_ratio(distance, chosen))
    nearer = _nearer(np.concatenate(ratios))
    # The true split is one of those that could have been drawn: never a p-value of 0.
    chance = (1 + np.sum(splits >= nearer)) / (1 + SPLITS)
    total = np.concatenate(ratios)
    return Nearness(total, np.concatenate(labels), nearer / len(total), float(chance))


def _distances(first: Tensor, second: Tensor) -> Array:
    # Not by a matrix product, which is faster and rounds small distances away.
    mode = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(first.flatten(1).double(), second.flatten(1).double(), compute_mode=mode)
    distances: Array = apart.numpy()
    return distances


def _ratio(distance: Array, chosen: Indices) -> Array:
    """Distances [P, 2n] to images of which ``chosen`` are taken for training data."""
    inside = distance[:, chosen].min(1)
    outside = np.delete(distance, chosen, 1).min(1)
    tiny = np.finfo(np.float64).tiny  # a synthetic image that *is* one has no logarithm
    ratio: Array = np.log(np.maximum(inside, tiny)) - np.log(np.maximum(outside, tiny))
    return ratio


def _nearer(ratios: Array) -> float:
    return float(np.sum(ratios < 0) + np.sum(ratios == 0) / 2)
