"""Two uploads, one record apart: their difference is that record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedvtc_edge.statistics.class_statistics import Array

from ..adversary.view import Case, Guess


def departed(before: Array, count: float, after: Array, left: float, centre: Array) -> Array:
    """Features of the record that left, less their expectation: φ − μ₀.

    About μ₀, because noise makes ``count − left`` differ from 1, and what is then left over
    of the mean would outweigh the record.

    Args:
        before: Mean of ``count`` records, [p].
        count: n, as seen.
        after: Mean of those that stayed, [p].
        left: How many they are, as seen.
        centre: μ₀, [p].

    Returns:
        n·(c_t − μ₀) − (n−1)·(c_t+1 − μ₀), [p].
    """
    difference: Array = count * (before - centre) - left * (after - centre)
    return difference


class Differencing:
    """φ = n·c_t − (n−1)·c_t+1, if one extractor made both; scores are cosines to it."""

    name = "differencing"

    def guess(self, cases: Sequence[Case], stream: torch.Generator) -> list[Guess | None]:
        """See :class:`~fedvtc_edge.attacks.adversary.view.Attack`."""
        return [self._one(case) for case in cases]

    def _one(self, case: Case) -> Guess | None:
        view, after = case.view, case.view.after
        if after is None or view.extract is None or view.population is None:
            return None
        # An exact view of nobody also says 1.
        left = after.count if view.noise > 0 else view.count - 1
        centre = view.population.mean
        gone = departed(view.mean, view.count, after.mean, left, centre)
        return Guess(cosines(case.features() - centre, gone))


def cosines(features: Array, direction: Array) -> Array:
    """Cosine of each row of [K, p] with [p]; 0 where one of the two is a zero vector."""
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(direction)
    nearness: Array = features @ direction / np.where(lengths > 0, lengths, 1.0)
    return nearness
