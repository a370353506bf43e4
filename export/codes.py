"""``statistics.safetensors`` of a bundle: what its graphs take as inputs.

Inputs, not weights, so that newer statistics need no new export.
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

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

LARGEST = 1e6
"""Largest magnitude of a statistic: far beyond any feature, far below float32's overflow."""

_HINT = "fetch the bundle again, or export it again"


@dataclass(frozen=True, eq=False)
class Codes:
    """Where the classes lie, for the synthesiser and for the training-free control.

    Args:
        mean: Centres of the latents, [C, p].
        std: Their spread, [C, p].
        known: Classes [C] of which at least one client had samples; no other was
            ever painted.
        own: Classes [C] of which this client had samples.
        knowledge: Statistics in the anchor's space, [C, m], or None.
    """

    mean: Floats
    std: Floats
    known: Mask
    own: Mask
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
            "own": self.own.astype(np.uint8),
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
    def from_bytes(cls, data: bytes, *, classes: int, latent: int, anchor: int | None) -> Codes:
        """Read what :meth:`to_bytes` wrote.

        Args:
            data: Bytes of the size that the manifest gave.
            classes: Number C of classes.
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
        known, own = arrays["known"] != 0, arrays["own"] != 0
        if not known.any():
            raise VerificationError("statistics: no class is known", hint=_HINT)
        knowledge = None if anchor is None else _knowledge(arrays, known, pooled)
        return cls(arrays["mean"], arrays["std"], known, own, knowledge)


def _moderate(value: NDArray[Any]) -> bool:
    return bool((np.abs(value) <= LARGEST).all())  # NaN compares false


def _knowledge(arrays: dict[str, NDArray[Any]], known: Mask, pooled: bool) -> GlobalStatistics:
    mean = arrays["anchor.mean"].astype(np.float64)
    covariance = None
    if pooled:
        covariance = np.zeros((mean.shape[1],) * 2)
        covariance[np.triu_indices(len(covariance))] = arrays["anchor.covariance"]
        covariance = covariance + np.triu(covariance, 1).T
        std = np.sqrt(np.maximum(np.diag(covariance), 0.0))[None].repeat(len(mean), 0)
    else:
        std = arrays["anchor.std"].astype(np.float64)
    # The number of samples is nobody's business on a device; that there were some is.
    return GlobalStatistics(known.astype(np.float64), mean, std, covariance)
