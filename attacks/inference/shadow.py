"""Membership without the clients' extractor, from a few images with known hidden features."""

from __future__ import annotations

import numpy as np
import torch

from fedvtc_edge.statistics.class_statistics import Array

from ..adversary.view import Case, CaseAttack, Guess

_RIDGE = 0.1


class Shadow(CaseAttack):
    """Ridge map from an extractor that everybody can build to the client's hidden one.

    The pairs are images whose hidden features the adversary came to know: its own, if a client
    let it have them measured, or uploads of one known record. Without pairs, the public
    extractor itself stands in, and the attack is blind.
    """

    name = "shadow"

    def answer(self, case: Case) -> Guess | None:
        """Answer one case."""
        pairs = case.view.pairs
        if pairs is None:
            return None
        with torch.no_grad():
            features = pairs.substitute(case.candidates).double().numpy()
        guessed = features
        if len(pairs.hidden):
            guessed = ridge(pairs.known, pairs.hidden, features)
        elif features.shape[1] != len(case.view.mean):
            return None
        return Guess(-np.square(guessed - case.view.mean).sum(1))


def ridge(known: Array, hidden: Array, features: Array) -> Array:
    """Hidden features of records by linear regression on pairs, in the dual form.

    Args:
        known: Substitute's features of the pairs, [P, q].
        hidden: Their hidden features, [P, p].
        features: Substitute's features of records, [K, q].

    Returns:
        [K, p].
    """
    middle, centre = known.mean(0), hidden.mean(0)
    gram = (known - middle) @ (known - middle).T
    gram += _RIDGE * max(np.trace(gram) / len(gram), 1e-12) * np.eye(len(gram))
    weights = np.linalg.solve(gram, hidden - centre)
    mapped: Array = ((features - middle) @ (known - middle).T) @ weights + centre
    return mapped
