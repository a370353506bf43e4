"""Stacked networks against one after the other: losses, gradients, draws and accounts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedvtc_edge.config import EngineSettings, TrainingSettings
from fedvtc_edge.models import Classifier, ImageShape, build, vtc
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.training import cohort, distillation, finetuning, supervised
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.cohort import Cohort, groups, stackable
from fedvtc_edge.training.compute import Compute
from fedvtc_edge.training.knowledge import GlobalKnowledge, from_anchor
from fedvtc_edge.training.losses import ClassMoments

SHAPE, LATENT, CLASSES, WIDTH = ImageShape(8, 1), 8, 4, 12
SETTINGS = TrainingSettings(batch=4, pixel_noise=0.1, epochs=1)
COMPUTE = Compute.of(EngineSettings(device="cpu", precision="float32"))
SIZES = (10, 3, 5)


def client(index: int, architecture: str = "lenet", model: Classifier | None = None) -> Client:
    draw = torch.Generator().manual_seed(index)
    labels = torch.randint(0, CLASSES - 1, (SIZES[index],), generator=draw)
    return Client(
        id=f"client-{index}",
        architecture=architecture,
        device_profile=None,
        images=torch.rand((SIZES[index], 1, 8, 8), generator=draw),
        labels=labels,
        classes=CLASSES,
        model=model or build(architecture, SHAPE, latent=LATENT, classes=CLASSES, seed=index),
        decoder=vtc.build(SHAPE, latent=LATENT, seed=index),
        settings=SETTINGS,
        compute=COMPUTE,
        seed=5,
    )


def fleet(architecture: str = "lenet") -> list[Client]:
    return [client(index, architecture) for index in range(len(SIZES))]


def prior() -> ClassMoments:
    draw = torch.Generator().manual_seed(9)
    return ClassMoments(
        torch.randn(CLASSES, LATENT, generator=draw), torch.full((CLASSES, LATENT), 0.5)
    )


def knowledge(*, teach: bool = True) -> GlobalKnowledge:
    rng, anchor = np.random.default_rng(0), Anchor(SHAPE, WIDTH, seed=0)
    y = np.arange(40) % CLASSES
    z = rng.standard_normal((40, WIDTH)) + 2 * rng.standard_normal((CLASSES, WIDTH))[y]
    known = GlobalStatistics.from_sum(
        ClassStatistics.of(z, y, classes=CLASSES, pooled=True), floor=0.2
    )
    return from_anchor(known, anchor, latent=LATENT, device=torch.device("cpu"), teach=teach)


def weights_of(clients: Sequence[Client]) -> list[Tensor]:
    return [
        torch.cat([p.detach().flatten() for p in client.model.parameters()]) for client in clients
    ]


def gradients(loss: Tensor, model: Classifier) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def check(stack: Cohort, objective: object, padded: object, single: object, group: object) -> None:
    """Losses and gradients of each network alone, on what it drew, without padding."""
    leaves = {name: w.clone().requires_grad_() for name, w in stack.weights.items()}
    losses = stack.losses(objective, padded, leaves)  # type: ignore[arg-type]
    torch.autograd.backward(losses.sum())
    for index, (drawn, one) in enumerate(zip(single, group, strict=True)):  # type: ignore[call-overload]
        expected = objective(one.model.outputs(drawn.x), drawn)  # type: ignore[operator]
        torch.testing.assert_close(losses[index], expected, rtol=1e-5, atol=1e-6)
        for (name, leaf), gradient in zip(
            leaves.items(), gradients(expected, one.model), strict=True
        ):
            assert leaf.grad is not None
            torch.testing.assert_close(
                leaf.grad[index], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("architecture", ["lenet", "resnet8", "mobilenet", "shufflenet", "mlp"])
def test_phase_a_has_the_losses_and_gradients_of_each_alone(architecture: str) -> None:
    group = fleet(architecture)
    drawn = [
        next(supervised.course(c.images, c.labels, c.present, SETTINGS, c.stream(1, "train")))
        for c in group
    ]
    assert len({len(fields.x) for fields in drawn}) > 1  # so that something is padded
    stack = cohort._cohort(group)
    objective = partial(supervised.objective, prior=prior(), kl=0.3)
    check(stack, objective, cohort._padded_examples(drawn), drawn, group)


@pytest.mark.parametrize("late", [0.0, 1.0])
def test_phase_c_has_the_losses_and_gradients_of_each_alone(late: float) -> None:
    group, known = fleet("resnet8"), knowledge()
    drawn = [
        next(
            finetuning.course(
                c.model,
                c.decoder,  # type: ignore[arg-type]
                c.images,
                c.labels,
                c.present,
                known,
                SETTINGS,
                c.stream(1, "finetune"),
                steps=2,
                late=late,
            )
        )
        for c in group
    ]
    stack = cohort._cohort(group)
    padded = cohort._padded_lessons(drawn)
    assert len({len(fields.x) for fields in padded}) == 1
    check(stack, cohort._lesson_objective, padded, drawn, group)


def nearly_all_agree(together: Sequence[Client], alone: Sequence[Client]) -> None:
    """A step of Adam is the rate in size, whatever a gradient is: all but the smallest agree."""
    for found, expected in zip(weights_of(together), weights_of(alone), strict=True):
        assert ((found - expected).abs() < SETTINGS.rate / 10).float().mean() > 0.999


def test_phase_a_together_is_phase_a_in_turn() -> None:
    """Also of clients that finish earlier than others, who must then stand still."""
    together, alone = fleet("mlp"), fleet("mlp")
    cohort.train(together, 1, prior(), kl=0.1)
    for one in alone:
        one.train(1, prior(), kl=0.1)
    nearly_all_agree(together, alone)
    assert [c.samples_seen for c in together] == [c.samples_seen for c in alone] == list(SIZES)
    assert all(c.seconds > 0 for c in together)


def test_phase_c_together_is_phase_c_in_turn() -> None:
    together, alone, known = fleet("mlp"), fleet("mlp"), knowledge()
    cohort.finetune(together, 1, known, steps=4, kl=0.1, decay=True)
    for one in alone:
        one.finetune(1, known, steps=4, kl=0.1, decay=True)
    nearly_all_agree(together, alone)
    assert [c.samples_seen for c in together] == [c.samples_seen for c in alone]


def test_without_a_teacher_clients_go_in_turn() -> None:
    together, alone, known = fleet("mlp"), fleet("mlp"), knowledge(teach=False)
    cohort.finetune(together, 1, known, steps=2, kl=0.1)
    for one in alone:
        one.finetune(1, known, steps=2, kl=0.1)
    for found, expected in zip(weights_of(together), weights_of(alone), strict=True):
        assert torch.equal(found, expected)


def test_what_cannot_be_stacked_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_layer(layer: nn.Module) -> Client:
        made = client(0)
        model = copy.deepcopy(made.model)
        model.body = nn.Sequential(layer, model.body)
        return client(0, model=model)

    assert stackable(client(0))
    assert not stackable(with_layer(nn.BatchNorm2d(1)))
    assert not stackable(with_layer(nn.Dropout()))
    mixed = [*fleet(), client(0, "mlp"), with_layer(nn.Dropout())]
    assert [len(group) for group in groups(mixed)] == [3, 1, 1]
    monkeypatch.setattr(cohort, "LARGEST", 2)
    assert [len(group) for group in groups(fleet())] == [2, 1]


def test_the_heads_unit_is_undone() -> None:
    """Between a course's first lesson and its end the head is divided by the teacher's κ."""
    group, known = fleet("mlp"), knowledge()
    before = weights_of(group)
    heads = [c.model.head.weight.detach().clone() for c in group]
    courses = [
        finetuning.course(
            c.model,
            c.decoder,  # type: ignore[arg-type]
            c.images,
            c.labels,
            c.present,
            known,
            SETTINGS,
            c.stream(1, "finetune"),
            steps=1,
        )
        for c in group
    ]
    for course, c, head in zip(courses, group, heads, strict=True):
        lesson = next(course)
        torch.testing.assert_close(c.model.head.weight * lesson.unit, head)
        assert next(course, None) is None
    for found, expected in zip(weights_of(group), before, strict=True):
        torch.testing.assert_close(found, expected)


def test_the_rate_falls_only_where_asked() -> None:
    rates = [distillation.rate_at(i, 4, SETTINGS, decay=True) for i in range(4)]
    assert rates == sorted(rates, reverse=True)
    assert distillation.rate_at(3, 4, SETTINGS, decay=False) == rates[0]
