"""Means over clients, as they stand in metrics.jsonl and summary.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from .exact_mean import ExactMean
from .records import ACCURACIES, RECALL_DECIMALS, Accuracies, ClientRecord, Means


class RunningMeans:
    """Means over clients that may be replaced: each change costs what one client does."""

    def __init__(self) -> None:
        self._sums = {key: ExactMean() for key in ACCURACIES if key != "recall"}
        self._recall: list[ExactMean] = []

    def count(self, client: Accuracies, times: int = 1) -> None:
        """Count a client's accuracies; −1 times takes them out again."""
        known = cast(Mapping[str, float | None], client)
        for key, total in self._sums.items():
            value = known[key]
            if value is not None:
                total.add(value, times)
        recall = client["recall"] or []
        self._recall += [ExactMean() for _ in recall[len(self._recall) :]]
        for total, value in zip(self._recall, recall, strict=False):
            if value is not None:
                total.add(value, times)

    def value(self, worst: float | None) -> Means:
        """Means over all that count; None where nothing is known.

        Args:
            worst: The least accuracy of a client, which no sum tells.
        """
        recall = [total.value for total in self._recall]
        rounded = [None if one is None else round(one, RECALL_DECIMALS) for one in recall]
        found = {f"{key}_mean": total.value for key, total in self._sums.items()}
        return cast(Means, {**found, "accuracy_worst": worst, "recall_mean": rounded or None})


def averages(clients: Iterable[ClientRecord]) -> Means:
    """Means over clients, from their records."""
    means, worst = RunningMeans(), None
    for client in clients:
        means.count(client.accuracies)
        if client.accuracy is not None:
            worst = client.accuracy if worst is None else min(worst, client.accuracy)
    return means.value(worst)
