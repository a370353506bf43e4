"""The training-free classifier on a device, and the prediction that uses both.

NumPy twins of :mod:`fedvtc_edge.statistics.discriminant` and of
:func:`fedvtc_edge.federation.methods.base.calibrated`; a test holds them together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.errors import BundleError
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.statistics.gaussian import coefficients

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

CALIBRATION = 0.5
_ABSENT = -1e4


class StatisticsClassifier:
    """Log-posteriors from the anchor's features and the published statistics alone.

    Args:
        knowledge: Statistics in the anchor's space.

    Raises:
        BundleError: A covariance that no data have.
    """

    def __init__(self, knowledge: GlobalStatistics) -> None:
        self._absent = ~knowledge.present
        try:
            found = coefficients(knowledge)
        except np.linalg.LinAlgError:
            raise BundleError(
                "the published covariance cannot be inverted", hint="export or refresh the bundle"
            ) from None
        self._quadratic, self._linear, self._offset = (value.astype(np.float32) for value in found)

    def __call__(self, features: Floats) -> Floats:
        """[N, m] → log-posteriors [N, C]."""
        scores = features @ self._linear + np.square(features) @ self._quadratic + self._offset
        scores = np.where(self._absent, -np.inf, scores)
        return np.where(self._absent, _ABSENT, log_softmax(scores)).astype(np.float32)


def calibrated(own: Floats, control: Floats, present: Mask) -> Floats:
    """Each expert where it knows more (docs/decisions/0007).

    Args:
        own: log f_k, [N, C].
        control: log t, [N, C].
        present: Classes [C] of which the client had samples.

    Returns:
        Log-posteriors [N, C].
    """
    if not present.any():
        return control
    group = _log_sum(np.where(present, control, -np.inf))
    within = log_softmax(np.where(present, control + CALIBRATION * own, -np.inf))
    return np.where(present, within + group, control).astype(np.float32)


def log_softmax(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Over classes, [N, C]; -∞ stays -∞."""
    result: NDArray[np.floating] = scores - _log_sum(scores)
    return result


def _log_sum(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    highest = scores.max(axis=1, keepdims=True)
    total: NDArray[np.floating] = np.exp(scores - highest).sum(axis=1, keepdims=True)
    result: NDArray[np.floating] = np.log(total) + highest
    return result
