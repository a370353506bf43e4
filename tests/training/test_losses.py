"""Each loss against its definition."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torch.nn import functional as F

from fedvtc_edge.training.losses import (
    ClassMoments,
    class_moments,
    distill,
    kl_to_prior,
    masked_cross_entropy,
    match_moments,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_masked_cross_entropy_is_that_of_the_shorter_list_of_classes() -> None:
    logits = drawn(6, 5).requires_grad_()
    present = torch.tensor([True, False, True, True, False])
    labels = torch.tensor([0, 2, 3, 3, 0, 2])
    loss = masked_cross_entropy(logits, labels, present)
    place = {0: 0, 2: 1, 3: 2}
    short = torch.tensor([place[int(label)] for label in labels])
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, [0, 2, 3]], short))
    torch.autograd.backward(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[:, ~present].any()
    assert logits.grad[:, present].all()


def test_without_absent_classes_it_is_plain_cross_entropy() -> None:
    logits, labels = drawn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    everything = torch.ones(5, dtype=torch.bool)
    assert masked_cross_entropy(logits, labels, everything) == F.cross_entropy(logits, labels)


def test_the_pull_is_the_kl_divergence_up_to_a_constant() -> None:
    """Of N(g(x), s²) to N(c, σ²), per feature; what is constant in g is the divergence at g = c."""
    z, labels = drawn(7, 3), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    prior = ClassMoments(drawn(2, 3, seed=1), drawn(2, 3, seed=2).abs() + 0.1)
    target = Independent(Normal(prior.mean[labels], prior.std[labels]), 1)
    own = torch.full(z.shape, 0.7)
    exact = kl_divergence(Independent(Normal(z, own), 1), target)
    constant = kl_divergence(Independent(Normal(prior.mean[labels], own), 1), target)
    expected = (exact - constant).mean() / z.shape[1]
    torch.testing.assert_close(kl_to_prior(z, labels, prior), expected)
    assert kl_to_prior(prior.mean[labels], labels, prior) == 0


def test_class_moments_are_those_of_each_group() -> None:
    values = drawn(12, 3)
    mean, std = class_moments(values, 4)
    for label in range(4):
        own = values[3 * label : 3 * label + 3]
        torch.testing.assert_close(mean[label], own.mean(0))
        torch.testing.assert_close(std[label], own.std(0), atol=1e-4, rtol=1e-4)


def test_matching_is_zero_at_a_perfect_match_and_only_there() -> None:
    values, labels = drawn(12, 3), torch.tensor([2, 0])
    mean, std = class_moments(values, 2)
    target = ClassMoments(torch.full((4, 3), 9.0), torch.full((4, 3), 9.0))
    target.mean[labels], target.std[labels] = mean, std
    one = torch.ones(())
    assert match_moments(values, target, labels, scale=one, spread=1.0) == 0
    assert match_moments(values, target, labels.flip(0), scale=one, spread=1.0) > 0
    assert match_moments(values + 0.1, target, labels, scale=one, spread=1.0) > 0
    assert match_moments(values * 1.1, target, labels, scale=one, spread=1.0) > 0


def test_matching_weighs_means_by_the_scale_and_stds_by_the_spread() -> None:
    values, labels = drawn(12, 3), torch.tensor([0, 1])
    mean, std = class_moments(values, 2)
    scale, gap = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])
    far = ClassMoments(mean + gap, std)
    expected = (gap / scale).square().mean()
    got = match_moments(values, far, labels, scale=scale, spread=0.5)
    torch.testing.assert_close(got, expected)
    wide = ClassMoments(mean, std + gap)
    got = match_moments(values, wide, labels, scale=scale, spread=0.5)
    torch.testing.assert_close(got, 0.5 * expected)


def test_equal_values_do_not_break_the_gradient() -> None:
    """The square root's slope at zero is infinite; a decoder that paints one image starts there."""
    values = torch.ones(6, 3, requires_grad=True)
    target = ClassMoments(torch.zeros(1, 3), torch.ones(1, 3))
    loss = match_moments(values, target, torch.tensor([0]), scale=torch.ones(()), spread=1.0)
    torch.autograd.backward(loss)
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()


def test_distillation_is_the_kl_divergence_from_the_teacher() -> None:
    logits, teacher = drawn(5, 4), torch.log_softmax(drawn(5, 4, seed=1), 1)
    exact = kl_divergence(Categorical(logits=teacher), Categorical(logits=logits)).mean()
    torch.testing.assert_close(distill(logits, teacher), exact)


def test_distillation_is_zero_at_equality() -> None:
    logits = drawn(5, 4)
    same = distill(logits + 3.0, torch.log_softmax(logits, 1))
    assert same.item() == pytest.approx(0.0, abs=1e-6)


def test_a_class_that_nobody_uploaded_pulls_nothing() -> None:
    """A cohort without a class publishes no prototype of it, not a prototype at the origin."""
    z = torch.randn((6, 4), generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 1, 0, 1, 0, 0])
    prior = ClassMoments(torch.ones(2, 4), torch.full((2, 4), 0.5), torch.tensor([True, False]))
    expected = ((z[labels == 0] - 1.0) ** 2 / 0.5).sum() / z.numel()
    torch.testing.assert_close(kl_to_prior(z, labels, prior), expected)
