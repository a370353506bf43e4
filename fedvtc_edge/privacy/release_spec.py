"""Release specs: size, clip and noise, fixed before any data are read, and public.

Everything here follows from public numbers: the classes, the settings, the number of
clients and a public guess of how many examples there are. Nothing is ever taken from a
client's data, or the choice itself would have to be paid for.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from .accountant import noise_for
from .sampler import GRID, MARGIN, share_of

Array = NDArray[np.float64]

RADIUS = 0.7
"""Length that features about the public centre are divided by, so that they are about 1."""

SECOND, COUNT = 1.0, 0.3
"""Weights of the second moments and of the count in one example's vector."""

PRETRAINED_RADIUS, PRETRAINED_SECOND = 1.0, 0.5
"""The same for features of a pretrained network, whose public centre is the origin: each is then
of length 1 exactly, and what is clipped is the same of all. Chosen on validation images
(docs/decisions/0033)."""


@dataclass(frozen=True)
class ReleaseSpec:
    """One client's one release, and how much noise it carries.

    Guarantee: (ε, δ)-differential privacy of each client's release against whoever
    reads it, the server too. *Unit*: one training example. *Neighbouring relation*:
    data sets that differ in one example, added or removed. *Mechanism*: discrete
    Gaussian noise of scale z·C on integer sums whose L2 sensitivity is C, the clip
    bound, whatever the features are: each is computed from its own example alone, and
    a norm never passes C in exact arithmetic. *Assumed public*: the list of classes,
    the number of clients, the population, the clip and when a release is made. *Not
    covered*: replacing one example costs twice the sensitivity; several examples of
    one person are several units; a second run on the same data, which spends as much
    again; how long a client takes, which tells of its number of examples; what a
    client's own model, decoder and bundle give away; the simulator's own files, which
    hold every client's counts and accuracies.

    Args:
        classes: Number C of classes, a public list; absent ones are released too.
        width: Number m of anchor features.
        second: Whether second moments are released.
        clip: Bound on the L2 norm of one example's vector.
        releases: How many such releases share the budget.
        unit: How many examples a norm of 1 stands for.
        shares: Among how many honest clients the noise is divided: 1 where each adds all of
            it, more under masking, where only the sum is seen.
        pretrained: Whether the features are a pretrained network's, which are scaled and
            weighted otherwise.
    """

    classes: int
    width: int
    second: bool
    clip: float
    epsilon: float
    delta: float
    releases: int = 1
    unit: float = 1.0
    shares: int = 1
    pretrained: bool = False

    @property
    def radius(self) -> float:
        """Length that features about the public centre are divided by."""
        return PRETRAINED_RADIUS if self.pretrained else RADIUS

    @property
    def second_weight(self) -> float:
        """Weight of the second moments in one example's vector."""
        return PRETRAINED_SECOND if self.pretrained else SECOND

    @property
    def noise_multiplier(self) -> float:
        """Noise per sensitivity, z; calibrated, never typed."""
        return noise_for(self.epsilon, self.delta, self.releases) * MARGIN

    @property
    def sigma(self) -> Fraction:
        """Scale of the discrete noise, in steps of the grid."""
        return Fraction(self.noise_multiplier) * self.sensitivity

    @property
    def share(self) -> Fraction:
        """Scale of what one client adds, in steps of the grid."""
        return self.sigma if self.shares == 1 else share_of(self.sigma, self.shares)

    @property
    def sensitivity(self) -> Fraction:
        """Largest change of the released sums by one example, in L2 and grid steps."""
        return Fraction(self.clip) * GRID

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of counts, class sums and second moments, in the order of release."""
        triangle = self.width * (self.width + 1) // 2 if self.second else 0
        return self.classes, self.classes * self.width, triangle

    @property
    def size(self) -> int:
        """Numbers in a release: the same whatever a client has."""
        return sum(self.sizes)


def spec_for_examples(
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
    pretrained: bool = False,
) -> ReleaseSpec:
    """The public rule: the narrower, the noisier.

    r = z·√(K/h)·C / (n / classes) is the noise of a class mean's coordinate in units of
    the features' length, where h honest clients share the noise. Chosen on held-out
    training digits (docs/decisions/0011): second moments pay for themselves up to r =
    0.03, and 64 features up to 0.05. Of a pretrained network's features,
    whose directions come in the order of what they tell, 256 are the best up to r = 0.03, and
    second moments pay up to 0.003 (docs/decisions/0033).

    Args:
        classes: Number C of classes.
        clients: Number K of clients, each with noise of its own.
        population: Public guess of the number n of examples of all clients together.
        widest: Most features allowed.
        second: Whether second moments may be released.
        shares: Number h of honest clients that share the noise.
        pretrained: Whether the features are a pretrained network's.
    """
    draws = (clients / shares) ** 0.5
    noise = noise_for(epsilon, delta) * draws * clip * classes / population
    if pretrained:
        width, most = (256 if noise < 0.03 else 64 if noise < 0.1 else 32), 0.003
    else:
        width, most = (128 if noise < 0.01 else 64 if noise < 0.05 else 32), 0.03
    return ReleaseSpec(
        classes=classes,
        width=min(widest, width),
        second=second and noise < most,
        clip=clip,
        epsilon=epsilon,
        delta=delta,
        shares=shares,
        pretrained=pretrained,
    )


TYPICAL = 0.25
"""Norm of a typical client's upload, where one example's is 1 and the client has as many
as the public guess says: examples of different classes do not add up to one direction.
Chosen on held-out training images (docs/decisions/0013)."""


@dataclass(frozen=True)
class ClientReleaseSpec(ReleaseSpec):
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
    it sees (``docs/masking.md``). *Assumed public*: the list of classes,
    the number of clients, the population, the clip and when a round is closed. *Not
    covered*: what a trusted server sees;
    a client's own model, decoder and bundle, also from the other clients' point of view:
    whoever gets one learns of that client without any noise; replacing one client by
    another costs twice the sensitivity; a client that takes part under two names is two
    units; the simulator's own files.
    """


def spec_for_clients(
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
    pretrained: bool = False,
) -> ClientReleaseSpec:
    """The public rule for one release of anchor statistics: the narrower, the noisier.

    r = z·C·:data:`TYPICAL`·classes / K is the noise of a class mean's coordinate in units
    of the features' length. Chosen on held-out training images (docs/decisions/0013):
    second moments pay for themselves up to r = 0.01, 128 features up to 0.005, 64 up to 0.03.

    Args:
        classes: Number C of classes.
        clients: Number K of clients.
        population: Public guess of the number of examples of all clients together.
        widest: Most features allowed.
        second: Whether second moments may be released.
        shares: Number h of honest clients that share the noise, under masking: K of them
            then bring K/h times as much as is needed.
        pretrained: Whether the features are a pretrained network's.
    """
    draws = 1.0 if shares == 1 else (clients / shares) ** 0.5
    noise = noise_for(epsilon, delta) * draws * clip * TYPICAL * classes / clients
    return ClientReleaseSpec(
        classes=classes,
        width=min(widest, 128 if noise < 0.005 else 64 if noise < 0.03 else 32),
        second=second and noise < 0.01,
        clip=clip,
        epsilon=epsilon,
        delta=delta,
        unit=unit_of(clients, population),
        shares=shares,
        pretrained=pretrained,
    )


def unit_of(clients: int, population: int) -> float:
    """Number of examples that an upload of norm 1 stands for: those of a typical client."""
    return TYPICAL * population / clients
