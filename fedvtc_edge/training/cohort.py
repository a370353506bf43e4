"""Clients of one architecture, trained at once: stacked networks, one loss for all by vmap.

For a GPU, on which small networks one after another leave most of it idle. On a CPU clients
go one by one, which is the faster way there. Both take the same draws of the same named
streams and minimise the same functions; sums come out in another order, so that weights
agree in their meaning and not in their bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedvtc_edge.models import Classifier, ExtractorHead

from . import distillation, finetuning, supervised
from .client import Client
from .compute import Compute
from .distillation import Lesson
from .knowledge import GlobalKnowledge
from .losses import ClassMoments
from .steps import blank_moments, move
from .supervised import Examples

LARGEST = 128
"""Networks of a stack at most; more clients are more stacks."""

Drawn = TypeVar("Drawn", Examples, Lesson)
Outputs = tuple[Tensor, Tensor]


class _Outputs(nn.Module):
    """A classifier whose call gives features and logits."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Outputs:
        return self.model.outputs(x)


class Cohort:
    """Networks of one architecture, each parameter [K, …] in one tensor.

    Args:
        models: Equal but for their weights, in training mode; see :func:`stackable`.
        compute: Where and how precisely steps run.
    """

    def __init__(self, models: Sequence[Classifier], compute: Compute) -> None:
        self._models, self._compute = list(models), compute
        self._base = copy.deepcopy(_Outputs(models[0])).to("meta")
        tables = [dict(_Outputs(model).named_parameters()) for model in models]
        with torch.no_grad():
            self.weights = {
                name: torch.stack([table[name] for table in tables]) for name in tables[0]
            }
        self._moments = {name: blank_moments(weight) for name, weight in self.weights.items()}

    def losses(
        self,
        objective: Callable[[Outputs, Drawn], Tensor],
        drawn: Sequence[Drawn],
        weights: dict[str, Tensor],
    ) -> Tensor:
        """Loss of each network on its own draws, [k].

        Args:
            drawn: One of each of the first k networks.
            weights: Of those, [k, …].
        """
        stacked, empty = _stacked(drawn)

        def one(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> Tensor:
            fields = type(drawn[0])(**tensors, **empty)
            with self._compute.autocast():
                outputs = functional_call(self._base, own, (fields.x,))
            return objective(outputs, fields)

        found: Tensor = vmap(one)(weights, stacked)
        return found

    def step(
        self, objective: Callable[[Outputs, Drawn], Tensor], drawn: Sequence[Drawn], rate: float
    ) -> None:
        """One step of the first ``len(drawn)`` networks, each by its own loss."""
        count = len(drawn)
        leaves = {name: w[:count].detach().requires_grad_() for name, w in self.weights.items()}
        total = self.losses(objective, drawn, leaves).sum()
        found = torch.autograd.grad(total, list(leaves.values()))
        # The fused optimiser goes by memory: gradients may lie transposed there.
        gradients = [gradient.contiguous() for gradient in found]
        moments = [
            (first[:count], second[:count], steps)
            for first, second, steps in (self._moments[name] for name in leaves)
        ]
        move([w[:count] for w in self.weights.values()], gradients, moments, rate)

    @torch.no_grad()
    def give_back(self) -> None:
        """Copy the weights to the networks that they came from."""
        for index, model in enumerate(self._models):
            for name, own in _Outputs(model).named_parameters():
                own.copy_(self.weights[name][index])


def stackable(client: Client) -> bool:
    """True for a client whose network may be stacked with others of its architecture.

    Not those on the extractor, nor networks with buffers or random layers of their own, such as
    batch norm and dropout: these go one by one.
    """
    model = client.model
    random = any(isinstance(m, nn.modules.dropout._DropoutNd) for m in model.modules())
    return not (isinstance(model, ExtractorHead) or random or any(True for _ in model.buffers()))


def groups(clients: Iterable[Client]) -> Iterator[list[Client]]:
    """Clients whose networks can be stacked, together; each of the others alone."""
    found: dict[Any, list[Client]] = {}
    for client in clients:
        shapes = tuple(p.shape for p in client.model.parameters())
        key = (client.architecture, shapes) if stackable(client) else client.id
        found.setdefault(key, []).append(client)
    for group in found.values():
        for begin in range(0, len(group), LARGEST):
            yield group[begin : begin + LARGEST]


def train(
    clients: Sequence[Client], round_: int, prior: ClassMoments | None = None, *, kl: float = 0.0
) -> None:
    """Phase A of many clients: what :meth:`Client.train` does for each.

    Those with more steps than others go on when these have finished.
    """
    for group in groups(clients):
        if len(group) == 1:
            group[0].train(round_, prior, kl=kl)
            continue
        steps = {c.id: supervised.steps_per_round(len(c.images), c.settings) for c in group}
        group = sorted(group, key=lambda client: -steps[client.id])  # who goes on comes first
        objective = partial(supervised.objective, prior=prior, kl=kl)
        with _working(group):
            cohort = _cohort(group)
            courses = [
                supervised.course(c.images, c.labels, c.present, c.settings, stream)
                for c in group
                for stream in [c.stream(round_, "train")]
            ]
            for drawn in _in_step(courses):
                _count(group, drawn)
                padded = _padded_examples(drawn)
                cohort.step(objective, padded, group[0].settings.rate)
            cohort.give_back()


def finetune(
    clients: Sequence[Client],
    round_: int,
    knowledge: GlobalKnowledge,
    *,
    steps: int,
    kl: float,
    decay: bool = False,
) -> None:
    """Phase C of many clients: what :meth:`Client.finetune` does for each.

    Without a teacher they go one by one.
    """
    for group in groups(clients):
        if len(group) == 1 or knowledge.teacher is None:
            for client in group:
                client.finetune(round_, knowledge, steps=steps, kl=kl, decay=decay)
            continue
        settings = group[0].settings
        with _working(group):
            # A course scales its head as it begins and ends: networks are stacked between.
            courses = [
                finetuning.course(
                    c.model,
                    c.decoder,
                    c.images,
                    c.labels,
                    c.present,
                    knowledge,
                    c.settings,
                    c.stream(round_, "finetune"),
                    steps=steps,
                )
                for c in group
                if c.decoder is not None
            ]
            drawn, cohort = [next(course) for course in courses], _cohort(group)
            for index in range(steps):
                _count(group, drawn)
                rate = distillation.rate_at(index, steps, settings, decay=decay)
                cohort.step(_lesson_objective, _padded_lessons(drawn), rate)
                if index + 1 < steps:
                    drawn = [next(course) for course in courses]
            cohort.give_back()
            for course in courses:
                next(course, None)


def _lesson_objective(outputs: Outputs, lesson: Lesson) -> Tensor:
    return distillation.objective(outputs[1], lesson)


def _cohort(group: Sequence[Client]) -> Cohort:
    for client in group:
        client.model.train()
    return Cohort([client.model for client in group], group[0].compute)


def _working(group: Sequence[Client]) -> ExitStack:
    stack = ExitStack()
    for client in group:
        stack.enter_context(client.working())
    stack.enter_context(group[0].compute.phase())
    return stack


def _count(group: Sequence[Client], drawn: Sequence[Examples | Lesson]) -> None:
    for client, fields in zip(group, drawn, strict=False):
        client.samples_seen += len(fields.x)


def _in_step(courses: Sequence[Iterator[Drawn]]) -> Iterator[list[Drawn]]:
    """Draws of one step after the other, of all that have not finished: of the first so many."""
    for drawn in zip_longest(*courses):
        yield [fields for fields in drawn if fields is not None]


def _stacked(drawn: Sequence[NamedTuple]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fields as one tensor each, and the names of those that are None."""
    tables = [fields._asdict() for fields in drawn]
    missing = {name: None for name, value in tables[0].items() if value is None}
    present = [name for name in tables[0] if name not in missing]
    return {name: torch.stack([table[name] for table in tables]) for name in present}, missing


def _padded_examples(drawn: Sequence[Examples]) -> list[Examples]:
    """Batches of one length: a client's first image again, with no weight."""
    most = max(len(fields.labels) for fields in drawn)
    return [
        fields._replace(
            x=_repeated(fields.x, most),
            labels=_repeated(fields.labels, most),
            shares=_shares(fields.labels, most),
        )
        for fields in drawn
    ]


def _padded_lessons(drawn: Sequence[Lesson]) -> list[Lesson]:
    """Lessons with as many plain images each; those that were added have no weight."""
    most = max(len(fields.labels) for fields in drawn)
    if most == 0:
        return list(drawn)
    made = []
    for fields in drawn:
        pictures, plain = fields.x[: len(fields.target)], fields.x[len(fields.target) :]
        made.append(
            fields._replace(
                x=torch.cat([pictures, _repeated(plain, most)]),
                labels=_repeated(fields.labels, most),
                shares=_shares(fields.labels, most),
            )
        )
    return made


def _repeated(values: Tensor, most: int) -> Tensor:
    return torch.cat([values, values[:1].expand(most - len(values), *values.shape[1:])])


def _shares(labels: Tensor, most: int) -> Tensor:
    shares = torch.zeros(most, device=labels.device)
    shares[: len(labels)] = 1 / len(labels)
    return shares
