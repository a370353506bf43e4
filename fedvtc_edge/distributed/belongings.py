"""What a client brings along: its data, and the test set that it may be read on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedvtc_edge.assembly import Samples
from fedvtc_edge.config import Config
from fedvtc_edge.data import Dataset, load_dataset, partition
from fedvtc_edge.data.dataset import as_labels, as_pixels, check_pairs
from fedvtc_edge.data.own import DataTerms, load_own, terms_of
from fedvtc_edge.errors import DataError
from fedvtc_edge.streams import seed_of

TEST = "test-set"
"""Under which name the server publishes its test set to clients that lack it."""


@dataclass(frozen=True, eq=False)
class Belongings:
    """One client's data.

    Args:
        own: What it trains on.
        test: The global test set, where this process holds it.
    """

    own: Samples
    test: Samples | None


Source = Callable[[Config, DataTerms], Belongings]
"""Reads a client's belongings, once settings and terms are agreed on.

Raises:
    DataError: They do not fit the terms.
"""


def dealt(index: int) -> Source:
    """A share of the data set that the settings name: what a simulated client has.

    Args:
        index: Number of the client.
    """

    def read(config: Config, terms: DataTerms) -> Belongings:
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
        return Belongings(
            Samples(data.x_train[part], data.y_train[part]), Samples(data.x_test, data.y_test)
        )

    return read


def brought(path: Path) -> Source:
    """A client's own images.

    Args:
        path: An .npz file, an image folder, or a .zip file of one.
    """

    def read(config: Config, terms: DataTerms) -> Belongings:
        own = load_own(path, terms)
        return Belongings(Samples(own.x, own.y), None)

    return read


def pack_test(test: Samples) -> bytes:
    """A test set as it is published."""
    arrays = {"images": test.images, "labels": test.labels}
    return save({name: np.ascontiguousarray(value) for name, value in arrays.items()})


def unpack_test(data: bytes, terms: DataTerms) -> Samples:
    """Read what :func:`pack_test` wrote.

    Raises:
        DataError: Damaged, or not of the agreed shapes and classes.
    """
    where = "the server's test set"
    try:
        arrays = load(data)
        images, labels = arrays["images"], arrays["labels"]
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise DataError(f"{where} is damaged", hint="join again") from None
    images = as_pixels(images, where)
    labels = as_labels(labels, where, len(terms.class_names))
    check_pairs(images, labels, where, "test")
    if images.shape[1:] != terms.shape:
        raise DataError(
            f"{where}: images of {images.shape[1:]}, agreed are {terms.shape}",
            hint="the server contradicts itself: do not trust it",
        )
    return Samples(images, labels)


def difference(here: DataTerms, there: DataTerms) -> str:
    """What two sides see differently, by name."""
    if here.shape != there.shape:
        return f"images of {here.shape} here, {there.shape} there"
    names = zip(here.class_names, there.class_names, strict=False)
    for number, (own, other) in enumerate(names):
        if own != other:
            return f"class {number} is {own!r:.60} here, {other!r:.60} there"
    if here.class_names != there.class_names:
        return f"{len(here.class_names)} classes here, {len(there.class_names)} there"
    return f"data.image_size {here.image_size} here, {there.image_size} there"


@functools.lru_cache(maxsize=1)  # one process of a simulation plays many clients
def _dataset(config: Config) -> Dataset:
    return load_dataset(config.data, public_classes=config.privacy.mode != "none")


@functools.lru_cache(maxsize=1)
def _parts(config: Config) -> list[np.typing.NDArray[np.int64]]:
    data = _dataset(config)
    return partition(
        data.y_train,
        clients=config.clients.count,
        classes=data.classes,
        settings=config.data,
        seed=seed_of(config.seed, "partition"),
    )
