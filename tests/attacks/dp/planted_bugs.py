"""Mechanisms with seeded noise, honest ones and three that are wrong in well-known ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fedvtc_edge.attacks.dp.releases import blocks_of, canary, canary_client, claim_of_spec
from fedvtc_edge.privacy.claim import Claim
from fedvtc_edge.privacy.release import bounded_sums, clipped_upload, contributions
from fedvtc_edge.privacy.release_spec import ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.privacy.sampler import GRID

Array = NDArray[Any]
WIDTH, CLASSES = 16, 10
CENTRE = np.zeros(WIDTH)


@dataclass(frozen=True, eq=False)
class Noised:
    """Two exact uploads with Gaussian noise, rounded: as the real one, but with a seed."""

    means: tuple[Array, Array]
    scales: tuple[Array | float, Array | float]
    blocks: NDArray[np.int64]
    claim: Claim
    seed: int = 0
    known: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "_stream", np.random.default_rng(self.seed))

    def release(self, world: int) -> Array:
        noise = self._stream.standard_normal(len(self.means[world]))  # type: ignore[attr-defined]
        return np.rint(self.means[world] + self.scales[world] * noise)

    def exact(self, world: int) -> Array | None:
        return self.means[world] if self.known else None

    def seeded(self, seed: int) -> Noised:
        return replace(self, seed=seed)

    def halved(self) -> Noised:
        zero, one = self.scales
        return replace(self, scales=(zero / 2, one / 2), seed=self.seed + 10**6)


def noised(spec: ReleaseSpec, zero: Array, one: Array) -> Noised:
    """With the noise that the design claims to be enough."""
    scale = float(spec.share)
    return Noised((zero, one), (scale, scale), blocks_of(spec), claim_of_spec(spec))


def mu_of(mechanism: Noised) -> float:
    """The true μ, where the noise is the same in both worlds."""
    zero, one = mechanism.means
    return float(np.linalg.norm((one - zero) / mechanism.scales[0]))


# ---------------------------------------------------------------- a: a retrained extractor


@cache
def digits() -> tuple[Array, Array]:
    x, y = load_digits(return_X_y=True)
    return x / 16, y.astype(np.int64)


def extractor(images: Array) -> Callable[[Array], Array]:
    """g trained on images: their whitened principal components. No chance is involved."""
    middle = images.mean(0)
    covariance = (images - middle).T @ (images - middle) / len(images)
    values, vectors = np.linalg.eigh(covariance + 0.01 * np.eye(images.shape[1]))
    values, vectors = values[-WIDTH:], vectors[:, -WIDTH:]
    vectors = vectors * np.sign(vectors.sum(0))

    def features(x: Array) -> Array:
        z = (x - middle) @ vectors / np.sqrt(values)
        return z / np.linalg.norm(z, axis=1, keepdims=True) * np.sqrt(WIDTH)

    return features


def trained(kind: str, epsilon: float, *, retrained: bool, records: int = 95) -> Noised:
    """A client's release with and without one record; g fixed, or trained on what is released.

    The canary is a natural image, a mislabelled one or a noise image.
    """
    x, y = digits()
    spec = ReleaseSpec(CLASSES, WIDTH, False, 1.0, epsilon, 1e-5)
    image, label = {
        "natural": (x[500], y[500]),
        "mislabelled": (x[500], (y[500] + 3) % CLASSES),
        "noise": (np.random.default_rng(1).random(64), 4),
    }[kind]
    worlds = [
        (x[:records], y[:records]),
        (np.vstack([x[:records], image]), np.append(y[:records], label)),
    ]
    public = extractor(x[1000:])
    zero, one = (
        bounded_sums(spec, (extractor(xs) if retrained else public)(xs), ys, CENTRE)
        for xs, ys in worlds
    )
    return noised(spec, zero, one)


# ---------------------------------------------------------------- b: clipped class by class


def clipped(epsilon: float, *, per_class: bool) -> Noised:
    """A federation's sum with and without a client that has all classes."""
    spec = ClientReleaseSpec(CLASSES, WIDTH, False, 1.0, epsilon, 1e-5, unit=5.0)
    draw = np.random.default_rng(0)
    parts = [canary_client(spec, CENTRE, draw.normal(size=WIDTH), c) for c in range(CLASSES)]
    uploads = [clipped_upload(spec, *part, CENTRE) for part in parts]
    if per_class:
        one = sum(uploads)  # each class by itself within the bound
    else:
        features, labels = (np.concatenate(side) for side in zip(*parts, strict=True))
        one = clipped_upload(spec, features, labels, CENTRE)
    others = draw.integers(-(10**7), 10**7, spec.size)
    return noised(spec, others, others + one)


# ---------------------------------------------------------------- c: a private scale


def averaged(epsilon: float, *, private: bool, moved: bool, records: int = 10) -> Noised:
    """Means of one class, noised for n records: the client's own number, or a public one.

    ``moved``: whether the record also moves the mean; otherwise the scale alone tells.
    """
    spec = ReleaseSpec(CLASSES, 64, False, 1.0, epsilon, 1e-5)
    draw = np.random.default_rng(0)
    centre = np.zeros(64)
    first = draw.normal(size=(records, 64))
    sums = contributions(spec, first / np.linalg.norm(first, axis=1)[:, None] * 8, centre)[1]
    zero = sums.sum(0)
    sign = -1.0 if moved else 1.0
    extra = contributions(spec, canary(spec, centre, sign * zero, 0)[0], centre)[1][0]
    if not moved:  # a record exactly at the mean
        extra = zero / records
    counts = (records, records + 1) if private else (records, records)
    scale = float(spec.noise_multiplier) * GRID
    return Noised(
        (zero / counts[0], (zero + extra) / counts[1]),
        (scale / counts[0], scale / counts[1]),
        np.zeros(64, np.int64),
        claim_of_spec(spec),
    )
