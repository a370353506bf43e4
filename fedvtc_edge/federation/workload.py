"""What a round asks of a client's device: phases to compute and bytes to carry.

Needed before the round, to know who would finish it. Messages have one length whatever
the data are, so that their sizes are known before there is anything to send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from fedvtc_edge import wire
from fedvtc_edge.devices.clock import Speed
from fedvtc_edge.devices.recorder import Work, probe_copy, record
from fedvtc_edge.masking import LARGEST_BOUND, traffic_of
from fedvtc_edge.privacy.release_spec import ReleaseSpec
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.transport.masked_sum import vector_bound, vector_size

from .exchange import blank_statistics
from .federation import Federation

Bytes = tuple[int, int]
"""Up and down."""

_FEW = 2
"""Images in the smaller of two trials; between it and a full batch, time is linear in images."""


@dataclass(frozen=True)
class TrainingTask:
    """A part of what a client does in a round.

    Args:
        name: Of the phase; tasks of one name and architecture cost the same per step.
        size: The client's own images in a step.
        steps: How many steps.
        work: Takes so many steps with a probe copy, whose settings ask for them too.
    """

    name: str
    size: float
    steps: float
    work: Callable[[Client, int], object]


class Load(NamedTuple):
    """What one client has to do in one round.

    Args:
        tasks: Phases to compute.
        down: Bytes to download.
        up: Bytes to upload.
    """

    tasks: tuple[TrainingTask, ...] = ()
    down: int = 0
    up: int = 0


class StepCosts:
    """Time of training steps, found once per architecture and phase, whatever the device."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[_Step, _Step]] = {}

    def seconds(self, client: Client, tasks: Iterable[TrainingTask], speed: Speed) -> float:
        """Time of a client's tasks on a device.

        Args:
            client: Nothing of it changes.
            tasks: What it does in a round.
            speed: Of its device.
        """
        return sum(task.steps * self._step(client, task, speed) for task in tasks)

    def _step(self, client: Client, task: TrainingTask, speed: Speed) -> float:
        key = (client.architecture, task.name)
        if key not in self._known:
            sizes = (_FEW, max(client.settings.batch, _FEW + 1))
            few, full = (_Step(size, one_step(client, task, size)) for size in sizes)
            self._known[key] = (few, full)
        few, full = self._known[key]
        low, high = few.work.seconds(speed), full.work.seconds(speed)
        slope = (high - low) / (full.size - few.size)
        return max(low + slope * (task.size - few.size), 0.0)


@dataclass(frozen=True)
class _Step:
    size: int
    work: Work


def one_step(client: Client, task: TrainingTask, size: int) -> Work:
    """What one step of a task does with so many of the client's images; not the first one.

    Two steps go on where one step ends. What follows there is the second step; if the end
    of the phase happens to begin like it, so much of it is seen instead, which is the same.

    Args:
        client: Nothing of it changes.
        task: The phase that is tried.
        size: Images.
    """
    once, twice = (
        record(partial(task.work, probe_copy(client, size, steps), steps)) for steps in (1, 2)
    )
    shared = len(once.flops)
    same = (once.flops == twice.flops[:shared]) & (once.traffic == twice.traffic[:shared])
    begin = shared if same.all() else int(same.argmin())
    step = slice(begin, begin + len(twice.flops) - shared)
    return replace(twice, flops=twice.flops[step], traffic=twice.traffic[step])


def epochs(client: Client, train: Callable[[Client], None]) -> Iterator[TrainingTask]:
    """Phase A: whole batches, and a smaller one of what is left.

    Args:
        client: One of the federation.
        train: Trains a probe copy for as many epochs as its settings ask for.
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

    def work(probe: Client, steps: int) -> None:
        probe.train_on(0, probe.images, probe.labels, probe.present, steps)

    return TrainingTask("steps", min(client.settings.batch, samples), steps, work)


def one_pass(client: Client, measure: Callable[[Client], object]) -> TrainingTask:
    """A look at each of the client's images, as statistics are measured."""

    def work(probe: Client, steps: int) -> None:
        for _ in range(steps):
            measure(probe)

    return TrainingTask("measure", len(client.images), 1, work)


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
