"""Phase C of a head on the extractor: features of every class, own ones where they may count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedvtc_edge.config import TrainingSettings
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.training.head_training import SYNTHETIC, finetune
from fedvtc_edge.training.knowledge import Anchored, GlobalKnowledge, from_anchor

CLASSES, WIDTH = 4, 6
SETTINGS = TrainingSettings(batch=8, rate=1e-2)
CENTRES = 3.0 * np.eye(CLASSES, WIDTH)


def features(count: int, seed: int = 0, classes: int = CLASSES) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    y = np.arange(count) % classes
    return (CENTRES[y] + rng.standard_normal((count, WIDTH)) * [2, 1, 1, 1, 1, 0.5]), y


def published(*, pooled: bool, classes: int = CLASSES) -> GlobalStatistics:
    x, y = features(4000, classes=classes)
    return GlobalStatistics.from_sum(ClassStatistics.of(x, y, classes=CLASSES, pooled=pooled))


def knowledge(statistics: GlobalStatistics) -> tuple[GlobalKnowledge, Anchored]:
    anchor = Anchor(ImageShape(8, 1), WIDTH, 0)
    device = torch.device("cpu")
    made = from_anchor(statistics, anchor, latent=8, device=device, teach=True)
    assert made.anchored is not None
    return made, made.anchored


def learned(known: GlobalKnowledge, own: int, **keys: Any) -> tuple[nn.Linear, int]:
    head = nn.Linear(WIDTH, CLASSES)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    x, y = features(max(own, 2), seed=1, classes=2)
    present = torch.tensor([True, True, False, False])
    data = torch.from_numpy(x).float()[:own], torch.from_numpy(y)[:own], present
    stream = torch.Generator().manual_seed(0)
    seen = finetune(head, *data, known, SETTINGS, stream, **{"steps": 60, **keys})
    return head, seen


def share_right(head: nn.Linear) -> float:
    x, y = features(400, seed=2)
    return float((head(torch.from_numpy(x).float()).argmax(1).numpy() == y).mean())


@pytest.mark.parametrize("own", [0, 5, 40])
def test_it_learns_classes_that_the_client_never_saw(own: int) -> None:
    known, _ = knowledge(published(pooled=True))
    head, seen = learned(known, own)
    assert seen == 60 * (SYNTHETIC * 8 + min(own, 8))
    assert share_right(head) > 0.7


def test_the_same_stream_gives_the_same_head() -> None:
    known, _ = knowledge(published(pooled=True))
    one, two, faded = learned(known, 9)[0], learned(known, 9)[0], learned(known, 9, decay=True)[0]
    assert one.weight.equal(two.weight)
    assert not one.weight.equal(faded.weight)


@pytest.mark.parametrize("pooled", [True, False])
def test_samples_have_the_published_moments(pooled: bool) -> None:
    statistics = published(pooled=pooled)
    _, known = knowledge(statistics)
    labels = torch.full((40_000,), 2)
    drawn = known.sample_features(labels, torch.Generator().manual_seed(0)).double().numpy()
    np.testing.assert_allclose(drawn.mean(0), statistics.mean[2], atol=0.05)
    wanted = statistics.covariance
    if wanted is None:
        wanted = np.diag(np.square(statistics.std).mean(0))
    np.testing.assert_allclose(np.cov(drawn.T), wanted, atol=0.12)


def test_a_covariance_that_noise_made_indefinite_is_sampled_all_the_same() -> None:
    statistics = published(pooled=True)
    assert statistics.covariance is not None
    statistics.covariance[5, 5] = -1.0
    _, known = knowledge(statistics)
    drawn = known.sample_features(torch.zeros(9, dtype=torch.long), torch.Generator())
    assert torch.isfinite(drawn).all()


@pytest.mark.parametrize("pooled", [True, False])
def test_the_start_is_the_discriminant(pooled: bool) -> None:
    _, known = knowledge(published(pooled=pooled))
    linear, offset = known.linear
    x, y = features(400, seed=3)
    scores = torch.from_numpy(x).float() @ linear + offset
    assert (scores.argmax(1).numpy() == y).mean() > 0.75
    if pooled:
        torch.testing.assert_close(
            scores.log_softmax(1), known.classifier(torch.from_numpy(x).float()), atol=1e-4, rtol=0
        )


def test_a_class_that_nobody_has_is_never_the_answer() -> None:
    known, anchored = knowledge(published(pooled=True, classes=3))
    linear, offset = anchored.linear
    x, _ = features(50, seed=4)
    scores = torch.from_numpy(x).float() @ linear + offset
    assert (scores.argmax(1) != 3).all()
    assert known.draw_labels(200, torch.Generator().manual_seed(0)).max() == 2
