"""What a client knows of the world: codes, draws of classes, and the anchor's view."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.training.knowledge import (
    CODE_STD,
    LEAST_SPREAD,
    GlobalKnowledge,
    class_codes,
    from_anchor,
    from_features,
)

CPU = torch.device("cpu")
CLASSES, WIDTH, LATENT = 4, 6, 8


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def knowledge(*, pooled: bool, sizes: tuple[int, ...] = (5, 0, 7, 6)) -> GlobalStatistics:
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(len(sizes)), sizes)
    z = rng.standard_normal((len(y), WIDTH)) * [1, 1, 1, 0, 2, 1] + y[:, None] * [1, 0, 0, 0, 1, 1]
    total = ClassStatistics.of(z, y, classes=CLASSES, pooled=pooled)
    return GlobalStatistics.from_sum(total)


def anchored(*, pooled: bool, teach: bool = True, **keys: Any) -> GlobalKnowledge:
    anchor = Anchor(ImageShape(8, 1), WIDTH, seed=0)
    return from_anchor(
        knowledge(pooled=pooled, **keys), anchor, latent=LATENT, device=CPU, teach=teach
    )


@pytest.mark.parametrize(("classes", "latent"), [(2, 8), (5, 6), (10, 64), (100, 64), (3, 2)])
def test_codes_lie_where_layer_norm_puts_features(classes: int, latent: int) -> None:
    codes = class_codes(classes, latent)
    assert codes.shape == (classes, latent)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), latent**0.5)
    np.testing.assert_allclose(codes.mean(1), 0.0, atol=1e-10)
    np.testing.assert_array_equal(codes, class_codes(classes, latent))


@pytest.mark.parametrize(("classes", "latent"), [(2, 8), (5, 6), (10, 64)])
def test_fewer_codes_than_features_are_a_regular_simplex(classes: int, latent: int) -> None:
    codes = class_codes(classes, latent) / latent**0.5
    cosines = (codes @ codes.T)[~np.eye(classes, dtype=bool)]
    np.testing.assert_allclose(cosines, -1 / (classes - 1), atol=1e-10)


def test_golden_codes() -> None:
    """Every client computes them for itself, so they may never change."""
    np.testing.assert_allclose(
        class_codes(3, 5)[0],
        [0.16207237, 0.7228546, 1.07344627, -0.14812886, -1.81024438],
        atol=1e-7,
    )


def test_latents_are_normal_around_the_code() -> None:
    known = anchored(pooled=True)
    labels = torch.tensor([0, 3]).repeat(4000)
    v = known.sample(labels, stream())
    for label in (0, 3):
        own = v[labels == label]
        torch.testing.assert_close(own.mean(0), known.codes.mean[label], atol=0.05, rtol=0)
        torch.testing.assert_close(own.std(0), known.codes.std[label], atol=0.05, rtol=0)
    assert torch.equal(v, known.sample(labels, stream()))
    assert not torch.equal(v, known.sample(labels, stream(1)))


def test_only_known_classes_are_drawn_and_all_of_them_equally() -> None:
    known = anchored(pooled=True)
    labels = known.draw_labels(3000, stream())
    counts = torch.bincount(labels, minlength=CLASSES)
    assert counts[1] == 0
    assert counts[[0, 2, 3]].min() > 900


def test_classes_of_a_batch_differ() -> None:
    known = anchored(pooled=True)
    pairs = set()
    for seed in range(40):
        drawn = known.draw_classes(2, stream(seed)).tolist()
        assert len(set(drawn)) == 2
        pairs.add(frozenset(drawn))
    assert pairs == {frozenset(pair) for pair in ((0, 2), (0, 3), (2, 3))}
    assert sorted(known.draw_classes(9, stream()).tolist()) == [0, 2, 3]


def test_codes_from_features_are_as_published() -> None:
    published = knowledge(pooled=False)
    known = from_features(published, device=CPU)
    np.testing.assert_allclose(known.codes.mean.numpy(), published.mean, atol=1e-6)
    np.testing.assert_allclose(known.codes.std.numpy(), published.std, atol=1e-6)
    assert known.codes.mean.dtype == torch.float32
    assert known.known.tolist() == [True, False, True, True]
    assert known.anchored is None


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("teach", [False, True])
def test_codes_from_the_anchor_depend_on_no_data(pooled: bool, teach: bool) -> None:
    known = anchored(pooled=pooled, teach=teach)
    np.testing.assert_allclose(known.codes.mean.numpy(), class_codes(CLASSES, LATENT), atol=1e-6)
    assert (known.codes.std == CODE_STD).all()
    assert known.anchored is not None
    assert known.anchored.teach is teach
    published = knowledge(pooled=pooled)
    np.testing.assert_allclose(known.anchored.moments.mean.numpy(), published.mean, atol=1e-6)
    np.testing.assert_allclose(known.anchored.moments.std.numpy(), published.std, atol=1e-6)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("sizes", [(5, 4, 7, 6), (5, 0, 7, 6)])
def test_the_unit_of_a_difference_is_the_total_spread_with_a_floor(
    pooled: bool, sizes: tuple[int, ...]
) -> None:
    """Variance within the known classes plus variance between their means."""
    some = [y for y, size in enumerate(sizes) if size]
    known, published = anchored(pooled=pooled, sizes=sizes), knowledge(pooled=pooled, sizes=sizes)
    assert known.anchored is not None
    for i in range(WIDTH):
        within = sum(published.std[y, i] ** 2 for y in some) / len(some)
        spread = within + np.var(published.mean[some, i])
        expected = max(spread, LEAST_SPREAD**2) ** 0.5
        assert known.anchored.scale[i].item() == pytest.approx(expected, rel=1e-5)
    assert known.anchored.scale[3].item() == pytest.approx(LEAST_SPREAD)  # a constant feature
