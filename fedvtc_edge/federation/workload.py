"""Load of a round on a client's device, read off the method's own steps.

Needed before the round, to know who would finish it. A step's work is given a client that
notes its phases in place of going through them; what one step of a phase costs is recorded
on a probe copy with a few images. Messages have one length whatever the data are, so that
their sizes are known before there is anything to send.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge import wire
from fedvtc_edge.devices.clock import Speed
from fedvtc_edge.devices.recorder import Work, probe_copy, record
from fedvtc_edge.masking import traffic_of
from fedvtc_edge.models.registry import ON_EXTRACTOR
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.distillation import LATE, PAINTED, batch_of, pool_size, pools
from fedvtc_edge.training.knowledge import GlobalKnowledge
from fedvtc_edge.training.losses import ClassMoments
from fedvtc_edge.training.own_objective import Objective
from fedvtc_edge.training.steps import Gradients

from .averaging import ScoreAverage
from .exchange import (
    Clipped,
    Exact,
    Exchange,
    Noised,
    RoundStep,
    SecureAggregatable,
    blank_statistics,
)
from .lazy import NETWORKS
from .server_training import ServerTrained

if TYPE_CHECKING:
    from .methods.base import Method

_FEW = 2
"""Images in the smaller of two trials; between it and a full batch, time is linear in images."""


@dataclass(frozen=True)
class TrainingTask:
    """Steps of one phase that a client takes in a round.

    Args:
        name: Of the phase; tasks of one name and architecture cost the same per step.
        size: The client's own images in a step.
        work: Takes so many steps with a probe copy, whose settings ask for them too.
    """

    name: str
    size: float
    steps: float
    work: Callable[[Client, int], object]


class Load(NamedTuple):
    """Work and traffic of one client in one round.

    Args:
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
    """Work of one step of a task with so many of the client's images; not of the first one.

    Two steps go on where one step ends. What follows there is the second step; if the end
    of the phase happens to begin like it, so much of it is seen instead, which is the same.

    Args:
        client: Nothing of it changes.
    """
    once, twice = (
        record(partial(task.work, probe_copy(client, size, steps), steps)) for steps in (1, 2)
    )
    shared = len(once.flops)
    same = (once.flops == twice.flops[:shared]) & (once.traffic == twice.traffic[:shared])
    begin = shared if same.all() else int(same.argmin())
    step = slice(begin, begin + len(twice.flops) - shared)
    return replace(twice, flops=twice.flops[step], traffic=twice.traffic[step])


class Workload:
    """Loads of all clients in one round of a method.

    Args:
        method: Nothing of it changes; what it will learn in the round is taken to be blank.
        number: Of the round; 0 is what happens once, before the first.

    Attributes:
        up: Bytes that each client uploads.
        down: Bytes that each client downloads.
    """

    def __init__(self, method: Method, number: int) -> None:
        self._method = copy.copy(method)  # learning binds its attributes anew
        for exchange in _exchanges(self._method.steps(0)) if number else ():
            if exchange.publication not in method.published:  # nobody was called yet
                self._method.learn(exchange.publication, _messages(method, exchange)[1], [])
        self._steps = self._method.steps(number)
        self.up, self.down = 0, 0
        for exchange in _exchanges(self._steps):
            upload, published = _messages(method, exchange)
            more = 0
            if method.federation.masked is not None and isinstance(exchange, SecureAggregatable):
                upload, more = _masked(method, exchange)
            self.up, self.down = self.up + upload, self.down + len(published) + more
            self._method.learn(exchange.publication, published, [])

    def of(self, client: Client) -> Load:
        """Load of one client, of which nothing changes: phases, then looks for uploads."""
        phases: list[TrainingTask] = []
        looks: list[TrainingTask] = []
        for index, step in enumerate(self._steps):
            phases += _phases(step, index, client)
            look = None if step.exchange is None else self._look(step.exchange)
            if look is not None:
                looks.append(TrainingTask("measure", len(client.images), 1, _again(look)))
        return Load((*phases, *looks), self.down, self.up)

    def _look(self, exchange: Exchange[Any]) -> Callable[[Client], object] | None:
        """What a client computes for an upload; of a release the features alone."""
        if isinstance(exchange, ServerTrained):
            return self._look(exchange.uploads)
        if isinstance(exchange, Exact):
            return exchange.measure
        if isinstance(exchange, ScoreAverage):
            return exchange.weights
        if not isinstance(exchange, Noised | Clipped):
            return None
        anchor = getattr(self._method, "anchor", None)
        if anchor is None:
            return Client.measure
        return partial(Client.measure_anchor, anchor=anchor, pooled=True)


class _OwnLoopError(Exception):
    """Work that reaches for a client's networks past its phases."""


class PhaseNotes(Client):
    """A client that notes its phases in place of going through them; it has no networks."""

    tasks: list[TrainingTask]

    @classmethod
    def of(cls, client: Client) -> PhaseNotes:
        """A client's data and settings without its networks."""
        notes = cls.__new__(cls)
        vars(notes).update(vars(client), tasks=[])
        for name in NETWORKS:
            vars(notes).pop(name, None)
        return notes

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse what was taken away: the networks."""
        raise _OwnLoopError(name)

    def start(self, knowledge: GlobalKnowledge) -> None:
        """No phase: a copy of a few numbers."""

    def train(
        self,
        round_: int,
        prior: ClassMoments | None = None,
        *,
        kl: float = 0.0,
        gradients: Gradients | None = None,
    ) -> None:
        """Whole batches and a smaller one of what is left; noised steps as plain ones."""
        batch, epochs = self.settings.batch, self.settings.epochs
        whole, rest = divmod(len(self.images), batch)
        usual = [(batch, epochs * whole), (rest, epochs)]
        sizes = usual if gradients is None else gradients.expected(len(self.images), usual)
        self._note("train", sizes, lambda probe, _: probe.train(0, prior, kl=kl))

    def train_on(
        self, round_: int, images: Tensor, labels: Tensor, present: Tensor, steps: int, **_: Any
    ) -> None:
        """Random batches, without what pulls them."""
        self._note(
            "steps",
            [(min(self.settings.batch, len(images)), steps)],
            lambda probe, k: probe.train_on(0, probe.images, probe.labels, probe.present, k),
        )

    def train_by(
        self,
        round_: int,
        steps: int,
        objective: Objective[Client],
        *,
        examples: tuple[Tensor, Tensor] | None = None,
        clip: float = math.inf,
        phase: str = "train",
    ) -> None:
        """Random batches of a method's own objective."""
        size = min(self.settings.batch, len(self.images if examples is None else examples[0]))

        def work(probe: Client, k: int) -> None:
            probe.train_by(0, k, objective, examples=examples, clip=clip)

        self._note(phase, [(size, steps)], work)

    def load(self, name: str, weights: Mapping[str, NDArray[Any]]) -> None:
        """No phase: a copy of a few numbers."""

    def fit_decoder(
        self, round_: int, knowledge: GlobalKnowledge, *, match: bool, **_: Any
    ) -> None:
        """As many images in a step as a batch has, whatever the client's number is."""
        self._note(
            "decoder",
            [(self.settings.batch, self.settings.decoder_steps)],
            lambda probe, _: probe.fit_decoder(0, knowledge, match=match),
        )

    def finetune(
        self,
        round_: int,
        knowledge: GlobalKnowledge,
        *,
        steps: int,
        kl: float,
        head_only: bool = False,
        real: bool = True,
        painted: float = PAINTED,
        **_: Any,
    ) -> None:
        """Real images in a step; synthetic ones come on top.

        With a teacher, a batch of its pool is a step of a task of its own, and steps with
        plain local images are another one than those without.
        """
        size, batch = min(self.settings.batch, len(self.images)), batch_of(self.settings)

        def part(name: str, size: float, count: int, late: float) -> None:
            def work(probe: Client, k: int) -> None:
                making, pool = name == "pool", batch_of(probe.settings)
                probe.finetune(
                    0,
                    knowledge,
                    steps=0 if making else k,
                    kl=kl,
                    head_only=head_only,
                    pictures=k * pool if making else pool,
                    late=late,
                    painted=painted,
                )

            self._note(name, [(size, count)], work)

        if knowledge.teacher is None or self.architecture in ON_EXTRACTOR:
            part("finetune", size, steps, 1.0)
            return
        plain = sum(index + 1 > LATE * steps for index in range(steps)) if real else 0
        pool = pool_size(steps, self.images.shape[1:].numel(), self.settings)
        part("pool", size, pools(steps, pool, self.settings) * (pool // batch), 1.0)
        part("finetune", size, steps - plain, 1.0)
        part("finetune, with labels", size, plain, 0.0)

    def _note(
        self,
        name: str,
        sizes: Iterable[tuple[float, float]],
        work: Callable[[Client, int], object],
    ) -> None:
        self.tasks += [
            TrainingTask(name, size, steps, work) for size, steps in sizes if size and steps
        ]


def _phases(step: RoundStep, index: int, client: Client) -> list[TrainingTask]:
    """Phases of a step's work; work with a loop of its own is one phase, linear in images.

    It is recorded in the first round that is asked for, and taken to cost as much in others.
    """
    if step.work is None:
        return []
    notes, work = PhaseNotes.of(client), step.work
    try:
        work(notes)
    except _OwnLoopError:

        def whole(probe: Client) -> None:
            probe.settings = client.settings
            work(probe)

        return [TrainingTask(f"step {index}", len(client.images), 1, _again(whole))]
    return notes.tasks


def _again(work: Callable[[Client], object]) -> Callable[[Client, int], object]:
    """``work`` so many times, on images that were never embedded."""

    def repeated(probe: Client, times: int) -> None:
        for _ in range(times):
            probe.images = probe.images.view_as(probe.images)  # features are kept by tensor
            work(probe)

    return repeated


def _messages(method: Method, exchange: Exchange[Any]) -> tuple[int, bytes]:
    """Bytes of an upload on its way, and a publication of the right shape that says nothing."""
    federation = method.federation
    if isinstance(exchange, ServerTrained):
        return _messages(method, exchange.uploads)[0], exchange.blank()
    if isinstance(exchange, Exact):
        classes, width, pooled = federation.classes, exchange.width, exchange.pooled
        blank = blank_statistics(classes, width, pooled=pooled)
        upload = exchange.written(blank)
    elif isinstance(exchange, Noised | Clipped):
        spec = exchange.spec
        classes, width, pooled = spec.classes, spec.width, spec.second
        upload = wire.encode_release(np.zeros(spec.size, np.int64))
    else:
        client = federation.clients[0]  # it can tell sizes, for they are the same for everybody
        context = federation.context(client.id, 0, exchange.kind)
        upload = exchange.encode(client, context)
        published = exchange.aggregate([exchange.decode(upload, context)], context)
        return len(upload) + federation.transport.overhead, published
    mean, covariance = np.zeros((classes, width)), np.eye(width) if pooled else None
    known = GlobalStatistics(np.ones(classes), mean, np.ones_like(mean), covariance)
    return len(upload) + federation.transport.overhead, wire.publish(known)


def _masked(method: Method, exchange: SecureAggregatable[Any]) -> tuple[int, int]:
    """Bytes up and down of a masked sum, as if nobody of the group were missing."""
    federation = method.federation
    config = federation.config
    largest = -(-config.group // config.sums)
    up, down = traffic_of(largest, exchange.size, exchange.bound)
    return up + 5 * federation.transport.overhead, down


def _exchanges(steps: Iterable[RoundStep]) -> Iterator[Exchange[Any]]:
    return (step.exchange for step in steps if step.exchange is not None)
