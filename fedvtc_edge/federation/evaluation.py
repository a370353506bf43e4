"""Accuracy on the global test set: read after each round, never chosen on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.runs.records import ClientRecord
from fedvtc_edge.training.client import Client

from .methods import Method, calibrated


@dataclass(frozen=True, eq=False)
class TestSet:
    """Images [N, channels, size, size] on the run's device and labels [N] on the CPU."""

    __test__ = False  # not a test class, whatever pytest makes of its name

    images: Tensor
    labels: Tensor


def evaluate(
    method: Method, baselines: Sequence[Client], test: TestSet
) -> tuple[list[ClientRecord], float | None]:
    """Measure every client's accuracies, and that of the training-free control.

    Args:
        method: Gives its clients' scores and the control's.
        baselines: The clients' local baselines, in the same order; empty where the method
            is local-only itself.

    Returns:
        One record per client, and the control's accuracy or None.
    """
    scores = method.control(test.images)
    records = []
    for index, client in enumerate(method.federation.clients):
        own = method.scores(client, test.images)
        correct = own.argmax(1) == test.labels
        alone = correct
        if baselines:
            alone = in_chunks(baselines[index].model.eval(), test.images).argmax(1) == test.labels
        absent = ~client.present.cpu()[test.labels]
        both = None
        if scores is not None:
            known = method.own_classes(client).cpu()
            both = share(calibrated(own, scores, known).argmax(1) == test.labels)
        records.append(
            ClientRecord(
                id=client.id,
                accuracy=share(correct),
                accuracy_local_only=share(alone),
                accuracy_absent_classes=share(correct[absent]),
                accuracy_absent_classes_local_only=share(alone[absent]),
                accuracy_calibrated=both,
            )
        )
    return records, None if scores is None else share(scores.argmax(1) == test.labels)


def control_accuracy(method: Method, test: TestSet | None) -> float | None:
    """Accuracy of the training-free classifier, or None where there is no test set or none such."""
    scores = None if test is None else method.control(test.images)
    if scores is None or test is None:
        return None
    return share(scores.argmax(1) == test.labels)


def share(correct: Tensor) -> float | None:
    """Fraction of True, or None of an empty selection."""
    return float(correct.double().mean()) if len(correct) else None
