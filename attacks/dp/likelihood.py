"""How much better one world explains an upload than the other does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.privacy.design import Array

Blocks = NDArray[np.int64]
"""Per number of an upload, [d], the block it is in: noise within one is alike."""

CERTAIN = 4.0
"""Standard errors that a block's noise must differ by between the worlds to count as different.
By chance alone it happens once in 16,000 blocks, so that the score of an honest Gaussian
mechanism is linear, and itself exactly Gaussian."""

_EXACT = 1e-9
"""Relative scale below which noise counts as none; the float64 of a score ends there."""


@dataclass(frozen=True, eq=False)
class LikelihoodRatio:
    """log p₁(x) / p₀(x) of independent Gaussians: no test of Gaussian noise is stronger.

    It is over *all* numbers of the upload, and sees both what moves and what becomes noisier:
    a scale that depends on a record gives the record away as its mean does.

    Args:
        means: Of the uploads of world 0 and 1, [2, d].
        scales: Standard deviations of their numbers, [2, d], above 0.
    """

    means: Array
    scales: Array

    def __call__(self, uploads: Array) -> Array:
        """Scores [N] of uploads [N, d]; a higher one speaks for world 1."""
        zero, one = (
            (uploads - mean) / scale for mean, scale in zip(self.means, self.scales, strict=True)
        )
        # Not zero² − one²: what cancels is far larger than what is left.
        ratio: Array = ((zero - one) * (zero + one)).sum(1) / 2
        return ratio + float(np.log(self.scales[0] / self.scales[1]).sum())


def choose(
    zeros: Array, ones: Array, blocks: Blocks, exact: tuple[Array, Array] | None
) -> LikelihoodRatio:
    """The likelihood ratio, from uploads that nothing else is concluded from.

    Args:
        zeros: Uploads of world 0, [N, d], N ≥ 2.
        ones: Uploads of world 1, [N, d].
        blocks: Which numbers' noise is alike.
        exact: Both worlds' uploads without noise, [d] each, to whom they are known.
    """
    worlds = (zeros, ones)
    means = np.stack([world.mean(0) for world in worlds])
    sizes = np.maximum(np.bincount(blocks), 1)
    spent = [np.square(world - mean).sum(0) for world, mean in zip(worlds, means, strict=True)]
    freedom = sizes * (len(zeros) - 1)
    variances = np.stack([np.bincount(blocks, squares) for squares in spent]) / freedom
    largest = np.zeros(len(sizes))
    np.maximum.at(largest, blocks, np.abs(np.concatenate(worlds)).max(0))
    floor = _EXACT * np.where(largest > 0, largest, 1.0)
    variances = np.maximum(variances, np.square(floor))
    apart = np.abs(np.log(variances[1] / variances[0])) > CERTAIN * np.sqrt(4 / freedom)
    scales = np.sqrt(np.where(apart, variances, variances.mean(0)))
    return LikelihoodRatio(
        means=means if exact is None else np.stack(exact), scales=scales[:, blocks]
    )
