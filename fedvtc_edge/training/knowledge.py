"""Published global statistics, ready for use in a client's losses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.statistics.class_statistics import Array, GlobalStatistics
from fedvtc_edge.statistics.discriminant import ABSENT, Discriminant
from fedvtc_edge.statistics.gaussian import coefficients
from fedvtc_edge.statistics.linear_heads import root, with_covariance

from .losses import ClassMoments

CODE_STD = 0.5
"""σ of the data-independent class codes, in units of a feature (whose rms is 1)."""

LEAST_SPREAD = 0.1
"""Least unit of a difference of anchor features; without a floor, constant features rule."""

_CODE_SEED = 2508_01669


@dataclass(frozen=True, eq=False)
class Anchored:
    """Global statistics in the anchor's space.

    Args:
        moments: Published means and stds, [C, m]; pooled stds repeat for every class.
        scale: Unit of a difference per feature, [m].
        classifier: The training-free classifier on these statistics.
        teach: Whether fine-tuning may use it as its teacher.
        known: What was published, with a pooled covariance: diagonal where no other is known.
    """

    anchor: Anchor
    moments: ClassMoments
    scale: Tensor
    classifier: Discriminant
    teach: bool
    known: GlobalStatistics

    @property
    def linear(self) -> tuple[Tensor, Tensor]:
        """Linear [m, C] and constant [C] of the discriminant with pooled covariance."""
        _, linear, offset = coefficients(self.known)
        offset = np.where(self.known.present, offset, ABSENT)
        return torch.from_numpy(linear).float(), torch.from_numpy(offset).float()

    @cached_property
    def _root(self) -> NDArray[np.float32]:
        assert self.known.covariance is not None
        return np.ascontiguousarray(root(self.known.covariance), np.float32)

    def sample_features(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Features v ~ N(μ_y, Σ) in the anchor's space, [N, m], for labels [N]."""
        mean = self.moments.mean[labels]
        noise = torch.randn(mean.shape, generator=stream).to(mean.device)
        return mean + noise @ torch.from_numpy(self._root).to(mean.device)


@dataclass(frozen=True, eq=False)
class GlobalKnowledge:
    """Class codes in feature space and, in the anchored mode, statistics of anchor features.

    Args:
        codes: Means c^y and stds σ^y of the latents, [C, p].
        known: Classes [C] of which at least one client has samples; on the CPU, where
            labels are drawn.
        anchored: The anchor's view, or None.
    """

    codes: ClassMoments
    known: Tensor
    anchored: Anchored | None = None

    @property
    def teacher(self) -> Anchored | None:
        """The anchor's view, where fine-tuning may learn from it."""
        return self.anchored if self.anchored is not None and self.anchored.teach else None

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Latents v = c^y + σ^y ⊙ ε for labels [N]."""
        mean, std = self.codes.mean[labels], self.codes.std[labels]
        return mean + std * torch.randn(mean.shape, generator=stream).to(mean.device)

    def draw_labels(self, count: int, stream: torch.Generator) -> Tensor:
        """``count`` labels, uniform over the known classes."""
        classes = torch.nonzero(self.known).flatten()
        picked = classes[torch.randint(len(classes), (count,), generator=stream)]
        return picked.to(self.codes.mean.device)

    def draw_classes(self, count: int, stream: torch.Generator) -> Tensor:
        """Up to ``count`` different known classes."""
        classes = torch.nonzero(self.known).flatten()
        order = torch.randperm(len(classes), generator=stream)
        return classes[order[:count]].to(self.codes.mean.device)


def blank(classes: int, latent: int, *, device: torch.device) -> GlobalKnowledge:
    """The data-independent codes, of classes that all are known: what needs no statistics."""
    return GlobalKnowledge(_codes(classes, latent, device), torch.ones(classes, dtype=torch.bool))


def from_features(knowledge: GlobalStatistics, *, device: torch.device) -> GlobalKnowledge:
    """Codes of the ``features`` modes: prototypes and stds of the clients' own features."""
    return GlobalKnowledge(_moments(knowledge, device), torch.from_numpy(knowledge.present))


def from_anchor(
    knowledge: GlobalStatistics, anchor: Anchor, *, latent: int, device: torch.device, teach: bool
) -> GlobalKnowledge:
    """Data-independent codes, and the anchor statistics as the one tie to pixels.

    The codes need no upload: any fixed, well-separated points do, because each
    client's own KL term moves its features there (measured, docs/decisions/0002).
    """
    codes = _codes(knowledge.mean.shape[0], latent, device)
    spread = np.square(knowledge.std[knowledge.present]).mean(0) + knowledge.mean[
        knowledge.present
    ].var(0)
    scale = np.sqrt(np.maximum(spread, LEAST_SPREAD**2)).astype(np.float32)
    return GlobalKnowledge(
        codes,
        torch.from_numpy(knowledge.present),
        Anchored(
            anchor,
            _moments(knowledge, device),
            torch.from_numpy(scale).to(device),
            Discriminant(knowledge, device=device),
            teach,
            with_covariance(knowledge),
        ),
    )


def class_codes(classes: int, latent: int) -> Array:
    """C points of norm √p in the hyperplane of zero mean, where LayerNorm puts features.

    A regular simplex where C < p, else random directions; one public constant seed.
    """
    draw = np.random.Generator(np.random.Philox(key=_CODE_SEED))
    points = draw.standard_normal((latent, classes))
    points -= points.mean(0)
    if classes < latent:
        points, _ = np.linalg.qr(points)
        points -= points.mean(1, keepdims=True)
    codes: Array = (points / np.linalg.norm(points, axis=0)).T * latent**0.5
    return codes


def _codes(classes: int, latent: int, device: torch.device) -> ClassMoments:
    mean = class_codes(classes, latent).astype(np.float32)
    std = torch.full(mean.shape, CODE_STD, device=device)
    return ClassMoments(torch.from_numpy(mean).to(device), std)


def _moments(knowledge: GlobalStatistics, device: torch.device) -> ClassMoments:
    return ClassMoments(
        torch.from_numpy(knowledge.mean.astype(np.float32)).to(device),
        torch.from_numpy(knowledge.std.astype(np.float32)).to(device),
        None if knowledge.present.all() else torch.from_numpy(knowledge.present).to(device),
    )
