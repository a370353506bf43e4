"""Accuracy on the global test set and at home: read after each round, never chosen on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.runs.records import (
    ACCURACIES,
    RECALL_DECIMALS,
    Accuracies,
    Recalls,
)
from fedvtc_edge.statistics.class_prior import accuracy_on, log_prior, recalls
from fedvtc_edge.training.client import Client

from .methods import Method, calibrated


@dataclass(frozen=True, eq=False)
class TestSet:
    """Images [N, channels, size, size] on the run's device and labels [N] on the CPU."""

    __test__ = False  # not a test class, whatever pytest makes of its name

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ControlFigures:
    """Accuracy of statistics only, and its recall per class, [C]; None where there is none."""

    accuracy: float | None = None
    recall: Recalls | None = None


class Evaluator:
    """Accuracies of clients, one by one, and those of statistics only.

    What statistics only say of the test set is computed when what was published changes.

    Args:
        method: Gives its clients' scores and those of statistics only.
        test: None where there is none: then only held-out images tell anything.
    """

    def __init__(self, method: Method, test: TestSet | None) -> None:
        self._method = method
        self._test = test
        self._published: dict[str, bytes] | None = None
        self._control: Tensor | None = None

    def of(self, client: Client, baseline: Client | None) -> Accuracies:
        """Accuracies of a client.

        Each classifier scores the test set once, for all figures: a client's own prior is added
        to the scores, and recalls per class are weighted by its counts.

        Args:
            baseline: Its local baseline; None where there is none, or where the method is
                local-only itself.
        """
        method, test = self._method, self._test
        found: dict[str, Any] = dict.fromkeys(ACCURACIES)
        if test is not None:
            scores = _scores(method, client, baseline, test.images, self._scores_of_statistics())
            found |= _on_test_set(client, scores, test.labels)
        if client.held_out is not None:
            images, labels = client.held_out
            scores = _scores(method, client, baseline, images, method.control(images))
            for expert, uniform in scores.items():
                at_home = uniform + _log_prior(client)
                found[f"accuracy_held_out{expert}"] = _accuracy(at_home, labels.cpu())
        return cast(Accuracies, found)

    def control(self) -> ControlFigures:
        """Figures of statistics only; none where there is no test set, or no such classifier."""
        return _figures(self._scores_of_statistics(), self._test)

    def _scores_of_statistics(self) -> Tensor | None:
        if self._test is None:
            return None
        if self._published != self._method.published:
            self._control = self._method.control(self._test.images)
            self._published = dict(self._method.published)
        return self._control


def control_figures(method: Method, test: TestSet | None) -> ControlFigures:
    """Figures of statistics only; none where there is no test set, or no such classifier."""
    return Evaluator(method, test).control()


def share(correct: Tensor) -> float | None:
    """Fraction of True, or None of an empty selection."""
    return float(correct.double().mean()) if len(correct) else None


def recall_of(scores: Tensor, labels: Tensor) -> Recalls:
    """Recall per class, [C]; None where the test set has no image of it."""
    found = _recalls(scores, labels)
    return [None if np.isnan(value) else round(float(value), RECALL_DECIMALS) for value in found]


def _scores(
    method: Method, client: Client, baseline: Client | None, images: Tensor, control: Tensor | None
) -> dict[str, Tensor]:
    """Log-posteriors [N, C] for a uniform prior, by the ending of the keys that tell of them."""
    own = method.scores(client, images)
    scores = {"": own}
    if method.is_own_control:
        scores["_local_only"] = own
    elif baseline is not None:
        model = baseline.model.eval()
        scores["_local_only"] = in_chunks(model, model.inputs(images)).log_softmax(1)
    if control is not None:
        scores["_control"] = control
        scores["_calibrated"] = calibrated(own, control)
    return scores


def _on_test_set(client: Client, scores: Mapping[str, Tensor], labels: Tensor) -> dict[str, Any]:
    """Figures of one client, from all scores of the test set."""
    found: dict[str, Any] = {"recall": recall_of(scores[""], labels)}
    absent = ~client.present.cpu()[labels]
    for expert in scores.keys() & {"", "_local_only"}:
        found[f"accuracy_absent_classes{expert}"] = _accuracy(
            scores[expert][absent], labels[absent]
        )
    for expert, uniform in scores.items():
        if expert != "_control":  # one for all clients
            found[f"accuracy{expert}"] = _accuracy(uniform, labels)
        for point, chosen in (
            ("own_distribution", uniform),
            ("home", uniform + _log_prior(client)),
        ):
            weighted = accuracy_on(client.counts, _recalls(chosen, labels))
            found[f"accuracy_{point}{expert}"] = weighted
    return found


def _log_prior(client: Client) -> Tensor:
    return torch.from_numpy(log_prior(client.counts))


def _accuracy(scores: Tensor, labels: Tensor) -> float | None:
    return share(scores.argmax(1) == labels)


def _recalls(scores: Tensor, labels: Tensor) -> NDArray[np.float64]:
    return recalls(scores.argmax(1), labels, scores.shape[1])


def _figures(control: Tensor | None, test: TestSet | None) -> ControlFigures:
    if control is None or test is None:
        return ControlFigures()
    return ControlFigures(_accuracy(control, test.labels), recall_of(control, test.labels))
