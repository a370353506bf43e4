"""How long a client's phases take on its device: a stand-in rehearses a step or two of each.

A phase is charged by what its own code does, recorded operation by operation on a copy
of the client with a few of its images. Setting up is not charged: it is what one step
and two steps have in common.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from fedvtc_edge.training.client import Client

from .recorder import Work, record_work
from .speed import Speed

_FEW = 2
"""Images in the smaller rehearsal; between it and a full batch, time is linear in images."""


@dataclass(frozen=True)
class TrainingTask:
    """A part of what a client does in a round.

    Args:
        name: Of the phase; tasks of one name and architecture cost the same per step.
        size: The client's own images in a step.
        steps: How many steps.
        rehearse: Takes so many steps with a stand-in, whose settings ask for them too.
    """

    name: str
    size: float
    steps: float
    rehearse: Callable[[Client, int], object]


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


class Rehearsal:
    """Remembers what was rehearsed: once per architecture and phase, whatever the device."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[_Step, _Step]] = {}

    def seconds(self, client: Client, tasks: Iterable[TrainingTask], speed: Speed) -> float:
        """Time of a client's tasks on a device.

        Args:
            client: Whose; nothing of it changes.
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
        client: Whose; nothing of it changes.
        task: What is rehearsed.
        size: Images.
    """
    once, twice = (
        record_work(partial(task.rehearse, probe_copy(client, size, steps), steps))
        for steps in (1, 2)
    )
    shared = len(once.flops)
    same = (once.flops == twice.flops[:shared]) & (once.traffic == twice.traffic[:shared])
    begin = shared if same.all() else int(same.argmin())
    step = slice(begin, begin + len(twice.flops) - shared)
    return Work(twice.flops[step], twice.traffic[step])


def probe_copy(client: Client, size: int, steps: int) -> Client:
    """A copy with ``size`` images, whose phases last ``steps`` steps."""
    picked = torch.arange(size) % len(client.images)
    return replace(
        client,
        images=client.images[picked],
        labels=client.labels[picked],
        model=copy.deepcopy(client.model),
        decoder=copy.deepcopy(client.decoder),
        settings=client.settings.model_copy(update={"epochs": steps, "decoder_steps": steps}),
        seconds=0.0,
        samples_seen=0,
    )
