"""``statistics.safetensors`` of a bundle, and classification by statistics alone.

Statistics are inputs of the graphs, not weights, so that newer ones need no new export.
The classifier and the combined prediction are NumPy versions of
:mod:`fedvtc_edge.statistics.discriminant` and of
:func:`fedvtc_edge.federation.methods.base.calibrated`; a test holds them together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedvtc_edge.errors import BundleError, VerificationError
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.statistics.gaussian import coefficients

from .manifest import STATISTICS
from .verification import Verified

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

LARGEST = 1e6
"""Largest magnitude of a statistic: far beyond any feature, far below float32's overflow."""

OWN_SHARE = 0.3
_ABSENT = -1e4

_HINT = "fetch the bundle again, or export it again"


@dataclass(frozen=True, eq=False)
class Codes:
    """Statistics of the classes, for the synthesiser and for classification without training.

    Args:
        mean: Mean of the latents, [C, p].
        std: Their standard deviation, [C, p].
        known: Classes [C] of which at least one client had samples; no other can be
            synthesised.
        knowledge: Statistics in the anchor's space, [C, m], or None.
    """

    mean: Floats
    std: Floats
    known: Mask
    knowledge: GlobalStatistics | None

    def refreshed(self, published: GlobalStatistics) -> Codes:
        """With what a server published later in place of what this holds.

        Anchored bundles keep their class codes, which are constants, and take over
        the anchor's statistics; all others take over prototypes and stds.

        Raises:
            BundleError: Statistics of other classes, another width or other moments.
        """
        values = (published.mean, published.std, published.covariance)
        if not published.present.any() or not all(_moderate(v) for v in values if v is not None):
            raise BundleError(
                f"statistics without any class, or with a value beyond {LARGEST:g}",
                hint="give a statistics.safetensors that a finished run published",
            )
        old = self.knowledge.mean.shape if self.knowledge is not None else self.mean.shape
        if published.mean.shape != old:
            raise BundleError(
                f"statistics of {published.mean.shape[0]} classes and {published.mean.shape[1]} "
                f"features, the bundle has {old[0]} and {old[1]}",
                hint="give the statistics.safetensors of a run with the same settings",
            )
        if self.knowledge is None:
            if published.covariance is not None:
                raise BundleError(
                    "pooled statistics of an anchor, the bundle has those of own features",
                    hint="give the statistics.safetensors of a run with the same settings",
                )
            return replace(
                self,
                mean=published.mean.astype(np.float32),
                std=published.std.astype(np.float32),
                known=published.present,
            )
        if (published.covariance is None) != (self.knowledge.covariance is None):
            raise BundleError(
                "statistics of other moments (diagonal, covariance) than the bundle's",
                hint="give the statistics.safetensors of a run with the same method.moments",
            )
        return replace(self, known=published.present, knowledge=published)

    def to_bytes(self) -> bytes:
        """float32 and uint8 safetensors; of a covariance the upper triangle is kept."""
        arrays: dict[str, NDArray[Any]] = {
            "mean": self.mean,
            "std": self.std,
            "known": self.known.astype(np.uint8),
            # Readers of version 0.1.0 want it; nobody needs to know which classes the client had.
            "own": np.ones(len(self.known), np.uint8),
        }
        if self.knowledge is not None:
            arrays["anchor.mean"] = self.knowledge.mean.astype(np.float32)
            if self.knowledge.covariance is None:
                arrays["anchor.std"] = self.knowledge.std.astype(np.float32)
            else:
                triangle = np.triu_indices(self.knowledge.mean.shape[1])
                arrays["anchor.covariance"] = self.knowledge.covariance[triangle].astype(np.float32)
        return save({name: np.ascontiguousarray(value) for name, value in arrays.items()})

    @classmethod
    def read(cls, verified: Verified) -> Codes:
        """Statistics of a verified bundle; see :meth:`from_bytes`."""
        manifest = verified.manifest
        return cls.from_bytes(
            verified.read(STATISTICS),
            classes=len(manifest.classes),
            latent=manifest.latent,
            anchor=manifest.anchor,
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, classes: int, latent: int, anchor: int | None) -> Codes:
        """Read what :meth:`to_bytes` wrote.

        Args:
            data: Bytes of the size that the manifest gave.
            latent: Width p of the latents.
            anchor: Width m of the anchor's features, or None.

        Raises:
            VerificationError: Other keys, types or shapes, or a value that cannot be.
        """
        try:
            arrays = load(data)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise VerificationError(
                f"statistics are not safetensors: {error}", hint=_HINT
            ) from None
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "mean": ((classes, latent), np.float32),
            "std": ((classes, latent), np.float32),
            "known": ((classes,), np.uint8),
            "own": ((classes,), np.uint8),
        }
        pooled = "anchor.covariance" in arrays
        if anchor is not None:
            shapes["anchor.mean"] = ((classes, anchor), np.float32)
            if pooled:
                shapes["anchor.covariance"] = ((anchor * (anchor + 1) // 2,), np.float32)
            else:
                shapes["anchor.std"] = ((classes, anchor), np.float32)
        if set(arrays) != set(shapes):
            raise VerificationError(
                f"statistics hold {', '.join(sorted(arrays))[:200]}, "
                f"expected {', '.join(sorted(shapes))}",
                hint=_HINT,
            )
        for name, (shape, dtype) in shapes.items():
            value = arrays[name]
            if value.shape != shape or value.dtype != dtype or not _moderate(value):
                raise VerificationError(
                    f"statistics: {name} is {value.dtype} {list(value.shape)} or not finite, "
                    f"expected {np.dtype(dtype)} {list(shape)} up to {LARGEST:g}",
                    hint=_HINT,
                )
            if name.endswith("std") and (value < 0).any():
                raise VerificationError(f"statistics: {name} is negative", hint=_HINT)
        known = arrays["known"] != 0
        if not known.any():
            raise VerificationError("statistics: no class is known", hint=_HINT)
        knowledge = None if anchor is None else _knowledge(arrays, known, pooled)
        return cls(arrays["mean"], arrays["std"], known, knowledge)


def _moderate(value: NDArray[Any]) -> bool:
    return bool((np.abs(value) <= LARGEST).all())  # NaN compares false


def _knowledge(arrays: dict[str, NDArray[Any]], known: Mask, pooled: bool) -> GlobalStatistics:
    mean = arrays["anchor.mean"].astype(np.float64)
    covariance = None
    if pooled:
        covariance = np.zeros((mean.shape[1],) * 2)
        triangle = np.triu_indices(len(covariance))
        covariance[triangle] = covariance.T[triangle] = arrays["anchor.covariance"]
        std = np.sqrt(np.maximum(np.diag(covariance), 0.0))[None].repeat(len(mean), 0)
    else:
        std = arrays["anchor.std"].astype(np.float64)
    # A device learns that there were samples, not how many.
    return GlobalStatistics(known.astype(np.float64), mean, std, covariance)


class StatisticsClassifier:
    """Log-posteriors from the anchor's features and the published statistics in its space.

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


def combined(own: Floats, control: Floats) -> Floats:
    """Own model and statistics together: their normalised geometric mean (docs/decisions/0031).

    Args:
        own: Log-probabilities of the own model, [N, C].
        control: Those of the statistics alone, [N, C].

    Returns:
        Log-posteriors [N, C].
    """
    pooled = log_softmax(OWN_SHARE * own + (1 - OWN_SHARE) * control)
    return pooled.astype(np.float32)


def log_softmax(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Over classes, [N, C]; -∞ stays -∞."""
    result: NDArray[np.floating] = scores - _log_sum(scores)
    return result


def _log_sum(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    highest = scores.max(axis=1, keepdims=True)
    total: NDArray[np.floating] = np.exp(scores - highest).sum(axis=1, keepdims=True)
    result: NDArray[np.floating] = np.log(total) + highest
    return result
