"""The pool of labelled pictures, and steps on it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedvtc_edge.config import EngineSettings, TrainingSettings
from fedvtc_edge.models import Classifier, ImageShape, build, vtc
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.training import distillation
from fedvtc_edge.training.compute import Compute
from fedvtc_edge.training.distillation import (
    LARGEST_BYTES,
    LARGEST_POOL,
    PASSES,
    Lessons,
    batch_of,
    centred,
    course,
    learn,
    lessons,
    pool_size,
    pools,
)
from fedvtc_edge.training.knowledge import GlobalKnowledge, from_anchor
from fedvtc_edge.training.steps import Adam, step

SHAPE, LATENT, CLASSES, WIDTH = ImageShape(8, 1), 8, 4, 12
SETTINGS = TrainingSettings(batch=8, pixel_noise=0.1)
COMPUTE = Compute.of(EngineSettings(device="cpu", precision="float32"))
LABELS = torch.tensor([0, 1, 1, 3, 0, 3, 3, 0, 1, 1])
PRESENT = torch.tensor([True, True, False, True])


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images() -> torch.Tensor:
    return torch.rand((len(LABELS), 1, 8, 8), generator=stream(99))


def classifier() -> Classifier:
    return build("lenet", SHAPE, latent=LATENT, classes=CLASSES, seed=0)


def knowledge(*, pooled: bool = True, missing: bool = False) -> GlobalKnowledge:
    rng, anchor = np.random.default_rng(0), Anchor(SHAPE, WIDTH, seed=0)
    y = np.arange(40) % (CLASSES - missing)
    z = rng.standard_normal((40, WIDTH)) + 2 * rng.standard_normal((CLASSES, WIDTH))[y]
    published = GlobalStatistics.from_sum(
        ClassStatistics.of(z, y, classes=CLASSES, pooled=pooled), floor=0.2
    )
    return from_anchor(published, anchor, latent=LATENT, device=torch.device("cpu"), teach=True)


def pool(known: GlobalKnowledge, count: int = 64, seed: int = 0, own: int = 10) -> Lessons:
    psi = vtc.build(SHAPE, latent=LATENT, seed=0)
    return lessons(psi, images()[:own], known, SETTINGS, stream(seed), count)


def study(
    model: Classifier,
    known: GlobalKnowledge,
    taught: Lessons | Callable[[], Lessons],
    *,
    own: int = 10,
    steps: int = 6,
    late: float = 1.0,
    seed: int = 0,
) -> int:
    assert known.teacher is not None
    data = images()[:own], LABELS, PRESENT
    make = (lambda: taught) if isinstance(taught, Lessons) else taught
    how = SETTINGS, stream(seed)
    drawn = course(model, make, known.teacher, *data, *how, steps=steps, late=late)
    return learn(model, drawn, SETTINGS, COMPUTE, steps=steps, decay=True)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("count", [1, 16, 37])
def test_the_teacher_labels_what_is_kept(pooled: bool, count: int) -> None:
    """Its scores are those of the pictures as stored, rounding included."""
    known = knowledge(pooled=pooled)
    assert known.teacher is not None
    made = pool(known, count)
    assert made.pictures.dtype == torch.uint8
    assert made.pictures.shape == (count, 1, 8, 8)
    shown = made.pictures.float() / 255
    expected = known.teacher.classifier(known.teacher.anchor(shown))
    found = known.teacher.classifier.posteriors(made.scores)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(made.scores.sum(1), torch.zeros(count), rtol=0, atol=1e-3)
    assert made.unit == pytest.approx(made.scores.square().mean().sqrt().item())


def test_most_images_are_local_where_real_ones_may_be_used() -> None:
    """Local images that are white, through a decoder that paints black."""
    psi = vtc.build(SHAPE, latent=LATENT, seed=0)
    for value in psi.parameters():
        value.data.zero_()
    psi.paint[-2].bias.data.fill_(-20.0)  # type: ignore[union-attr, operator]
    white = torch.ones((3, 1, 8, 8))
    mixed = lessons(psi, white, knowledge(), SETTINGS, stream(), 400).pictures.float()
    assert 0.65 < (mixed > 100).float().mean() < 0.85
    painted = lessons(psi, white[:0], knowledge(), SETTINGS, stream(), 400).pictures
    assert painted.max() == 0


def test_a_class_that_nobody_has_is_no_part_of_the_lesson() -> None:
    known = knowledge(missing=True)
    assert known.teacher is not None
    made = pool(known)
    assert (made.scores[:, -1] == 0).all()
    torch.testing.assert_close(made.scores.sum(1), torch.zeros(64), rtol=0, atol=1e-3)
    model = classifier()
    study(model, known, made, steps=60)
    predicted = model.eval()(made.pictures.float() / 255).argmax(1)
    assert (predicted != CLASSES - 1).all()


def test_centring_forgets_what_all_classes_share() -> None:
    scores = torch.randn((5, 4), generator=stream())
    known = torch.tensor([True, False, True, True])
    found = centred(scores, known)
    torch.testing.assert_close(found, centred(scores + torch.arange(5.0)[:, None], known))
    assert (found[:, 1] == 0).all()
    torch.testing.assert_close(found[:, 0] - found[:, 3], scores[:, 0] - scores[:, 3])


def test_each_picture_comes_once_before_any_comes_again() -> None:
    taught = Lessons(torch.zeros((10, 1, 8, 8), dtype=torch.uint8), torch.zeros((10, 4)))
    batches = list(taught.batches(4, stream()))
    assert [len(batch) for batch in batches[:3]] == [4, 4, 2]
    drawn = torch.cat(batches).view(PASSES, 10)
    assert all(one.sort().values.tolist() == list(range(10)) for one in drawn)
    assert drawn[0].tolist() != drawn[1].tolist()


def test_a_pool_that_was_seen_often_enough_gives_way_to_a_new_one() -> None:
    known, held = knowledge(), []

    def make() -> Lessons:
        assert all(one() is None for one in held)  # one at a time
        made = pool(known, 32, len(held))
        held.append(weakref.ref(made))
        return made

    steps = 2 * PASSES + 1
    study(classifier(), known, make, steps=steps)
    assert len(held) == 2
    assert [pools(count, 32, SETTINGS) for count in (0, 1, steps - 1, steps)] == [1, 1, 1, 2]


def test_the_student_comes_close_to_its_teacher() -> None:
    known, model = knowledge(), classifier()
    assert known.teacher is not None
    made = pool(known, 256)
    x, target = made.pictures.float() / 255, known.teacher.classifier.posteriors(made.scores)

    def distance() -> float:
        log = model.eval()(x).log_softmax(1)
        return (target.exp() * (target - log)).sum(1).mean().item()

    before = distance()
    study(model, known, made, steps=150)
    assert distance() < 0.4 * before


def test_the_head_answers_in_the_teachers_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a step the network is what it was; during them its head is smaller by κ."""
    known, model = knowledge(), classifier()
    made, before = pool(known), copy.deepcopy(model)
    study(model, known, made, steps=0)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before.state_dict()[name])
    heads: list[torch.Tensor] = []

    def noted(loss: torch.Tensor, adam: Adam) -> None:
        heads.append(model.head.weight.detach().clone())
        step(loss, adam)

    monkeypatch.setattr(distillation, "step", noted)
    study(model, known, made, steps=1)
    torch.testing.assert_close(heads[0] * made.unit, before.head.weight)


def test_the_rate_falls_along_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def noted(loss: torch.Tensor, adam: Adam) -> None:
        rates.append(adam.rate)

    monkeypatch.setattr(distillation, "step", noted)
    study(classifier(), knowledge(), pool(knowledge()), steps=4)
    assert rates == pytest.approx([2e-3, 1.7071e-3, 1e-3, 2.929e-4], rel=1e-3)


@pytest.mark.parametrize(("late", "plain"), [(1.0, 0), (0.5, 3), (0.0, 6)])
def test_plain_images_join_late(late: float, plain: int) -> None:
    taught = pool(knowledge())
    assert study(classifier(), knowledge(), taught, late=late) == 6 * 16 + plain * 8
    assert study(classifier(), knowledge(), taught, late=late, own=0) == 6 * 16


def test_labels_of_own_images_count_where_they_join() -> None:
    with_labels, without = classifier(), classifier()
    taught = pool(knowledge())
    study(with_labels, knowledge(), taught, late=0.0)
    study(without, knowledge(), taught, late=1.0)
    assert not torch.equal(with_labels.head.weight, without.head.weight)


def test_one_stream_one_pool_and_one_student() -> None:
    first, again, other = pool(knowledge(), 20, 1), pool(knowledge(), 20, 1), pool(knowledge(), 20)
    assert torch.equal(first.pictures, again.pictures)
    assert torch.equal(first.scores, again.scores)
    assert not torch.equal(first.pictures, other.pictures)
    students = [classifier() for _ in range(3)]
    for student, seed in zip(students, (1, 1, 2), strict=True):
        study(student, knowledge(), first, seed=seed)
    one, same, another = (student.head.weight for student in students)
    assert torch.equal(one, same)
    assert not torch.equal(one, another)


def test_pools_are_bounded_and_whole_batches() -> None:
    assert [pool_size(steps, 64, SETTINGS) for steps in (0, 1, 5)] == [0, 16, 80]
    assert pool_size(10**6, 64, SETTINGS) == LARGEST_POOL
    large = pool_size(10**6, 3 * 64 * 64, SETTINGS)
    assert large % batch_of(SETTINGS) == 0
    assert LARGEST_BYTES // 2 < large * 3 * 64 * 64 <= LARGEST_BYTES
    odd = SETTINGS.model_copy(update={"batch": 300})
    assert pool_size(10**6, 64, odd) == 10 * 600
    assert pool_size(10**6, LARGEST_BYTES, odd) == 600  # one batch there has to be


def test_pictures_of_the_teacher_carry_no_gradient() -> None:
    known = knowledge()
    assert known.teacher is not None
    made = pool(known)
    assert not made.scores.requires_grad
    silent = replace(known.teacher, teach=False)
    assert replace(known, anchored=silent).teacher is None
