"""Dealing the training samples out to the clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedvtc_edge.errors import DataError

from .dataset import Labels, as_labels
from .splits import stratified

if TYPE_CHECKING:  # a device reads images without any settings
    from fedvtc_edge.config import Config, DataSettings

_REDRAWS = 100

LEAST_HELD_OUT = 10
"""Fewer examples say nothing of a client: then it trains on all that it has."""


def hold_out(labels: Labels, config: Config, client: str) -> tuple[Labels, Labels]:
    """Split what a client trains on from what is only read, to say how well it does at home.

    Args:
        labels: Of all the client's examples, [N].
        config: Says which share of every class is held out.
        client: Its id.

    Returns:
        Indices kept and indices held out, sorted; none are held out where they would be
        fewer than :data:`LEAST_HELD_OUT`.
    """
    held = int(config.data.holdout * len(labels))
    if held < LEAST_HELD_OUT:
        return np.arange(len(labels)), np.arange(0)
    # It imports torch, which most that read data do without.
    from fedvtc_edge.seeding import derive_seed

    return stratified(labels, held, derive_seed(config.seed, client, "holdout"))


def partition(
    labels: npt.NDArray[np.integer],
    *,
    clients: int,
    classes: int,
    settings: DataSettings,
    seed: int,
) -> list[Labels]:
    """Deal samples out to clients.

    - ``dirichlet``: the samples of each class are shared out in proportions drawn from
      Dir(α, …, α) over the clients, the label skew named after Hsu, Qi and Brown (2019,
      arXiv:1909.06335) in the per-class form of Yurochkin et al. (2019, arXiv:1905.12022).
      Drawn anew, up to 100 times, until every client has ``min_samples``.
    - ``shards``: sorted by label, cut into clients × ``shards`` even pieces, each client dealt
      ``shards`` of them (McMahan et al. 2017, arXiv:1602.05629).
    - ``iid``: shuffled and cut evenly.

    A client that still has fewer than ``min_samples`` gets some from the then largest
    client, of that one's commonest class first, so that few classes stay few.

    Args:
        labels: [N], integers in 0 to classes - 1.
        clients: Number of clients, at least 1.
        classes: Number of classes.
        settings: Scheme, α, shards and min_samples.
        seed: Decides everything: the same arguments give the same arrays.

    Returns:
        One sorted int64 array of indices per client; disjoint, and together all of 0 to N - 1.

    Raises:
        DataError: Too few samples for so many clients.
    """
    labels = as_labels(labels, "labels to partition", classes)
    _check_enough(len(labels), clients, settings)
    rng = np.random.default_rng(seed)
    if settings.partition == "dirichlet":
        owner = _dirichlet(labels, clients, settings, rng)
    elif settings.partition == "shards":
        owner = _shards(labels, clients, settings.shards, rng)
    else:
        owner = _evenly(rng.permutation(len(labels)), clients)
    _repair(owner, labels, clients, settings.min_samples)
    order = np.argsort(owner, kind="stable")  # stable, so that each client's indices are sorted
    ends = np.cumsum(np.bincount(owner, minlength=clients))
    return [part.astype(np.int64, copy=False) for part in np.split(order, ends[:-1])]


def _check_enough(total: int, clients: int, settings: DataSettings) -> None:
    if clients < 1 or total < clients * settings.min_samples:
        raise DataError(
            f"{total} samples for {clients} clients; "
            f"expected at least data.min_samples = {settings.min_samples} for each",
            hint=f"at most {total // settings.min_samples} clients: lower clients.count or "
            "data.min_samples, or raise data.limit",
        )
    if settings.partition == "shards" and total < clients * settings.shards:
        raise DataError(
            f"{total} samples for {clients} clients of {settings.shards} shards; "
            "expected at least one sample per shard",
            hint=f"lower data.shards to at most {total // clients}",
        )


def _dirichlet(
    labels: Labels, clients: int, settings: DataSettings, rng: np.random.Generator
) -> Labels:
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    best: list[Labels] = []
    smallest = -1
    for _ in range(_REDRAWS):
        cuts = [
            (np.cumsum(_proportions(rng, clients, settings.alpha))[:-1] * len(indices)).astype(
                np.int64
            )
            for indices in members
        ]
        sizes = sum(
            (
                np.diff(cut, prepend=0, append=len(indices))
                for cut, indices in zip(cuts, members, strict=True)
            ),
            start=np.zeros(clients, np.int64),
        )
        if sizes.min() > smallest:
            best, smallest = cuts, int(sizes.min())
        if smallest >= settings.min_samples:
            break
    owner = np.empty(len(labels), np.int64)
    for cut, indices in zip(best, members, strict=True):
        owner[rng.permutation(indices)] = np.searchsorted(cut, np.arange(len(indices)), "right")
    return owner


def _proportions(rng: np.random.Generator, clients: int, alpha: float) -> npt.NDArray[np.float64]:
    shares = rng.dirichlet(np.full(clients, alpha))
    if not np.isfinite(shares).all() or not shares.sum() > 0.5:
        # A vanishing α underflows inside the sampler; its limit is all to one client.
        shares = np.zeros(clients)
        shares[rng.integers(clients)] = 1.0
    return shares


def _shards(labels: Labels, clients: int, shards: int, rng: np.random.Generator) -> Labels:
    shuffled = rng.permutation(len(labels))  # so that a class's shards are random samples of it
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shard = _evenly(by_label, clients * shards)
    dealt = rng.permutation(clients * shards) // shards
    return dealt[shard]


def _evenly(order: Labels, pieces: int) -> Labels:
    """Index of the piece, of `pieces` cuts of `order`, in which each sample falls, [N]."""
    owner = np.empty(len(order), np.int64)
    for piece, indices in enumerate(np.array_split(order, pieces)):
        owner[indices] = piece
    return owner


def _repair(owner: Labels, labels: Labels, clients: int, least: int) -> None:
    """Move samples, in place and without chance, until every client has `least`."""
    sizes = np.bincount(owner, minlength=clients)
    for needy in np.flatnonzero(sizes < least):
        while sizes[needy] < least:
            donor = int(sizes.argmax())  # has more than `least`, since the total suffices
            held = np.flatnonzero(owner == donor)
            common = held[labels[held] == np.bincount(labels[held]).argmax()]
            wanted = min(least - sizes[needy], sizes[donor] - least)
            moved = common[:wanted]
            owner[moved] = needy
            sizes[donor] -= len(moved)
            sizes[needy] += len(moved)
