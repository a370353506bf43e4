"""Findings about what clients' models and decoders remember, from a finished run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from fedvtc_edge.errors import ScoreError
from fedvtc_edge.statistics.class_statistics import Array
from fedvtc_edge.training.knowledge import from_anchor, from_features
from fedvtc_edge.training.losses import ClassMoments

from .adversary.laboratory import Laboratory
from .adversary.observations import EVERYONE
from .inference.memorised import Parts, memorised
from .scoring.findings import Finding, Policy, rates_of
from .scoring.metrics import auc, auc_interval

_MOST = 2000
"""Images of one client that are scored."""


def remembered(laboratory: Laboratory, policy: Policy, *, seed: int) -> list[Finding]:
    """Membership by reconstruction error and by confidence, and whose images paintings are near.

    Scores of each client are put in units of its own non-members, so that they can be pooled.
    """
    names = [name for name in laboratory.holdings if name != EVERYONE]
    parts = {name: _parts(laboratory, name) for name in names}
    codes = _codes(laboratory)
    pooled: dict[str, list[tuple[Array, Array]]] = defaultdict(list)
    nearer = []
    for name in names:
        where = laboratory.holdings[name][:_MOST]
        try:
            memory = memorised(
                parts[name],
                laboratory.images[where],
                laboratory.labels[where],
                laboratory.held,
                laboratory.held_labels,
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


def _parts(laboratory: Laboratory, client: str) -> Parts:
    model = laboratory.run.classifier(client, laboratory.shape, laboratory.classes)
    decoder = laboratory.run.decoder(client, laboratory.shape)
    return Parts(model, model.features, decoder)


def _codes(laboratory: Laboratory) -> ClassMoments | None:
    world = laboratory.run.published()
    if world is None:
        return None
    latent = laboratory.config.method.latent
    device = laboratory.images.device
    if laboratory.anchor is None:
        return from_features(world, device=device).codes
    known = from_anchor(world, laboratory.anchor, latent=latent, device=device, teach=False)
    return known.codes
