"""Uploads that the auditor makes, of records that it chooses, by the path that a run's own went.

A run has few classes of one record, or of exactly a hundred; and what a record changes is
seen only where there is an upload without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge import wire
from fedvtc_edge.models.anchor import Anchor
from fedvtc_edge.privacy.release import bounded_sums, clipped_upload
from fedvtc_edge.privacy.release_spec import ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.privacy.sampler import discrete_gaussian
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.training.client import one_by_one

from .laboratory import FEWEST, Indices, Laboratory, Trial
from .observations import FLOAT16, FLOAT32, Observation, of_release, of_statistics


@dataclass(frozen=True)
class Path:
    """How statistics leave a client.

    Args:
        spec: Of private releases; None for exact sums.
        pooled: Which second moments exact sums have.
        precision: Of exact sums, ``float32`` or ``float16``.
    """

    spec: ReleaseSpec | None
    pooled: bool
    precision: wire.Precision = "float32"


class UploadStager:
    """Makes uploads and trials on them.

    Args:
        laboratory: The run; it must have an anchor.
        path: None is the run's own.
    """

    def __init__(self, laboratory: Laboratory, path: Path | None = None) -> None:
        config = laboratory.config
        assert laboratory.anchor is not None
        self.laboratory, self.anchor = laboratory, laboratory.anchor
        self.path = path or Path(
            laboratory.spec,
            config.method.moments == "covariance",
            config.transport.precision,
        )
        spec = self.path.spec
        if spec is not None and spec.width != self.anchor.width:
            self.anchor = self._anchor("anchor", spec.width)
        self._typical = laboratory.typical(self.anchor, spec)

    def _anchor(self, name: str, width: int) -> Anchor:
        seed = derive_seed(self.laboratory.config.seed, name)
        method = self.laboratory.config.method
        return Anchor(self.laboratory.shape, width, seed, method.extractor).eval()

    def upload(self, where: Indices, anchor: Anchor, *, client: str) -> Observation:
        """What is seen of some records.

        Where only a sum is seen, because of masks or of a trusted server, it is that sum less
        all other clients' parts, which the adversary is taken to know: one whole draw of noise.
        """
        laboratory, path = self.laboratory, self.path
        labels, spec = laboratory.labels[where], path.spec
        if spec is None:
            sums = laboratory.sums(anchor, where, pooled=path.pooled)
            data = wire.encode(sums, precision=path.precision)
            sums = wire.decode(
                data, classes=laboratory.classes, width=sums.width, pooled=path.pooled
            )
            rounding = FLOAT16 if path.precision == "float16" else FLOAT32
            return of_statistics(sums, who="server", client=client, round_=0, rounding=rounding)
        features = one_by_one(anchor, laboratory.images[where]).numpy()
        about = laboratory.centre(anchor)
        if isinstance(spec, ClientReleaseSpec):
            exact, who = clipped_upload(spec, features, labels, about), "device"
        else:
            exact, who = bounded_sums(spec, features, labels, about), "server"
        return of_release(
            spec,
            exact + noise_of(spec),
            about,
            who=who,
            client=client,
            round_=0,
            draws=spec.shares,
            typical=self._typical,
        )

    def trials(self, count: int, number: int, *, repetitions: int = 3) -> list[Trial]:
        """Trials on clients with ``count`` records of each class, drawn from all training data.

        Each view also has ``after``, the upload once one record of each class has left, and
        ``again``, the same records in repetitions of the run with other seeds.

        Args:
            count: Records per class.
            number: Trials at most; fewer where the data set is too small.
            repetitions: How many of the run, beside itself.
        """
        laboratory, made = self.laboratory, list[Trial]()
        others = [
            self._anchor(f"anchor of repetition {i}", self.anchor.width) for i in range(repetitions)
        ]
        client = f"staged, {count} of each class"
        while len(made) < number:
            where, leaving = self._draw(count)
            before = len(made)
            first = self.upload(where, self.anchor, client=client)
            after = self.upload(np.setdiff1d(where, leaving), self.anchor, client=client)
            again = [self.upload(where, anchor, client=client) for anchor in others]
            for target in leaving:
                label = int(laboratory.labels[target])
                view = replace(
                    laboratory.view(first, label, self.anchor),
                    after=laboratory.view(after, label, self.anchor),
                    again=tuple(
                        laboratory.view(seen, label, anchor)
                        for seen, anchor in zip(again, others, strict=True)
                    ),
                )
                members = where[laboratory.labels[where] == label]
                trial = laboratory.trial(view, int(target), members, client, staged=True)
                made += [trial] if trial is not None else []
            if len(made) == before:
                break  # no class has enough records
        return made[:number]

    def _draw(self, count: int) -> tuple[Indices, Indices]:
        """``count`` records of each class that has enough others, and one of each."""
        laboratory, where, leaving = self.laboratory, [np.zeros(0, np.int64)], []
        for label in range(laboratory.classes):
            pool = np.flatnonzero(laboratory.labels == label)
            if len(pool) >= count + FEWEST:
                chosen = laboratory.rng.choice(pool, count, replace=False)
                where.append(chosen)
                leaving.append(chosen[0])
        return np.concatenate(where), np.asarray(leaving, np.int64)


def noise_of(spec: ReleaseSpec, *, halved: bool = False) -> NDArray[np.int64]:
    """What all honest clients together add, drawn from the operating system's entropy."""
    share = spec.share / 2 if halved else spec.share
    drawn = np.zeros(spec.size, np.int64)
    for _ in range(spec.shares):
        drawn += discrete_gaussian(share, spec.size)
    return drawn
