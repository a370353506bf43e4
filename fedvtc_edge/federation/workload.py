"""What a round asks of a client's device: phases to compute and bytes to carry.

Needed before the round, to know who would finish it. Messages have one length whatever
the data are, so that their sizes are known before there is anything to send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fedvtc_edge import wire
from fedvtc_edge.devices.rehearsal import TrainingTask
from fedvtc_edge.masking import LARGEST_BOUND, traffic_of
from fedvtc_edge.privacy.release_spec import ReleaseSpec
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.transport.masked_sum import vector_bound, vector_size

from .exchange import blank_statistics
from .federation import Federation

Bytes = tuple[int, int]
"""Up and down."""


def epochs(client: Client, train: Callable[[Client], None]) -> Iterator[TrainingTask]:
    """Phase A: whole batches, and a smaller one of what is left.

    Args:
        client: Whose.
        train: Trains a stand-in for as many epochs as its settings ask for.
    """
    settings = client.settings
    whole, rest = divmod(len(client.images), settings.batch)
    for size, steps in ((settings.batch, whole), (rest, 1)):
        if size and steps:
            yield TrainingTask(
                "train", size, settings.epochs * steps, lambda probe, _: train(probe)
            )


def random_batches(client: Client, steps: int, samples: int) -> TrainingTask:
    """So many steps on random batches out of ``samples`` labelled images."""

    def rehearse(probe: Client, steps: int) -> None:
        probe.train_on(0, probe.images, probe.labels, probe.present, steps)

    return TrainingTask("steps", min(client.settings.batch, samples), steps, rehearse)


def one_pass(client: Client, measure: Callable[[Client], object]) -> TrainingTask:
    """A look at each of the client's images, as statistics are measured."""

    def rehearse(probe: Client, steps: int) -> None:
        for _ in range(steps):
            measure(probe)

    return TrainingTask("measure", len(client.images), 1, rehearse)


def statistics_bytes(federation: Federation, width: int, *, pooled: bool) -> Bytes:
    """Exact statistics of so many features up, and what is published down."""
    classes = federation.classes
    down = _published(classes, width, pooled)
    if federation.masked is not None:
        size = vector_size(classes, width, pooled=pooled)
        return _masked(federation, size, vector_bound(), down)
    blank = blank_statistics(classes, width, pooled=pooled)
    upload = wire.encode(blank, precision=federation.config.transport.precision)
    return len(upload) + federation.transport.overhead, down


def release_bytes(federation: Federation, spec: ReleaseSpec) -> Bytes:
    """A noised or clipped release up, and what is published of their sum down."""
    down = _published(spec.classes, spec.width, spec.second)
    if federation.masked is not None:
        return _masked(federation, spec.size, LARGEST_BOUND, down)
    upload = wire.encode_release(np.zeros(spec.size, np.int64))
    return len(upload) + federation.transport.overhead, down


def weights_bytes(federation: Federation, weights: wire.Weights) -> Bytes:
    """Weights up, and their average down."""
    size = len(wire.encode_weights(weights))
    return size + federation.transport.overhead, size


def _published(classes: int, width: int, pooled: bool) -> int:
    zero = np.zeros((classes, width))
    covariance = np.zeros((width, width)) if pooled else None
    return len(wire.publish(GlobalStatistics(np.zeros(classes), zero, zero, covariance)))


def _masked(federation: Federation, size: int, bound: int, published: int) -> Bytes:
    """As if nobody of the group were missing."""
    up, down = traffic_of(federation.config.group, size, bound)
    return up + 5 * federation.transport.overhead, down + published
