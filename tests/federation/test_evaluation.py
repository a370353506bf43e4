"""Accuracies, counted by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedvtc_edge.federation.evaluation import (
    ControlFigures,
    Evaluator,
    TestSet,
    control_figures,
    share,
)
from fedvtc_edge.runs.means import averages
from fedvtc_edge.runs.records import ClientRecord, Means, Recalls, mean
from fedvtc_edge.training.compute import as_images

LABELS = [0, 0, 1, 1, 2, 2, 2, 2]


def sure_of(*predicted: int) -> torch.Tensor:
    """Log-posteriors that say so."""
    return torch.log_softmax(4.0 * nn.functional.one_hot(torch.tensor(predicted), 3).float(), 1)


class Fixed(nn.Module):
    """Knows its answers by heart."""

    def __init__(self, answers: torch.Tensor) -> None:
        super().__init__()
        self.answers = answers

    def inputs(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answers[: len(x)]


def client(name: str, counts: list[int], answers: torch.Tensor | None = None) -> Any:
    return SimpleNamespace(
        id=name,
        counts=torch.tensor(counts),
        present=torch.tensor(counts) > 0,
        held_out=None,
        model=None if answers is None else Fixed(answers),
    )


class Rehearsed:
    """A method whose scores are given."""

    def __init__(self, clients: list[Any], scores: dict[str, Any], control: Any = None) -> None:
        self.federation = SimpleNamespace(clients=clients)
        self._scores, self._control = scores, control
        self.published: dict[str, bytes] = {}
        self.is_own_control = False

    def scores(self, one: Any, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self._scores[one.id]
        return scores

    def control(self, images: torch.Tensor) -> Any:
        return self._control


def evaluate(
    method: Any, baselines: list[Any], test: TestSet
) -> tuple[list[ClientRecord], ControlFigures]:
    evaluator = Evaluator(method, test)
    pairs = zip(method.federation.clients, baselines or [None] * 9, strict=False)
    records = [ClientRecord(id=one.id, **evaluator.of(one, alone)) for one, alone in pairs]
    return records, evaluator.control()


TEST = TestSet(torch.zeros(8, 1, 8, 8), torch.tensor(LABELS))


def test_accuracies_of_one_client() -> None:
    own = sure_of(0, 0, 1, 0, 2, 0, 0, 0)  # 4 of 8; of class 2, which it lacks, 1 of 4
    alone = sure_of(0, 0, 1, 1, 0, 0, 0, 0)  # 4 of 8; of class 2 none
    control = 2.0 * sure_of(1, 1, 1, 1, 2, 2, 2, 0)  # 5 of 8, and twice as sure
    method: Any = Rehearsed([client("a", [3, 1, 0])], {"a": own}, control)
    baselines: Any = [client("a", [3, 1, 0], alone)]
    records, training_free = evaluate(method, baselines, TEST)
    (record,) = records
    assert record.document() == {
        "id": "a",
        "accuracy": 4 / 8,
        "accuracy_local_only": 4 / 8,
        "accuracy_absent_classes": 1 / 4,
        "accuracy_absent_classes_local_only": 0.0,
        "accuracy_calibrated": 5 / 8,
        # of classes 0 and 1, three to one: all of the first, half of the other
        "accuracy_own_distribution": (3 * 1.0 + 1 * 0.5) / 4,
        "accuracy_own_distribution_calibrated": (3 * 0.0 + 1 * 1.0) / 4,
        "accuracy_own_distribution_control": (3 * 0.0 + 1 * 1.0) / 4,
        "accuracy_own_distribution_local_only": 1.0,
        # scores are sure by 4 (statistics 8): no prior of three to one changes such a mind
        "accuracy_home": (3 * 1.0 + 1 * 0.5) / 4,
        "accuracy_home_calibrated": (3 * 0.0 + 1 * 1.0) / 4,
        "accuracy_home_control": (3 * 0.0 + 1 * 1.0) / 4,
        "accuracy_home_local_only": 1.0,
        "accuracy_held_out": None,
        "accuracy_held_out_calibrated": None,
        "accuracy_held_out_control": None,
        "accuracy_held_out_local_only": None,
        "recall": [1.0, 0.5, 0.25],
    }
    assert training_free == ControlFigures(5 / 8, [0.0, 1.0, 0.75])


def test_the_own_prior_decides_where_a_classifier_is_not_sure() -> None:
    """Class 0 is a little likelier everywhere; the client hardly knows it."""
    unsure = torch.log_softmax(torch.tensor([[0.3, 0.0, -9.0]]).repeat(8, 1), 1)
    method: Any = Rehearsed([client("a", [1, 9, 0])], {"a": unsure})
    (record,), _ = evaluate(method, [], TEST)
    assert record.accuracy == 2 / 8  # always class 0
    assert record.accuracy_own_distribution == 1 / 10
    assert record.accuracy_home == 9 / 10  # always class 1


def test_what_was_held_out_is_read_with_the_own_prior_and_each_expert_scores_once() -> None:
    own, control = sure_of(*LABELS), 0.001 * sure_of(*[2] * 8)
    one = client("a", [1, 9, 0])
    one.held_out = (torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 1]))
    calls: list[int] = []

    class Counted(Rehearsed):
        def scores(self, one: Any, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            return super().scores(one, images)[: len(images)]

        def control(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            return control[: len(images)]

    baselines: Any = [client("a", [1, 9, 0], sure_of(*[1] * 8))]
    method: Any = Counted([one], {"a": own}, control)
    (record,), _ = evaluate(method, baselines, TEST)
    assert record.accuracy_held_out == 2 / 3  # its answers are 0, 0, 1
    assert record.accuracy_held_out_local_only == 2 / 3
    assert record.accuracy_held_out_control == 2 / 3  # unsure: the prior says class 1
    assert calls == [8, 8, 3, 3]


def test_a_class_without_test_images_has_no_recall() -> None:
    test = TestSet(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))
    method: Any = Rehearsed([client("a", [0, 0, 5])], {"a": sure_of(0, 2)})
    (record,), control = evaluate(method, [], test)
    assert record.recall == [1.0, 0.0, None]
    assert record.accuracy_own_distribution is None
    assert record.accuracy_home is None
    assert control == ControlFigures(None, None)


def test_local_training_is_its_own_baseline_and_without_an_anchor_there_is_no_control() -> None:
    own = sure_of(*[0] * 8)
    method: Any = Rehearsed([client("a", [1, 1, 1])], {"a": own})
    method.is_own_control = True
    (record,), control = evaluate(method, [], TEST)
    assert control == ControlFigures()
    assert control_figures(method, TEST) == control_figures(method, None) == ControlFigures()
    assert record.accuracy_home_control is record.accuracy_home_calibrated is None
    assert record.accuracy == record.accuracy_local_only == 2 / 8
    assert record.accuracy_calibrated is None
    assert record.accuracy_absent_classes is None  # it lacks no class


def test_without_a_baseline_nothing_is_said_of_it() -> None:
    method: Any = Rehearsed([client("a", [1, 1, 0])], {"a": sure_of(*LABELS)})
    (record,), _ = evaluate(method, [], TEST)
    assert record.accuracy == 1
    silent = {key for key in record.document() if key.endswith("local_only")}
    assert len(silent) == 5
    assert not any(getattr(record, key) is not None for key in silent)


def test_statistics_only_are_scored_once_for_what_was_published() -> None:
    calls: list[int] = []

    class Counted(Rehearsed):
        def control(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            return sure_of(*LABELS)

    one = client("a", [1, 1, 1])
    method: Any = Counted([one], {"a": sure_of(*LABELS)})
    evaluator = Evaluator(method, TEST)
    for _ in range(3):
        evaluator.of(one, None)
        evaluator.control()
    assert len(calls) == 1
    method.published = {"anchor": b"others"}
    evaluator.of(one, None)
    assert len(calls) == 2


def test_twins_are_matched_by_place() -> None:
    clients = [client(name, [1] * 3) for name in ("a", "b")]
    scores = {"a": sure_of(*LABELS), "b": sure_of(*[0] * 8)}
    baselines: Any = [
        client("a", [1] * 3, sure_of(*[1] * 8)),
        client("b", [1] * 3, sure_of(*[2] * 8)),
    ]
    method: Any = Rehearsed(clients, scores)
    records, _ = evaluate(method, baselines, TEST)
    assert [(r.id, r.accuracy, r.accuracy_local_only) for r in records] == [
        ("a", 1.0, 2 / 8),
        ("b", 2 / 8, 4 / 8),
    ]


def test_averages_skip_what_is_not_known() -> None:
    def record(
        accuracy: float, absent: float | None, recall: Recalls | None = None
    ) -> ClientRecord:
        return ClientRecord(
            accuracy_home=absent,
            recall=recall,
            id="a",
            accuracy=accuracy,
            accuracy_local_only=0.5,
            accuracy_absent_classes=absent,
            accuracy_calibrated=accuracy + 0.125,
        )

    clients = [
        record(0.5, None, [0.5, None, 1.0]),
        record(0.75, 0.25, [0.25, None, None]),
        record(0.25, 0.75),
    ]
    known = {key: value for key, value in averages(clients).items() if value is not None}
    assert known == {
        "accuracy_mean": 0.5,
        "accuracy_worst": 0.25,
        "accuracy_local_only_mean": 0.5,
        "accuracy_absent_classes_mean": 0.5,
        "accuracy_calibrated_mean": 0.625,
        "accuracy_home_mean": 0.5,
        "recall_mean": [0.375, None, 1.0],
    }
    assert set(averages(clients)) == set(averages([])) == set(Means.__annotations__)
    assert not any(averages([]).values())


def test_share_and_mean_of_nothing_are_nothing() -> None:
    assert share(torch.tensor([], dtype=torch.bool)) is None
    assert share(torch.tensor([True, False, True, True])) == 0.75
    assert mean([]) is None
    assert mean([None]) is None
    assert mean([None, 0.0, 0.5]) == 0.25


@pytest.mark.parametrize("writeable", [True, False])
def test_pixels_become_images(writeable: bool) -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    pixels[0, 0, 0] = [0, 51, 255]
    before = pixels.copy()
    pixels.flags.writeable = writeable
    images = as_images(pixels, torch.device("cpu"))
    assert images.shape == (2, 3, 4, 4)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert images[0, :, 0, 0].tolist() == pytest.approx([0.0, 0.2, 1.0])
    for n, row, column, channel in np.ndindex(pixels.shape):
        exact = pixels[n, row, column, channel] / 255
        assert images[n, channel, row, column].item() == pytest.approx(exact)
    np.testing.assert_array_equal(pixels, before)
