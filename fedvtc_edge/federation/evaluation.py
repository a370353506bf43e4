"""Accuracy on the global test set: read after each round, never chosen on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedvtc_edge.training.client import Client, in_chunks

from .methods import Method, calibrated


@dataclass(frozen=True, eq=False)
class TestSet:
    """Images [N, channels, size, size] on the run's device and labels [N] on the CPU."""

    __test__ = False  # not a test class, whatever pytest makes of its name

    images: Tensor
    labels: Tensor


def evaluate(
    method: Method, baselines: Sequence[Client], test: TestSet
) -> tuple[list[dict[str, Any]], float | None]:
    """Per-client accuracies, and that of the training-free control.

    Args:
        method: Asked for its clients' scores and for the control's.
        baselines: The clients' local-only doubles, in the same order; empty where the
            method itself is local-only.
        test: The global test set.

    Returns:
        One record per client, and the control's accuracy or None.
    """
    control = method.control(test.images)
    records = []
    for index, client in enumerate(method.federation.clients):
        own = method.scores(client, test.images)
        correct = own.argmax(1) == test.labels
        alone = correct
        if baselines:
            alone = in_chunks(baselines[index].model.eval(), test.images).argmax(1) == test.labels
        present = client.present.cpu()
        absent = ~present[test.labels]
        both = None
        if control is not None:
            known = method.own_classes(client).cpu()
            both = share(calibrated(own, control, known).argmax(1) == test.labels)
        records.append(
            {
                "id": client.id,
                "accuracy": share(correct),
                "accuracy_local_only": share(alone),
                "accuracy_absent_classes": share(correct[absent]),
                "accuracy_absent_classes_local_only": share(alone[absent]),
                "accuracy_calibrated": both,
            }
        )
    return records, None if control is None else share(control.argmax(1) == test.labels)


def share(correct: Tensor) -> float | None:
    """Fraction of True, or None of an empty selection."""
    return float(correct.double().mean()) if len(correct) else None


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values there are, or None."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


ACCURACIES = (
    "accuracy",
    "accuracy_local_only",
    "accuracy_absent_classes",
    "accuracy_absent_classes_local_only",
    "accuracy_calibrated",
)
"""What is read of each client."""


def averages(records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Means over clients, as they stand in metrics.jsonl and summary.json."""

    def over(key: str) -> float | None:
        return mean([record[key] for record in records])

    known = [record["accuracy"] for record in records if record["accuracy"] is not None]
    return {
        "accuracy_mean": over("accuracy"),
        "accuracy_worst": min(known) if known else None,
        "accuracy_local_only_mean": over("accuracy_local_only"),
        "accuracy_absent_classes_mean": over("accuracy_absent_classes"),
        "accuracy_absent_classes_local_only_mean": over("accuracy_absent_classes_local_only"),
        "accuracy_calibrated_mean": over("accuracy_calibrated"),
    }
