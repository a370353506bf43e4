"""Membership of images in what a client's own classifier and decoder were trained on.

The view is that of a device taken apart: weights, and the codes that ψ synthesises from.
Members and non-members are compared within classes alone, or the attack would be praised for
finding out which classes a client has. Scores of one model depend on each other: intervals that
take them for independent are too narrow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge.errors import ScoreError
from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.statistics.class_statistics import Array
from fedvtc_edge.training.knowledge import from_anchor, from_features
from fedvtc_edge.training.losses import ClassMoments

from ..adversary.observations import EVERYONE
from ..adversary.trials import AuditedRun
from ..adversary.view import Map
from ..scoring.findings import Finding, Policy, rates_of
from ..scoring.metrics import auc, auc_interval

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


@dataclass(frozen=True, eq=False)
class MemorisationScores:
    """Scores of membership in one device's networks, and nearness of its synthetic images.

    Args:
        scores: By attack, scores of members [M] and of as many others of the same classes [M];
            higher is "more likely a member".
        labels: Their classes, [M].
        nearest: None without a decoder.
    """

    scores: dict[str, tuple[Array, Array]]
    labels: Indices
    nearest: Nearness | None


def memorised(
    parts: Parts,
    members: Tensor,
    member_labels: Indices,
    others: Tensor,
    other_labels: Indices,
    codes: ClassMoments | None,
    *,
    references: Sequence[Parts] = (),
    seed: int = 0,
) -> MemorisationScores:
    """Score members against others by all tests of this module.

    Args:
        members: Training images [N, channels, size, size] in [0, 1].
        member_labels: Classes, [N].
        others: Images that neither this client nor one of ``references`` was trained on:
            those of other clients would look harder than they are.
        other_labels: Classes, [M].
        codes: Means and deviations of the latents, [C, p], that ψ synthesises from: those of
            ``statistics.safetensors`` in the bundle.
        references: Other devices' networks, to calibrate difficulty with.
        seed: Seed of what is drawn.

    Returns:
        Scores by ``reconstruction`` and ``confidence``; with references also
        ``reconstruction, calibrated`` and ``confidence, calibrated``.

    Raises:
        ScoreError: No class has both members and others.
    """
    rng = np.random.default_rng(seed)
    inside, outside = matched(member_labels, other_labels, rng)
    labels = member_labels[inside]  # and as many of each class outside
    sides = ((members[inside], labels), (others[outside], other_labels[outside]))

    def scored(by: Parts, name: str) -> list[Array] | None:
        if name == "confidence":
            return [confidence_scores(by.classify, images, of) for images, of in sides]
        if by.decode is None:
            return None
        return [reconstruction_scores(by.extract, by.decode, images) for images, _ in sides]

    scores: dict[str, tuple[Array, Array]] = {}
    for name in ("reconstruction", "confidence"):
        own = scored(parts, name)
        if own is None:
            continue
        scores[name] = own[0], own[1]
        known = [found for by in references if (found := scored(by, name)) is not None]
        if known:
            scores[f"{name}, calibrated"] = (
                calibrated(own[0], [each[0] for each in known]),
                calibrated(own[1], [each[1] for each in known]),
            )
    nearest = None
    if parts.decode is not None and codes is not None:
        synthesise = synthesis_of(parts.decode, codes, torch.Generator().manual_seed(seed))
        nearest = nearest_ratio(synthesise, members, member_labels, others, other_labels, rng)
    return MemorisationScores(scores, labels, nearest)


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


def calibrated(scores: Array, references: Sequence[Array]) -> Array:
    """Scores [N] less what models give that never saw the images (Watson et al. 2022)."""
    result: Array = scores - np.mean(np.stack(references), axis=0)
    return result


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


_MOST = 2000
"""Most images of one client that are scored."""


def memorisation(audited: AuditedRun, policy: Policy, *, seed: int) -> list[Finding]:
    """Findings on membership by reconstruction error and confidence, and on synthetic images.

    Scores of each client are put in units of its own non-members, so that they can be pooled.
    """
    names = [name for name in audited.holdings if name != EVERYONE]
    parts = {name: _parts(audited, name) for name in names}
    codes = _codes(audited)
    pooled: dict[str, list[tuple[Array, Array]]] = defaultdict(list)
    nearer = []
    for name in names:
        where = audited.holdings[name][:_MOST]
        try:
            memory = memorised(
                parts[name],
                audited.images[where],
                audited.labels[where],
                audited.held,
                audited.held_labels,
                codes,
                references=[part for other, part in parts.items() if other != name],
                seed=seed,
            )
        except ScoreError:
            continue  # no held-out image of any of its classes
        for kind, (inside, outside) in memory.scores.items():
            middle, spread = float(np.median(outside)), float(outside.std()) or 1.0
            pooled[kind].append(((inside - middle) / spread, (outside - middle) / spread))
        if memory.nearest is not None:
            nearer.append(memory.nearest)
    found = []
    for kind, sides in pooled.items():
        inside, outside = (np.concatenate([pair[i] for pair in sides]) for i in (0, 1))
        found += _membership(kind, inside, outside, policy)
    if nearer:
        shares = [one.share for one in nearer]
        found.append(
            Finding(
                attack="memorised",
                view="device",
                metric="painted_nearer_to_training",
                value=float(np.mean(shares)),
                null=0.5,
                trials=len(shares),
                note=f"least p-value of {len(nearer)} clients: {min(o.chance for o in nearer):.3f}",
            )
        )
    return found


def _membership(kind: str, inside: Array, outside: Array, policy: Policy) -> list[Finding]:
    common: dict[str, Any] = {
        "attack": "memorised",
        "view": "device",
        "group": kind,
        "trials": len(inside),
    }
    low, high = auc_interval(inside, outside, policy.confidence)
    # Held-out images may simply be harder: only what is calibrated by other clients' models
    # has a null of one half.
    null = 0.5 if "calibrated" in kind else None
    value = auc(inside, outside)
    found = [Finding(metric="auc", value=value, low=low, high=high, null=null, **common)]
    return found + rates_of(inside, outside, policy, policy.confidence, common)


def _parts(audited: AuditedRun, client: str) -> Parts:
    model = audited.run.classifier(client, audited.shape, audited.classes)
    decoder = audited.run.decoder(client, audited.shape)
    return Parts(model, model.features, decoder)


def _codes(audited: AuditedRun) -> ClassMoments | None:
    published = audited.run.published()
    if published is None:
        return None
    latent = audited.config.method.latent
    device = audited.images.device
    if audited.anchor is None:
        return from_features(published, device=device).codes
    known = from_anchor(published, audited.anchor, latent=latent, device=device, teach=False)
    return known.codes
