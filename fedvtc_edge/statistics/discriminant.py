"""The classifier that needs no training: what the anchor statistics alone already know.

Pooled covariance gives the linear discriminant (the closed form of analytic
federated learning), per-class deviations give Gaussian naive Bayes. It is the
control beside every result, the teacher in fine-tuning, and half of the
combined prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .class_statistics import GlobalStatistics
from .gaussian import Coefficients, coefficients

ABSENT = -1e4
"""Log-posterior of a class that no client has; finite, so that no loss turns NaN."""


class Discriminant:
    """Gaussian class-conditional scores with a uniform prior over the classes seen.

    Args:
        temperature: Scores are divided by it; above 1 softens.
        head: Coefficients of other scores from the same statistics.
    """

    def __init__(
        self,
        known: GlobalStatistics,
        *,
        device: torch.device,
        temperature: float = 1.0,
        head: Coefficients | None = None,
    ) -> None:
        self._absent = torch.from_numpy(~known.present).to(device)
        self._quadratic, self._linear, self._offset = (
            torch.from_numpy(value / temperature).to(device, torch.float32)
            for value in head or coefficients(known)
        )

    @property
    def known(self) -> Tensor:
        """Classes [C] that anyone has."""
        return ~self._absent

    def scores(self, features: Tensor) -> Tensor:
        """Log-densities [N, C] of anchor features [N, m], up to what all classes share."""
        return features @ self._linear + features.square() @ self._quadratic + self._offset

    def __call__(self, features: Tensor) -> Tensor:
        """Log-posteriors [N, C] of anchor features [N, m]; differentiable."""
        return self.posteriors(self.scores(features))

    def posteriors(self, scores: Tensor) -> Tensor:
        """Log-posteriors [N, C] of scores, under the uniform prior."""
        # Left out of the sum and not merely scored low: far from all means, every score is.
        rivals = scores.masked_fill(self._absent, float("-inf"))
        return torch.log_softmax(rivals, dim=1).masked_fill(self._absent, ABSENT)
