"""The losses of FedVTC, each one line of the paper or of docs/method.md."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_SMALL = 1e-6


class ClassMoments(NamedTuple):
    """A class-conditional distribution to be matched.

    Args:
        mean: [C, d].
        std: [C, d].
        known: Boolean [C], False for classes of which nobody uploaded a sample;
            None where all are known.
    """

    mean: Tensor
    std: Tensor
    known: Tensor | None = None


def masked_cross_entropy(
    logits: Tensor, labels: Tensor, present: Tensor | None, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy in which locally absent classes do not compete.

    Without the mask, a client teaches its head that absent classes never occur.

    Args:
        logits: [N, C].
        labels: [N], all of them present.
        present: Boolean [C]; None, where that is private, lets all classes compete.
        reduction: ``mean`` or ``sum`` over the examples.
    """
    if present is not None:
        logits = logits.masked_fill(~present, float("-inf"))
    return F.cross_entropy(logits, labels, reduction=reduction)


def averaged(values: Tensor, shares: Tensor | None) -> Tensor:
    """Mean of values [N], or their sum weighted by shares [N]: 0 for examples that only pad."""
    return values.mean() if shares is None else (values * shares).sum()


def kl_to_prior(
    features: Tensor, labels: Tensor, prior: ClassMoments, shares: Tensor | None = None
) -> Tensor:
    """Pull features [N, p] to the global class prior N(c^y, σ²).

    The KL divergence of N(g(x), s²) to N(c^y, σ²) up to terms constant in g: the
    weight of the pull is 1/(2σ²), so that σ must not be driven to zero.
    """
    gap = features - prior.mean[labels]
    pull = gap.square() / (2.0 * prior.std[labels].square())
    if prior.known is not None:  # a class that the last cohort did not have has no prototype
        pull = pull * prior.known[labels][:, None]
    return pull.mean() if shares is None else averaged(pull.mean(1), shares)


def class_moments(values: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean and std [classes, d] of values [classes · n, d] grouped by class in order."""
    grouped = values.view(classes, -1, values.shape[1])
    mean = grouped.mean(1)
    return mean, (grouped.var(1, unbiased=True) + _SMALL).sqrt()


def match_moments(
    values: Tensor, target: ClassMoments, labels: Tensor, *, scale: Tensor, spread: float
) -> Tensor:
    """Distribution matching: means and stds of synthetic images against published ones.

    Args:
        values: Features [K · n, d] of images synthesised for K classes, n in a row each.
        labels: The K classes, [K].
        scale: Unit of a difference, broadcastable to [K, d].
        spread: Weight of the stds beside the means.
    """
    mean, std = class_moments(values, len(labels))
    centre = ((mean - target.mean[labels]) / scale).square().mean()
    return centre + spread * ((std - target.std[labels]) / scale).square().mean()


def distill(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL of the client's prediction from the teacher's log-posteriors [N, C]."""
    # Not F.kl_div, which vmap cannot batch.
    gap = teacher - torch.log_softmax(logits, 1)
    return (teacher.exp() * gap).sum() / len(logits)


def match_scores(scores: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean square of a difference of scores [N, C] over the known classes [C]."""
    return ((scores - target).square() * known).sum() / (len(scores) * known.sum())
