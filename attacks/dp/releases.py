"""Uploads of the package's own private releases, in two worlds that differ in one unit.

By the functions that a client and a server call, so that what is audited is what is run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np

from fedvtc_edge.privacy.claim import Claim
from fedvtc_edge.privacy.release import Integers, bounded_sums, clipped_upload, noised, release
from fedvtc_edge.privacy.release_spec import Array, ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.privacy.sampler import discrete_gaussian

from .bounds import Blocks
from .canaries import ManyCanaries

Records = tuple[Array, Integers]
"""Features [N, m], each of norm √m where they are an anchor's, and their classes [N]."""


MOST_CANARIES = 64
"""Most canaries in one upload: with more, an audit is no faster."""


class _Release:
    """Properties that follow from the release spec alone."""

    spec: ReleaseSpec
    draws: int

    def rest(self) -> Integers:
        """Noise of the other honest clients, under masks: in one draw, of √(h - 1) shares.

        What h - 1 draws add up to differs from it by less than any float64 tells; see
        :func:`~fedvtc_edge.privacy.sampler.share_of`.
        """
        if self.draws == 1:
            return np.zeros(self.spec.size, np.int64)
        scale = float(self.spec.share) * math.sqrt(self.draws - 1)
        return discrete_gaussian(scale, self.spec.size)

    @property
    def numbers(self) -> int:
        """Numbers of exact noise that one draw of everything costs."""
        return self.spec.size * self.spec.releases * min(self.draws, 2)

    @property
    def claim(self) -> Claim:
        """The claim of the release spec."""
        return claim_of_spec(self.spec)

    @property
    def blocks(self) -> Blocks:
        """Counts, each class' sums, second moments."""
        return blocks_of(self.spec)


@dataclass(frozen=True, eq=False)
class ExampleRelease(_Release):
    """One client's private uploads, all that share a budget, side by side.

    Under masking only the sum over the clients is seen, which carries ``draws`` shares of
    noise; what the other honest clients hold is the same in both worlds, and left out.
    Each upload is made from the records anew: a few of them cost little and show as much.

    Args:
        spec: Terms of the release.
        worlds: The client's records in world 0 and 1; neighbours by the claim.
        centre: Public centre of the features' directions, [m].
        draws: Honest clients whose noise is in what is seen; ``spec.shares`` of them.
    """

    spec: ReleaseSpec
    worlds: tuple[Records, Records]
    centre: Array
    draws: int = 1

    def exact(self, world: int) -> Integers:
        """The uploads without noise."""
        sums = bounded_sums(self.spec, *self.worlds[world], self.centre)
        return np.tile(sums, self.spec.releases)

    def release(self, world: int) -> Integers:
        """The uploads, with noise drawn afresh."""
        return self.released(self.worlds[world])

    def released(self, records: Records) -> Integers:
        """The uploads of any records, with noise drawn afresh."""
        return np.concatenate(
            [
                release(self.spec, *records, self.centre) + self.rest()
                for _ in range(self.spec.releases)
            ]
        )

    def many_canaries(self) -> ManyCanaries:
        """Records that move the sums most, each with a direction of its own, beside world 0's."""
        spec, base = self.spec, self.worlds[0]
        made = [
            canary(spec, self.centre, direction, number % spec.classes)
            for number, direction in enumerate(np.eye(spec.width)[:MOST_CANARIES])
        ]
        exact = [bounded_sums(spec, *one, self.centre) for one in made]
        return ManyCanaries(
            lambda bits: self.released(
                joined(base, *(one for one, there in zip(made, bits, strict=True) if there))
            ),
            self.exact(0).astype(np.float64),
            np.stack([np.tile(one, spec.releases) for one in exact]).astype(np.float64),
        )

    def halved(self) -> ExampleRelease:
        """The positive control: half of the noise, drawn on the same path."""
        return replace(self, spec=_Halved(**vars(self.spec)))


@dataclass(frozen=True, eq=False)
class ClientRelease(_Release):
    """Publication of a federation: noised sums of clipped uploads.

    Args:
        spec: Terms of the release.
        worlds: The records of each client, in world 0 and 1.
        centre: Public centre of the features' directions, [m].
        draws: Clients that add a share of the noise under masking; 1: the server adds all.
    """

    spec: ClientReleaseSpec
    worlds: tuple[Sequence[Records], Sequence[Records]]
    centre: Array
    draws: int = 1

    def exact(self, world: int) -> Integers:
        """The sums without noise."""
        return np.tile(self._totals[world], self.spec.releases)

    def release(self, world: int) -> Integers:
        """The sums, with noise drawn afresh."""
        return self.released(self._totals[world])

    def released(self, total: Integers) -> Integers:
        """Any sum of clipped uploads, with noise drawn afresh."""
        return np.concatenate(
            [noised(self.spec, total) + self.rest() for _ in range(self.spec.releases)]
        )

    def many_canaries(self) -> ManyCanaries:
        """Clients that move the sum most, each with a direction of its own, beside world 0's."""
        spec = self.spec
        exact = np.stack(
            [
                clipped_upload(
                    spec,
                    *canary_client(spec, self.centre, direction, number % spec.classes),
                    self.centre,
                )
                for number, direction in enumerate(np.eye(spec.width)[:MOST_CANARIES])
            ]
        )
        return ManyCanaries(
            lambda bits: self.released(self._totals[0] + exact[bits].sum(0)),
            self.exact(0).astype(np.float64),
            np.tile(exact, spec.releases).astype(np.float64),
        )

    def halved(self) -> ClientRelease:
        """The positive control: half of the noise, drawn on the same path."""
        return replace(self, spec=_HalvedClient(**vars(self.spec)))

    @cached_property
    def _totals(self) -> list[Integers]:
        """Sums of both worlds: clipping has no chance in it, and is done once."""
        nothing = np.zeros(self.spec.size, np.int64)
        return [
            sum((clipped_upload(self.spec, *one, self.centre) for one in clients), nothing)
            for clients in self.worlds
        ]


class _Halved(ReleaseSpec):
    """A spec that draws half of the noise that it states."""

    @property
    def share(self) -> Fraction:
        return super().share / 2


class _HalvedClient(ClientReleaseSpec):
    """The same for whole clients."""

    @property
    def share(self) -> Fraction:
        return super().share / 2


def claim_of_spec(spec: ReleaseSpec) -> Claim:
    """The claim of all releases of a spec together."""
    return Claim(
        epsilon=spec.epsilon,
        delta=spec.delta,
        unit="client" if isinstance(spec, ClientReleaseSpec) else "example",
        neighbouring="add/remove",
        mechanism=f"discrete Gaussian, noise multiplier {spec.noise_multiplier:.6g}, "
        f"{spec.releases} times",
        accountant="exact",
    )


def blocks_of(spec: ReleaseSpec) -> Blocks:
    """Blocks of counts, of each class' sums and of second moments: noise in each is alike."""
    counts, sums, seconds = spec.sizes
    per_class = np.repeat(np.arange(spec.classes), sums // spec.classes)
    blocks = [np.zeros(counts), 1 + per_class, np.full(seconds, 1 + spec.classes)]
    return np.tile(np.concatenate(blocks).astype(np.int64), spec.releases)


def canary(spec: ReleaseSpec, centre: Array, direction: Array, label: int) -> Records:
    """The record that moves the sums most: by the whole clip bound, along a direction.

    Longer than any anchor's features, for the guarantee is whatever the features are.

    Args:
        spec: Terms of the release.
        centre: Public centre of the features' directions, [m].
        direction: Direction of the record from the centre, [m].
    """
    reach = spec.radius * max(spec.clip, 1.0) / float(np.linalg.norm(direction))
    features = (centre + reach * direction) * np.sqrt(spec.width)
    return features[None], np.array([label], np.int64)


def canary_client(spec: ClientReleaseSpec, centre: Array, direction: Array, label: int) -> Records:
    """A client that moves the sum by the whole clip bound: one record, over and over."""
    features, labels = canary(spec, centre, direction, label)
    count = math.ceil(spec.clip * spec.unit) + 1
    return np.repeat(features, count, 0), np.repeat(labels, count)


def joined(*parts: Records) -> Records:
    """The records of several, together."""
    return np.concatenate([f for f, _ in parts]), np.concatenate([y for _, y in parts])
