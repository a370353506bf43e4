"""Phase C on the extractor: features of every class, own ones where they may count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedvtc_edge.config import TrainingSettings
from fedvtc_edge.models import ExtractorHead, ExtractorTail, ImageShape
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.training import head_training
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


def learned(known: GlobalKnowledge, own: int, **keys: Any) -> tuple[torch.nn.Linear, int]:
    assert known.anchored is not None
    model = ExtractorHead(known.anchored.anchor, CLASSES)
    x, y = features(max(own, 2), seed=1, classes=2)
    present = torch.tensor([True, True, False, False])
    data = torch.from_numpy(x).float()[:own], torch.from_numpy(y)[:own], present
    stream = torch.Generator().manual_seed(0)
    seen = finetune(model, *data, known, SETTINGS, stream, **{"steps": 60, **keys})
    return model.head, seen


def share_right(head: torch.nn.Linear) -> float:
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


def tail_after(images: torch.Tensor, own: int, rate: float) -> tuple[ExtractorTail, float]:
    """Last blocks trained with a head on so many images of two classes, and the last drift."""
    anchor = Anchor(ImageShape(16, 3), WIDTH, 0, "efficientnet-lite0@32").eval()
    labels = torch.arange(len(images)) % 2
    features = anchor.embed(images).double().numpy()
    made = ClassStatistics.of(features, labels.numpy(), classes=2, pooled=True)
    statistics = GlobalStatistics.from_sum(made)
    known = from_anchor(statistics, anchor, latent=8, device=torch.device("cpu"), teach=True)
    model = ExtractorTail(anchor, 2)
    assert known.anchored is not None
    model.start(*known.anchored.linear)
    inputs, settings = model.inputs(images), TrainingSettings(batch=4, rate=rate)
    stream, present = torch.Generator().manual_seed(0), torch.tensor([True, True])
    finetune(model, inputs[:own], labels[:own], present, known, settings, stream, steps=8)
    drift = model.drift(model.features(inputs).detach(), inputs)
    assert drift is not None
    return model, float(drift)


def test_last_blocks_move_with_own_images_and_less_for_the_pull(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = torch.rand((6, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    still, none = tail_after(images, 0, 3e-5)
    model, drift = tail_after(images, 6, 3e-5)
    trunk = model.anchor.trunk
    assert trunk is not None
    pairs = zip(trunk.tail.parameters(), still.tail.parameters(), strict=True)
    assert all(frozen.equal(own) for frozen, own in pairs)  # nor did other clients' steps move it
    pairs = zip(trunk.tail.parameters(), model.tail.parameters(), strict=True)
    assert not any(frozen.equal(own) for frozen, own in pairs)
    assert none < 1e-6 < drift
    again, _ = tail_after(images, 6, 3e-5)
    assert all(
        one.equal(two) for one, two in zip(model.parameters(), again.parameters(), strict=True)
    )
    monkeypatch.setattr(head_training, "DRIFT", 0.0)
    assert tail_after(images, 6, 3e-5)[1] > 1.5 * drift
