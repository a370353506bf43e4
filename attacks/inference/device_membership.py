"""Membership in clients' own classifiers and decoders, over all clients of a run.

The view is that of devices taken apart: weights, and the codes that ψ synthesises from. Four
scores per image, each the higher the more likely the image was trained on:

- *confidence*: log-odds of the true class under f;
- *reconstruction*: how near ψ(g(x)) is to x;
- *generated*: how near to x is the nearest of many images that ψ synthesises of its class;
- *latent*: how near to x a search over codes brings ψ, from the class' code on.

The first three are calibrated: less what the other devices say that were not trained on the image
either. Then each is put in units of the non-members of its class, for that a device has a class
says nothing of its images. Non-members of a client are the other clients' images and held-out ones:
so there are enough of them for a rate of 1 %.

Members of one model depend on each other; intervals that take them for independent are too narrow
by what they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge.errors import ScoreError
from fedvtc_edge.statistics.class_statistics import Array
from fedvtc_edge.training.knowledge import from_anchor, from_features
from fedvtc_edge.training.losses import ClassMoments

from ..adversary.trials import AuditedRun
from ..adversary.view import Map
from ..scoring.findings import LEAST_ACCUSED, Finding, Policy, rates_of
from ..scoring.metrics import auc, auc_interval, bonferroni
from .memorisation import (
    Nearness,
    Parts,
    confidence_scores,
    nearest_ratio,
    reconstruction_scores,
    synthesis_of,
)

Indices = NDArray[np.int64]

NOBODY = -1
"""Owner of images that no device was trained on."""

MOST_DEVICES, MOST_MEMBERS, MOST_OTHERS = 8, 200, 400
"""Devices that are attacked, images of each, and others that its decoder's codes are searched
for; the other scores see all."""

GENERATED = 400
"""Images synthesised of each class."""

SEARCH, RATE = 20, 0.1
"""Adam steps of a search over codes, and their length."""

_FEWEST, _TINY = 5, 1e-9


@dataclass(frozen=True, eq=False)
class Pool:
    """Images that devices are asked about.

    Args:
        images: [N, channels, size, size] in [0, 1].
        labels: Classes, [N].
        owners: Which device was trained on each, [N]; :data:`NOBODY` for none.
    """

    images: Tensor
    labels: Indices
    owners: Indices


Sides = tuple[Array, Array]
"""Scores of a device's members [M] and of non-members [N], in units of the non-members."""


def scores_of(
    devices: Sequence[Parts], pool: Pool, codes: ClassMoments | None, *, seed: int
) -> dict[str, list[Sides]]:
    """Scores of membership by kind, with one pair of sides for each device that has members.

    Args:
        codes: Means and deviations of the latents, [C, p], that ψ synthesises from; None: nothing
            is generated and no code is searched for.
        seed: Seed of what is drawn.
    """
    found: dict[str, list[Sides]] = {}
    tables: dict[str, list[Array | None]] = {
        "confidence": [
            confidence_scores(one.classify, pool.images, pool.labels) for one in devices
        ],
        "reconstruction": [_reconstruction(one, pool) for one in devices],
        "generated": [_generated(one, pool, codes, seed) for one in devices],
    }
    for kind, table in tables.items():
        for place, own in enumerate(table):
            if own is None:
                continue
            sides = _standard(_calibrated(own, table, place, pool), place, pool)
            found.setdefault(kind, []).extend(sides)
    rng = np.random.default_rng(seed)
    for place, one in enumerate(devices):
        if one.decode is None or codes is None:
            continue
        few = _fewer(pool, place, rng)
        scores = _latent(one.decode, few, codes)
        found.setdefault("latent", []).extend(_standard(scores, place, few))
    return {kind: sides for kind, sides in found.items() if sides}


def _reconstruction(parts: Parts, pool: Pool) -> Array | None:
    if parts.decode is None:
        return None
    errors = -reconstruction_scores(parts.extract, parts.decode, pool.images)
    scores: Array = -np.log(errors + _TINY)
    return scores


def _generated(parts: Parts, pool: Pool, codes: ClassMoments | None, seed: int) -> Array | None:
    if parts.decode is None or codes is None:
        return None
    synthesise = synthesis_of(parts.decode, codes, torch.Generator().manual_seed(seed))
    scores = np.zeros(len(pool.labels))
    for label in np.unique(pool.labels):
        made = synthesise(torch.full((GENERATED,), int(label)))
        where = np.flatnonzero(pool.labels == label)
        apart = torch.cdist(pool.images[where].flatten(1), made.flatten(1)).min(1).values
        scores[where] = -np.log(apart.double().numpy() + _TINY)
    return scores


def _latent(decode: Map, pool: Pool, codes: ClassMoments) -> Array:
    place = codes.mean[torch.from_numpy(pool.labels)].clone().requires_grad_()
    adam = torch.optim.Adam([place], lr=RATE)

    def errors() -> Tensor:
        return (decode(place) - pool.images).square().flatten(1).sum(1)

    for _ in range(SEARCH):
        (place.grad,) = torch.autograd.grad(errors().sum(), [place])  # the decoder gets none
        adam.step()
    with torch.no_grad():
        scores: Array = -np.log(errors().double().numpy() + _TINY)
    return scores


def _calibrated(own: Array, table: Sequence[Array | None], place: int, pool: Pool) -> Array:
    """Scores less those of devices that were not trained on the image; NaN without any."""
    known = [(at, other) for at, other in enumerate(table) if at != place and other is not None]
    if not known:
        return own
    total, number = np.zeros(len(own)), np.zeros(len(own))
    for at, other in known:
        blind = pool.owners != at
        total += np.where(blind, other, 0.0)
        number += blind
    return np.where(number > 0, own - total / np.maximum(number, 1), np.nan)


def _standard(scores: Array, place: int, pool: Pool) -> list[Sides]:
    """Members' and others' scores, within each class in units of the others; empty without any."""
    inside, outside = [], []
    for label in np.unique(pool.labels[pool.owners == place]):
        here = (pool.labels == label) & np.isfinite(scores)
        members = scores[here & (pool.owners == place)]
        others = scores[here & (pool.owners != place)]
        if len(members) and len(others) >= _FEWEST:
            middle, spread = float(np.median(others)), float(others.std()) or 1.0
            inside.append((members - middle) / spread)
            outside.append((others - middle) / spread)
    return [(np.concatenate(inside), np.concatenate(outside))] if inside else []


def _fewer(pool: Pool, place: int, rng: np.random.Generator) -> Pool:
    """All members of a device, and some others of its classes."""
    members = np.flatnonzero(pool.owners == place)
    others = np.flatnonzero(
        (pool.owners != place) & np.isin(pool.labels, np.unique(pool.labels[members]))
    )
    chosen = np.concatenate([members, rng.permutation(others)[:MOST_OTHERS]])
    return Pool(pool.images[chosen], pool.labels[chosen], pool.owners[chosen])


def memorisation(audited: AuditedRun, policy: Policy, *, seed: int) -> list[Finding]:
    """Findings on membership in the devices of a run, and on their synthetic images.

    By kind of score: over all devices, which is required, and of the device that gives most away.
    """
    rng = np.random.default_rng(seed)
    there = [name for name in audited.sample if audited.run.has_network(name)]
    names = [there[place] for place in sorted(rng.permutation(len(there))[:MOST_DEVICES])]
    if not names:
        return []
    devices = [_parts(audited, name) for name in names]
    where = [rng.permutation(audited.holdings[name])[:MOST_MEMBERS] for name in names]
    pool = Pool(
        torch.cat([*(audited.images[own] for own in where), audited.held]),
        np.concatenate([*(audited.labels[own] for own in where), audited.held_labels]),
        np.concatenate(
            [
                *(np.full(len(own), place) for place, own in enumerate(where)),
                np.full(len(audited.held), NOBODY),
            ]
        ).astype(np.int64),
    )
    codes = _codes(audited)
    scores = scores_of(devices, pool, codes, seed=seed)
    confidence = bonferroni(
        policy.confidence, max(sum(1 + len(sides) for sides in scores.values()), 1)
    )
    found = [
        finding
        for kind, sides in scores.items()
        for finding in _membership(kind, sides, policy, confidence)
    ]
    nearer = [
        near
        for own, parts in zip(where, devices, strict=True)
        if (near := _nearness(audited, parts, own, codes, rng)) is not None
    ]
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


def _membership(
    kind: str, sides: Sequence[Sides], policy: Policy, confidence: float
) -> list[Finding]:
    inside, outside = (np.concatenate([pair[i] for pair in sides]) for i in (0, 1))
    common: dict[str, Any] = {
        "attack": "memorised",
        "view": "device",
        "group": f"{kind}, all devices",
        "trials": len(inside),
    }
    found = []
    if min(len(inside), len(outside)) > 1:
        low, high = auc_interval(inside, outside, confidence)
        value = auc(inside, outside)
        found.append(Finding(metric="auc", value=value, low=low, high=high, null=0.5, **common))
    found += rates_of(inside, outside, policy, confidence, common)
    single = [
        finding
        for own, others in sides
        if len(others) * 0.01 >= LEAST_ACCUSED
        for finding in rates_of(
            own,
            others,
            policy,
            confidence,
            common | {"group": f"{kind}, worst device", "trials": len(own), "required": False},
        )
        if finding.metric == "tpr_at_1_percent_fpr"
    ]
    worst = max(
        single, key=lambda finding: (finding.low or 0.0, finding.value or 0.0), default=None
    )
    return found if worst is None else [*found, worst]


def _nearness(
    audited: AuditedRun,
    parts: Parts,
    own: Indices,
    codes: ClassMoments | None,
    rng: np.random.Generator,
) -> Nearness | None:
    if parts.decode is None or codes is None:
        return None
    synthesise = synthesis_of(parts.decode, codes, torch.Generator().manual_seed(0))
    ours = audited.images[own], audited.labels[own]
    try:
        return nearest_ratio(synthesise, *ours, audited.held, audited.held_labels, rng)
    except ScoreError:
        return None  # no held-out image of any of its classes


def _parts(audited: AuditedRun, client: str) -> Parts:
    model = audited.run.classifier(client, audited.shape, audited.classes)
    return Parts(model, model.features, audited.run.decoder(client, audited.shape))


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
