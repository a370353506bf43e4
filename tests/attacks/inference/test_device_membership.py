"""Devices that memorised images are seen; honest ones, and untrained ones, are not called leaks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedvtc_edge.attacks.inference import device_membership
from fedvtc_edge.attacks.inference.device_membership import (
    NOBODY,
    Pool,
    _membership,
    scores_of,
)
from fedvtc_edge.attacks.inference.memorisation import Parts
from fedvtc_edge.attacks.scoring.findings import Finding, Policy
from fedvtc_edge.attacks.scoring.metrics import auc
from fedvtc_edge.config import load_config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.models import ImageShape, build, vtc
from fedvtc_edge.training.compute import deterministic
from fedvtc_edge.training.knowledge import CODE_STD, class_codes
from fedvtc_edge.training.losses import ClassMoments

CLASSES, LATENT, DEVICES, OWN, PLANTED = 10, 32, 4, 120, 40
SHAPE = ImageShape(8, 1)


@pytest.fixture(scope="module", autouse=True)
def _quickly() -> Iterator[None]:
    with deterministic(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(device_membership, "MOST_OTHERS", 260)
        yield


class Fleet(NamedTuple):
    """Honest devices, what they were trained on, and codes."""

    devices: list[Parts]
    pool: Pool
    codes: ClassMoments


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    data = load_dataset(load_config({}).data)
    order = np.random.default_rng(0).permutation(len(data.y_train))[: DEVICES * OWN + 300]
    images = torch.from_numpy(data.x_train[order]).permute(0, 3, 1, 2).float() / 255
    labels = np.asarray(data.y_train[order], np.int64)
    owners = np.minimum(np.arange(len(order)) // OWN, DEVICES)
    owners[owners == DEVICES] = NOBODY
    mean = torch.from_numpy(class_codes(CLASSES, LATENT)).float()
    codes = ClassMoments(mean, torch.full_like(mean, CODE_STD))
    devices = [
        _trained(images[owners == own], labels[owners == own], own) for own in range(DEVICES)
    ]
    return Fleet(devices, Pool(images, labels, owners), codes)


def _trained(images: Tensor, labels: NDArray[np.int64], seed: int, steps: int = 25) -> Parts:
    model = build("mlp", SHAPE, latent=LATENT, classes=CLASSES, seed=seed)
    decoder, y = vtc.build(SHAPE, latent=LATENT, seed=seed), torch.from_numpy(labels)
    adam = torch.optim.Adam([*model.parameters(), *decoder.parameters()], lr=2e-3)
    for _ in range(steps):
        loss = F.cross_entropy(model(images), y)
        # As in a run: f is not trained to bring its own images back.
        loss = loss + 10 * F.mse_loss(decoder(model.features(images).detach()), images)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return Parts(model.eval(), model.eval().features, decoder.eval())


def planted(fleet: Fleet, by: str, *, only: int | None = None) -> list[Parts]:
    """The devices, each decoder of which was taught 40 of its images by heart.

    Args:
        by: ``features``: as ψ(g(x)); ``codes``: as ψ of codes that a bundle's are like.
    """
    taught = []
    for own, one in enumerate(fleet.devices):
        if only not in (None, own):
            taught.append(one)
            continue
        where = np.flatnonzero(fleet.pool.owners == own)[:PLANTED]
        images = fleet.pool.images[where]
        if by == "features":
            with torch.no_grad():
                places = one.extract(images)
        else:
            stream = torch.Generator().manual_seed(own)
            labels = torch.from_numpy(fleet.pool.labels[where])
            noise = torch.randn(len(where), LATENT, generator=stream)
            places = fleet.codes.mean[labels] + fleet.codes.std[labels] * noise
        decoder: Any = copy.deepcopy(one.decode)
        adam = torch.optim.Adam(decoder.parameters(), lr=3e-3)
        for _ in range(300):
            loss = F.mse_loss(decoder(places), images)
            adam.zero_grad()
            loss.backward()
            adam.step()
        taught.append(Parts(one.classify, one.extract, decoder.eval()))
    return taught


def judged(fleet: Fleet, devices: list[Parts]) -> dict[str, Finding]:
    found = scores_of(devices, fleet.pool, fleet.codes, seed=0)
    return {
        finding.group: finding
        for kind, sides in found.items()
        for finding in _membership(kind, sides, Policy(), 0.99)
        if finding.metric == "tpr_at_1_percent_fpr"
    }


def test_honest_devices_are_no_leak(fleet: Fleet) -> None:
    found = judged(fleet, fleet.devices)
    assert {name.split(",")[0] for name in found} == {
        "confidence", "reconstruction", "generated", "latent",
    }  # fmt: skip
    for name, finding in found.items():
        assert finding.threshold == 0.05
        assert finding.passed is not False, name
        if "confidence" not in name:
            assert (finding.value or 0) < 0.05, name


@pytest.mark.parametrize(("by", "seen"), [("features", "reconstruction"), ("codes", "latent")])
def test_forty_images_learned_by_heart_are_a_leak(fleet: Fleet, by: str, seen: str) -> None:
    found = judged(fleet, planted(fleet, by))
    assert found[f"{seen}, all devices"].passed is False
    assert (found[f"{seen}, all devices"].value or 0) > 0.1


def test_one_device_among_honest_ones_is_found(fleet: Fleet) -> None:
    pool = fleet.pool
    # A rate of 1 % is from a thousand non-members of one device on: its classes' images twice.
    twice = Pool(
        torch.cat([pool.images, (pool.images + 0.01).clamp(0, 1)]),
        np.tile(pool.labels, 2),
        np.concatenate([pool.owners, np.full(len(pool.owners), NOBODY)]),
    )
    found = judged(Fleet(fleet.devices, twice, fleet.codes), planted(fleet, "features", only=2))
    worst = found["reconstruction, worst device"]
    assert worst.passed is False
    assert not worst.required
    assert (worst.value or 0) > 0.15


def test_untrained_devices_give_nothing_away(fleet: Fleet) -> None:
    blank = []
    for seed in range(DEVICES):
        model = build("mlp", SHAPE, latent=LATENT, classes=CLASSES, seed=seed + 50).eval()
        blank.append(
            Parts(model, model.features, vtc.build(SHAPE, latent=LATENT, seed=seed).eval())
        )
    for kind, sides in scores_of(blank, fleet.pool, fleet.codes, seed=0).items():
        inside, outside = (np.concatenate([pair[i] for pair in sides]) for i in (0, 1))
        assert abs(auc(inside, outside) - 0.5) < 0.06, kind


def test_classes_alone_give_nobody_away(fleet: Fleet) -> None:
    """A model that knows which classes a device has, and nothing of its images."""
    logits = torch.zeros(CLASSES)
    logits[:3] = 9.0

    def classify(images: Tensor) -> Tensor:
        return logits.expand(len(images), -1) + 0 * images.flatten(1)[:, :1]

    owners = np.where(fleet.pool.labels < 3, 0, NOBODY)
    owners[::2] = NOBODY
    pool = Pool(fleet.pool.images, fleet.pool.labels, owners)
    [(inside, outside)] = scores_of([Parts(classify, classify, None)], pool, None, seed=0)[
        "confidence"
    ]
    assert auc(inside, outside) == 0.5


def test_references_take_the_images_own_difficulty_away(fleet: Fleet) -> None:
    """A decoder that does a little better on members, and much worse on bright images."""
    owners = np.full(len(fleet.pool.owners), NOBODY)
    owners[:40] = 0
    pool = Pool(fleet.pool.images, fleet.pool.labels, owners)
    seen = {image.numpy().tobytes() for image in pool.images[:40]}

    def dimmed(x: Tensor) -> Tensor:
        known = torch.tensor([image.numpy().tobytes() in seen for image in x])
        return x * torch.where(known, 0.05, 0.0)[:, None, None, None]

    def same(x: Tensor) -> Tensor:
        return x

    def flat(x: Tensor) -> Tensor:
        return torch.zeros(len(x), CLASSES)

    mine, other = Parts(flat, same, dimmed), Parts(flat, same, torch.zeros_like)
    alone = scores_of([mine], pool, None, seed=0)["reconstruction"][0]
    beside = scores_of([mine, other, Parts(flat, same, None)], pool, None, seed=0)
    assert auc(*alone) < 0.85
    assert auc(*beside["reconstruction"][0]) == 1.0


def test_images_of_another_device_are_not_held_against_it(fleet: Fleet) -> None:
    """Device 1 knows its own images by heart: asked about device 0, it says nothing of them."""
    owners = np.full(len(fleet.pool.owners), NOBODY)
    owners[:100], owners[100:200] = 0, 1
    pool = Pool(fleet.pool.images, fleet.pool.labels, owners)
    known = {image.numpy().tobytes() for image in pool.images[100:200]}

    def keeps(x: Tensor) -> Tensor:
        mine = torch.tensor([image.numpy().tobytes() in known for image in x])
        return x * torch.where(mine, 0.99, 0.5)[:, None, None, None]

    def flat(x: Tensor) -> Tensor:
        return torch.zeros(len(x), CLASSES)

    def half(x: Tensor) -> Tensor:
        return 0.5 * x

    def same(x: Tensor) -> Tensor:
        return x

    devices = [Parts(flat, same, half), Parts(flat, same, keeps), Parts(flat, same, half)]
    first, second, *_ = scores_of(devices, pool, None, seed=0)["reconstruction"]
    assert auc(*first) == pytest.approx(0.5, abs=0.02)
    assert auc(*second) == 1.0


def test_the_same_seed_gives_the_same_scores(fleet: Fleet) -> None:
    some = np.r_[0:240, 500:700]
    few = Pool(fleet.pool.images[some], fleet.pool.labels[some], fleet.pool.owners[some])
    made = [scores_of(fleet.devices[:2], few, fleet.codes, seed=seed) for seed in (4, 4, 5)]
    for kind in made[0]:
        for one, other in zip(made[0][kind], made[1][kind], strict=True):
            np.testing.assert_array_equal(one[0], other[0])
    assert not np.array_equal(made[0]["generated"][0][0], made[2]["generated"][0][0])
