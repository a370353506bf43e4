"""Clients of one process: a few numbers of each, and networks and images of those at work.

A client is *live* while its networks and images are in memory. So many are as
``engine.memory_mb`` allows; whoever was used longest ago goes first, and its weights to the disk
if they changed. Nothing of a result depends on who is live.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge.config import Config
from fedvtc_edge.data import Dataset, hold_out
from fedvtc_edge.data.dataset import Labels
from fedvtc_edge.devices.planner import ClientAssignment
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.tensors import to_tensors
from fedvtc_edge.plugins import MethodTraits
from fedvtc_edge.runs.weights import WeightStore
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute, as_images

from .lazy import LazyClient, NetworkSource, lazy_client

LEAST_LIVE = 32
"""Clients that are live at least, where ``engine.memory_mb`` is 0; else those of a cohort."""

_SHARE = 4
"""One part in so many of the free memory is for live clients, where ``engine.memory_mb`` is 0."""

_UNKNOWN_MEMORY = 2**32
"""Bytes that are taken to be free where the operating system does not tell."""


@dataclass
class Member:
    """Data of a client that are always in memory.

    Args:
        part: Indices of all its samples in the training set.
        weights: Name of its kept weights; empty while they are those of its seed.
        seconds: Time at work.
        samples: Images that it was trained on, again and again.
    """

    assignment: ClientAssignment
    part: Labels
    weights: str = ""
    seconds: float = 0.0
    samples: int = 0

    @property
    def architecture(self) -> str:
        """Architecture that it trains."""
        assert self.assignment.architecture is not None
        return self.assignment.architecture


@dataclass
class _Live:
    client: LazyClient
    bytes: int
    baseline: LazyClient | None = None
    changed: bool = False


class ClientsById(Sequence[Client], ABC):
    """Clients that are made live one by one, as they are indexed or iterated.

    Attributes:
        ids: Of the clients, in their order.
    """

    ids: Sequence[str]

    @abstractmethod
    def client(self, name: str) -> Client:
        """One of them, live."""

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Client: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Client]: ...
    def __getitem__(self, index: int | slice) -> Client | Sequence[Client]:
        """Client by its place."""
        if isinstance(index, slice):
            return _Some(self.ids[index], self.client)
        return self.client(self.ids[index])

    def __iter__(self) -> Iterator[Client]:
        return map(self.client, self.ids)


class Roster(ClientsById):
    """All clients of a run in their order; indexing and iterating make clients live one by one.

    A client that is no longer live is another object when it is asked for again: use one, and
    let go of it before the next.

    Args:
        data: Whose images, uint8, all clients share.
        parts: Indices of each client's samples.
        method: Says which networks clients have beside their classifiers.
        weights: Where weights go that are not in memory.

    Attributes:
        fleet: Assignments, also of clients that sit out.
        members: What is always in memory, by id.
        ids: Of all clients.
        changed: Clients whose kept weights are not those of the last :meth:`forget_old`.
    """

    def __init__(
        self,
        config: Config,
        data: Dataset,
        assignments: Sequence[ClientAssignment],
        parts: Sequence[Labels],
        compute: Compute,
        *,
        method: type[MethodTraits],
        weights: WeightStore,
    ) -> None:
        self.fleet = list(assignments)
        self.members = {
            one.client: Member(one, part)
            for one, part in zip(assignments, parts, strict=True)
            if one.architecture is not None
        }
        self.ids = list(self.members)
        self.weights = weights
        self._config, self._data, self._compute, self._method = config, data, compute, method
        height, _, channels = data.image_shape
        self.shape, self.classes = ImageShape(height, channels), data.classes
        self._live: OrderedDict[str, _Live] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._most, self._most_bytes = _limits(config)
        self._bytes = 0
        self._old: list[str] = []
        self.changed: set[str] = set()

    def client(self, name: str) -> Client:
        """A client, to be looked at."""
        return self._entry(name).client

    def at_work(self, name: str) -> Client:
        """A client with its networks, of which something is about to change."""
        live = self._entry(name)
        # Now: built within a phase they would not, for a phase seeds torch's generator first.
        _ = live.client.model
        live.changed = True
        return live.client

    def baseline(self, name: str, *, at_work: bool = False) -> Client:
        """The double of a client that trains alone, from the same first weights.

        Args:
            at_work: Whether something of it is about to change.
        """
        live = self._entry(name)
        if live.baseline is None:
            client, tensors = live.client, self._kept(name)
            has_own = any(key.startswith("local/") for key in tensors)
            source = NetworkSource(
                self._config,
                name,
                client.architecture,
                self.shape,
                self.classes,
                self._compute,
                None,
                tensors if has_own else {},
                "local",
            )
            live.baseline = lazy_client(
                source, client.device_profile, client.images, client.labels, client.held_out
            )
        if at_work:
            _ = live.baseline.model
            live.changed = True
        return live.baseline

    def some(self, names: Sequence[str], *, at_work: bool = False) -> Sequence[Client]:
        """Some clients, each made live when it is its turn.

        Args:
            at_work: Whether something of them is about to change.
        """
        return _Some(list(names), self.at_work if at_work else self.client)

    def live_together(self, names: Sequence[str]) -> Iterator[list[Client]]:
        """Clients about to change, as many at a time as may be live."""
        group, size = list[str](), 0
        for name in names:
            cost = self._cost(name)
            if group and (len(group) == self._most or size + cost > self._most_bytes):
                yield [self.at_work(one) for one in group]
                group, size = [], 0
            group.append(name)
            size += cost
        if group:
            yield [self.at_work(one) for one in group]

    def representatives(self) -> list[Client]:
        """One client of each architecture."""
        first: dict[str, str] = {}
        for name, member in self.members.items():
            first.setdefault(member.architecture, name)
        return [self.client(name) for name in first.values()]

    def samples_of(self, name: str) -> tuple[Labels, Labels]:
        """Indices of what a client trains on and of what it holds out, sorted."""
        part = self.members[name].part
        kept, held = hold_out(self._data.y_train[part], self._config, name)
        return part[kept], part[held]

    def counts(self, name: str) -> NDArray[np.int64]:
        """Examples per class that a client trains on, [C]."""
        kept, _ = self.samples_of(name)
        return np.bincount(self._data.y_train[kept], minlength=self.classes)

    def parameters(self, architecture: str) -> int:
        """Weights of a client's networks, which an architecture's first client tells."""
        if architecture not in self._sizes:
            same = (n for n, m in self.members.items() if m.architecture == architecture)
            client = self._entry(next(same)).client
            networks = client.networks.values()
            self._sizes[architecture] = sum(p.numel() for m in networks for p in m.parameters())
        return self._sizes[architecture]

    def changed_now(self) -> set[str]:
        """Clients whose weights changed since the last :meth:`forget_old`, kept or not."""
        return self.changed | {name for name, live in self._live.items() if live.changed}

    def spent(self, name: str) -> tuple[float, int]:
        """Time at work of a client, and images that it was trained on."""
        if name in self._live:
            client = self._live[name].client
            return client.seconds, client.samples_seen
        return self.members[name].seconds, self.members[name].samples

    def trained(self) -> list[str]:
        """Ids of clients whose networks are no longer those of their seeds, in order."""
        changed = {name for name, live in self._live.items() if live.changed}
        return [n for n, member in self.members.items() if member.weights or n in changed]

    def keep(self, name: str) -> str:
        """Have a client's weights on the disk if they changed.

        Returns:
            The name to read them by; empty for those of its seed.
        """
        member, live = self.members[name], self._live.get(name)
        if live is not None:
            member.seconds, member.samples = live.client.seconds, live.client.samples_seen
            if live.changed:
                live.changed = False
                self._name(member, self.weights.keep(name, self._tensors(name, live)))
        return member.weights

    def adopt(self, name: str, weights: str, seconds: float, samples: int) -> None:
        """:meth:`replace`, but a client that is live with the very same weights stays so."""
        live = self._live.get(name)
        if live is None or live.changed or self.members[name].weights != weights:
            self.replace(name, weights, seconds, samples)
        else:
            live.client.seconds, live.client.samples_seen = seconds, samples

    def replace(self, name: str, weights: str, seconds: float, samples: int) -> None:
        """Take up a client's state that was kept elsewhere; what is live of it goes."""
        member, live = self.members[name], self._live.pop(name, None)
        if live is not None:
            self._bytes -= live.bytes
        self._name(member, weights)
        member.seconds, member.samples = seconds, samples

    def restore(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up all states of a checkpoint, and forget weights that none of them names."""
        for name, kept in states.items():
            self.replace(name, kept["weights"], kept["seconds"], kept["samples"])
        self._old, self.changed = [], set()
        self.weights.remove_others({kept["weights"] for kept in states.values()} - {""})

    def forget_old(self) -> None:
        """Remove weights that the checkpoint no longer names."""
        current = {self.members[name.rpartition(".")[0]].weights for name in self._old}
        self.weights.remove(set(self._old) - current)
        self.forget_names()

    def forget_names(self) -> None:
        """Leave it to another process to remove weights."""
        self._old, self.changed = [], set()

    def _entry(self, name: str) -> _Live:
        live = self._live.get(name)
        if live is None:
            live = _Live(self._wake(name), self._cost(name))
            self._live[name] = live
            self._bytes += live.bytes
            self._make_room()
        else:
            self._live.move_to_end(name)
        return live

    def _wake(self, name: str) -> LazyClient:
        member = self.members[name]
        profile, device = member.assignment.profile, self._compute.device
        tensors = {k: v for k, v in self._kept(name).items() if not k.startswith("local/")}
        source = NetworkSource(
            self._config,
            name,
            member.architecture,
            self.shape,
            self.classes,
            self._compute,
            self._method,
            tensors,
        )

        def part(indices: Labels) -> tuple[Tensor, Tensor]:
            labels = torch.from_numpy(self._data.y_train[indices])
            return as_images(self._data.x_train[indices], device), labels.to(device)

        kept, held = self.samples_of(name)
        client = lazy_client(
            source,
            profile.name if profile else None,
            *part(kept),
            part(held) if len(held) else None,
        )
        client.seconds, client.samples_seen = member.seconds, member.samples
        return client

    def _kept(self, name: str) -> dict[str, Tensor]:
        kept = self.members[name].weights
        return self.weights.read(kept) if kept else {}

    def _cost(self, name: str) -> int:
        """Bytes of a live client, all its networks included, whether they are built or not."""
        member = self.members[name]
        images = len(member.part) * (self.shape.size**2 * self.shape.channels)
        return 4 * (images + 2 * self._sizes.get(member.architecture, 0))

    def _make_room(self) -> None:
        while len(self._live) > 1 and (
            len(self._live) > self._most or self._bytes > self._most_bytes
        ):
            name, live = next(iter(self._live.items()))
            self.keep(name)
            del self._live[name]
            self._bytes -= live.bytes

    def _tensors(self, name: str, live: _Live) -> dict[str, Tensor]:
        """All weights of a live client; those of a baseline that is not built as they were kept."""
        tensors = to_tensors(live.client.networks)
        if live.baseline is not None and live.baseline.is_built:
            return tensors | to_tensors({"local": live.baseline.model})
        return tensors | {k: v for k, v in self._kept(name).items() if k.startswith("local/")}

    def _name(self, member: Member, weights: str) -> None:
        if member.weights != weights:
            self.changed.add(member.assignment.client)
            if member.weights:
                self._old.append(member.weights)
            member.weights = weights


class _Some(ClientsById):
    """Some clients of a roster, to be looked at or about to change."""

    def __init__(self, names: Sequence[str], get: Callable[[str], Client]) -> None:
        self.ids = names
        self._get = get

    def client(self, name: str) -> Client:
        return self._get(name)


def ids_of(clients: Sequence[Client]) -> list[str]:
    """Ids of clients in their order; nobody becomes live for it."""
    if isinstance(clients, ClientsById):
        return list(clients.ids)
    return [client.id for client in clients]


def one_per_architecture(clients: Sequence[Client]) -> list[Client]:
    """The first client of each architecture."""
    if isinstance(clients, Roster):
        return clients.representatives()
    first: dict[str, Client] = {}
    for client in clients:
        first.setdefault(client.architecture, client)
    return list(first.values())


def _limits(config: Config) -> tuple[int, int]:
    """Live clients at most, and their bytes."""
    asked = config.engine.memory_mb
    if asked:
        return config.clients.count, asked * 2**20
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        free = _UNKNOWN_MEMORY
    return max(config.clients.per_round, LEAST_LIVE), free // _SHARE
