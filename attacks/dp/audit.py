"""The claim of a run, put to the test on its own releases; see :mod:`.dp`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedvtc_edge.privacy.release_spec import ClientReleaseSpec
from fedvtc_edge.statistics.class_statistics import Array
from fedvtc_edge.training.client import one_by_one

from ..adversary.laboratory import Laboratory
from ..adversary.observations import EVERYONE
from . import AuditResult, ClientRelease, ExampleRelease, PrivacyClaim, audit, trials_for
from .releases import Records, canary, canary_client, joined

CONFIDENCE = 0.99
"""That a true claim is not called refuted: at 0.95, six of a hundred true ones were, at worst."""

_MOST_RECORDS = 200
"""Of the client whose upload is made over and over: others add nothing but time."""


def audit_claim(
    laboratory: Laboratory, claim: PrivacyClaim, *, quick: bool
) -> Mapping[str, Any] | None:
    """Try to refute the claim of a run on its own release path.

    The worlds differ in a canary, which moves the sums by all of the clip bound, and in a natural
    record (or a whole client); all other data are the run's.

    Args:
        laboratory: The run.
        claim: Its own, or what a user says of it.
        quick: The canary alone.

    Returns:
        ``dp`` of the report; None where the run has no noise or its claim no δ.
    """
    if laboratory.spec is None or claim.delta is None:
        return None
    played = _mechanisms(laboratory)
    played = dict(list(played.items())[:1]) if quick else played
    worlds = f"with and without one {claim.unit or 'example'}, all else equal"
    if laboratory.config.privacy.mode == "example":
        # DP-SGD's steps are not played over: what is audited is the release, by its own claim.
        claim = next(iter(played.values())).claim
        worlds += "; of the whole budget, the share that uploads spend"
    results: dict[str, AuditResult] = {}
    for name, mechanism in played.items():
        numbers = len(mechanism.blocks) * mechanism.draws
        trials = trials_for(claim, confidence=CONFIDENCE, attacks=len(played), numbers=numbers)
        results[name] = audit(
            mechanism,
            claim,
            trials=trials,
            confidence=CONFIDENCE,
            control=mechanism.halved(),
            attacks=len(played),
        )
    worst = max(results.values(), key=lambda result: result.lower_bound)
    return {
        "epsilon": claim.epsilon,
        "lower_bound": worst.lower_bound,
        "control_lower_bound": max(result.control.best for result in results.values()),
        "control_caught": any(r.control.best > claim.epsilon for r in results.values()),
        "trials": min(result.trials for result in results.values()),
        "worlds": worlds,
        "mechanisms": [
            {
                "name": name,
                "lower_bound": result.lower_bound,
                "verdict": result.verdict,
            }
            for name, result in results.items()
        ],
    }


def _mechanisms(laboratory: Laboratory) -> dict[str, ExampleRelease | ClientRelease]:
    spec, centre = laboratory.spec, laboratory.centre(laboratory.anchor)
    assert spec is not None
    owners = [name for name in laboratory.holdings if name != EVERYONE]
    away: Array = np.ones(spec.width) / spec.width**0.5
    label = int(laboratory.labels[laboratory.holdings[owners[0]][0]])
    if isinstance(spec, ClientReleaseSpec):
        clients = [_records(laboratory, name) for name in owners]
        odd = canary_client(spec, centre, away, label)

        def worlds(one: Records) -> ClientRelease:
            return ClientRelease(spec, (clients, [*clients, one]), centre, draws=spec.shares)

        return {
            "a client that moves the sum most": worlds(odd),
            f"{owners[0]}": ClientRelease(spec, (clients[1:], clients), centre, draws=spec.shares),
        }
    features, labels = _records(laboratory, owners[0])
    own = (features, labels)
    return {
        "a record that moves the sums most": ExampleRelease(
            spec, (own, joined(own, canary(spec, centre, away, label))), centre, spec.shares
        ),
        f"a record of {owners[0]}": ExampleRelease(
            spec, ((features[1:], labels[1:]), own), centre, spec.shares
        ),
    }


def _records(laboratory: Laboratory, client: str) -> Records:
    where = laboratory.holdings[client][:_MOST_RECORDS]
    extract = laboratory.anchor or laboratory.model(client)
    features = one_by_one(extract, laboratory.images[where]).double().numpy()
    return features, laboratory.labels[where]
