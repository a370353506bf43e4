"""Local data of a client: its training images, and the test set if it has one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedvtc_edge.config import Config
from fedvtc_edge.data import Dataset, load_data, partition
from fedvtc_edge.data.dataset import Pixels, Samples
from fedvtc_edge.data.own import DataTerms, load_own, terms_of
from fedvtc_edge.data.public import REST
from fedvtc_edge.data.sources import BUILTIN
from fedvtc_edge.errors import DataError
from fedvtc_edge.seeding import derive_seed


@dataclass(frozen=True, eq=False)
class LocalData:
    """One client's data.

    Args:
        test: The global test set, where this process holds it.
        public: Whether anybody has the images: no release of them is remembered.
        shared: Images without labels that all parties have, or None.
    """

    own: Samples
    test: Samples | None
    public: bool = False
    shared: Pixels | None = None


Source = Callable[[Config, DataTerms], LocalData]
"""Reads a client's local data, once settings and terms are agreed on.

Raises:
    DataError: They do not fit the terms.
"""


def from_partition(index: int) -> Source:
    """Part of the data set that the settings name, for a simulated client; never over a network.

    Args:
        index: Number of the client.
    """

    def read(config: Config, terms: DataTerms) -> LocalData:
        if index >= config.clients.count:
            raise DataError(
                f"client number {index + 1} of {config.clients.count} has no share of the data",
                hint="server and clients need the same trust list; or join with --data PATH",
            )
        data = _dataset(config)
        here = terms_of(data, config.data.image_size)
        if here != terms:
            raise DataError(
                f"{config.data.name} is not here what it is at the server: "
                f"{difference(here, terms)}",
                hint="both sides need the same files below data.root; or join with --data PATH",
            )
        part = _parts(config)[index]
        return LocalData(
            Samples(data.x_train[part], data.y_train[part]),
            Samples(data.x_test, data.y_test),
            public=True,
            shared=data.x_public,
        )

    return read


def from_builtin(index: int) -> Source:
    """Part of a built-in data set, for a trial over a network.

    A server's word opens no file and no folder of the client's machine, and fetches nothing.

    Args:
        index: Number of the client.
    """
    part = from_partition(index)

    def read(config: Config, terms: DataTerms) -> LocalData:
        if config.data.name.lower() not in BUILTIN:
            raise DataError(
                f"the server's data set is {config.data.name!r:.80}; without data of its own a "
                f"client takes the built-in {', '.join(BUILTIN)} alone",
                hint="give your own images: join --data PATH",
            )
        if config.data.public.lower() not in ("", REST, *BUILTIN):
            raise DataError(
                f"the server's public images are {config.data.public!r:.80}, which its word does "
                "not open here",
                hint=f'take part in a run with data.public = "{REST}" alone',
            )
        return part(config.replace(data={"root": ""}), terms)

    return read


def from_path(path: Path) -> Source:
    """A client's own images.

    Args:
        path: An .npz file, an image folder, or a .zip file of one.
    """

    def read(config: Config, terms: DataTerms) -> LocalData:
        if terms.public:
            raise DataError(
                "the run teaches by public images (data.public), which a client with data of its "
                "own has no way to get",
                hint="run such a method with simulated clients: engine.name = flower or local",
            )
        own = load_own(path, terms)
        return LocalData(Samples(own.x, own.y), None)

    return read


def difference(here: DataTerms, there: DataTerms) -> str:
    """Difference of two sides' terms, by name."""
    if here.shape != there.shape:
        return f"images of {here.shape} here, {there.shape} there"
    names = zip(here.class_names, there.class_names, strict=False)
    for number, (own, other) in enumerate(names):
        if own != other:
            return f"class {number} is {own!r:.60} here, {other!r:.60} there"
    if here.class_names != there.class_names:
        return f"{len(here.class_names)} classes here, {len(there.class_names)} there"
    if here.public != there.public:
        return "other public images (data.public)"
    return f"data.image_size {here.image_size} here, {there.image_size} there"


@functools.lru_cache(maxsize=1)  # one process of a simulation plays many clients
def _dataset(config: Config) -> Dataset:
    return load_data(config)


@functools.lru_cache(maxsize=1)
def _parts(config: Config) -> list[np.typing.NDArray[np.int64]]:
    data = _dataset(config)
    return partition(
        data.y_train,
        clients=config.clients.count,
        classes=data.classes,
        settings=config.data,
        seed=derive_seed(config.seed, "partition"),
    )
