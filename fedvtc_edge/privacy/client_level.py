"""Client-level privacy: whole uploads are clipped, and their sum is noised once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fedvtc_edge.errors import PrivacyError

from .accountant import noise_for
from .design import Array, Design
from .grid import GRID
from .release import SHRINK, Integers, bounded_sums
from .sampler import discrete_gaussian

TYPICAL = 0.25
"""Norm of a typical client's upload, where one example's is 1 and the client has as many
as the public guess says: examples of different classes do not add up to one direction.
Chosen on held-out training images (docs/decisions/0013)."""

_EXAMPLE = 1.0
"""Bound on one example's vector: without it a client's own outlier would be all of its upload."""


@dataclass(frozen=True)
class ClientDesign(Design):
    """The noised sum of all clients' clipped uploads.

    Guarantee: (ε, δ)-differential privacy of what the server publishes, and of all that
    is computed from it, against the other clients and whoever reads it. *Unit*: one
    client with all of its data: examples, classes, counts, and whether it uploaded at
    all. *Neighbouring relation*: federations that differ in one client, added or
    removed. *Mechanism*: each release is discrete Gaussian noise of scale z·C, drawn once, on
    the integer sum of uploads whose L2 norm is at most C, however they were made: by
    whatever network, trained on whatever data and earlier releases. *Assumed*: the server is
    trusted. It sees every clipped upload without noise, draws the noise in secret and keeps
    both. Under masking it is not: clients add shares of the noise, and the sum is all that
    it sees (``shared_noise``, ``docs/masking.md``). *Assumed public*: the list of classes,
    the number of clients, the population, the clip and when a round is closed. *Not
    covered*: what a trusted server sees;
    a client's own model, decoder and bundle, also from the other clients' point of view:
    whoever gets one learns of that client without any noise; replacing one client by
    another costs twice the sensitivity; a client that takes part under two names is two
    units; the simulator's own files.
    """


def designed_for_clients(
    *,
    classes: int,
    clients: int,
    population: int,
    epsilon: float,
    delta: float,
    clip: float,
    widest: int,
    second: bool,
    shares: int = 1,
) -> ClientDesign:
    """The public rule for one release of anchor statistics: the narrower, the noisier.

    r = z·C·:data:`TYPICAL`·classes / K is the noise of a class mean's coordinate in units
    of the features' length. Chosen on held-out training images (docs/decisions/0013):
    second moments pay for themselves up to r = 0.01, 128 features up to 0.005, 64 up to 0.03.

    Args:
        classes: Number C of classes.
        clients: Number K of clients.
        population: Public guess of the number of examples of all clients together.
        epsilon: Privacy budget of one client.
        delta: Its δ.
        clip: Bound on one client's upload.
        widest: Most features allowed.
        second: Whether second moments may be released.
        shares: Number h of honest clients that share the noise, under masking: K of them
            then bring K/h times as much as is needed.
    """
    draws = 1.0 if shares == 1 else (clients / shares) ** 0.5
    noise = noise_for(epsilon, delta) * draws * clip * TYPICAL * classes / clients
    return ClientDesign(
        classes=classes,
        width=min(widest, 128 if noise < 0.005 else 64 if noise < 0.03 else 32),
        second=second and noise < 0.01,
        clip=clip,
        epsilon=epsilon,
        delta=delta,
        unit=unit_of(clients, population),
        shares=shares,
    )


def unit_of(clients: int, population: int) -> float:
    """How many examples an upload of norm 1 stands for: those of a typical client."""
    return TYPICAL * population / clients


def clipped_upload(
    design: ClientDesign, features: ArrayLike, labels: ArrayLike, centre: Array
) -> Integers:
    """One client's sums, scaled as a whole to a norm of at most the sensitivity.

    Exact, without noise: for the eyes of a trusted server, or for masking.

    Args:
        design: Public.
        features: [N, m], each of norm √m.
        labels: Their classes [N].
        centre: Public centre of the features' directions, [m].

    Returns:
        int64 [design.size]: counts, class sums, second moments.

    Raises:
        PrivacyError: Shapes or labels that do not fit the design.
    """
    sums = bounded_sums(design, features, labels, centre, bound=_EXAMPLE) / design.unit
    norm = float(np.sqrt(np.square(sums).sum()))
    factor = min(1.0, design.clip * GRID * SHRINK / max(norm, 1e-300))
    return np.trunc(sums * factor).astype(np.int64)  # toward zero: no norm grows


def check_norm(design: ClientDesign, upload: Integers) -> None:
    """Refuse an upload beyond the clip bound, by exact integers.

    A client that does not clip harms no other's guarantee, but would have more weight
    than anybody else.

    Raises:
        PrivacyError: Its norm is beyond the bound.
    """
    if sum(value * value for value in upload.tolist()) > design.sensitivity**2:
        raise PrivacyError(
            f"an upload of norm {np.linalg.norm(upload / GRID):.4g}, the clip bound is "
            f"{design.clip:g}",
            hint="the client must clip its whole upload before it sends it",
        )


def noised(design: ClientDesign, total: Integers) -> Integers:
    """The sum of clipped uploads with its one draw of noise, or one upload with its share.

    Guarantee: see :class:`ClientDesign`. From the operating system's entropy: two calls
    are two releases. Keep what was drawn and publish that again instead.
    """
    return total + discrete_gaussian(design.share, design.size)
