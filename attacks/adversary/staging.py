"""Staged uploads: made here, of records drawn from all training data, on the run's own path.

A run has few classes of one record, or of exactly a hundred, and what a record changes is seen
only where there is an upload without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge import wire
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.privacy.release import bounded_sums, clipped_upload
from fedvtc_edge.privacy.release_spec import ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.privacy.sampler import discrete_gaussian
from fedvtc_edge.seeding import derive_seed

from .observations import FLOAT16, FLOAT32, Observation, of_means, of_release, of_statistics
from .trials import FEWEST, AuditedRun, Indices, Trial
from .view import Map

_MODELS = 8
"""Clients whose own extractors stand in turn for those of all."""

REPETITIONS = 3
"""Other runs on the same records, beside the run itself."""


@dataclass(frozen=True)
class ReleasePath:
    """The way that statistics leave a client.

    Args:
        spec: Terms of private releases; None for exact sums.
        pooled: Whether exact sums have one second-moment matrix over all classes.
        precision: Format of exact sums, ``float32`` or ``float16``.
        moments: Whether exact sums have second moments at all.
    """

    spec: ReleaseSpec | None
    pooled: bool
    precision: wire.Precision = "float32"
    moments: bool = True


class UploadStager:
    """Maker of uploads and of trials on them.

    Own features are measured by clients' own extractors in turn, as they were at their uploads.

    Args:
        audited: The run; it must have an anchor, or have kept such extractors.
        path: None is the run's own.
    """

    def __init__(self, audited: AuditedRun, path: ReleasePath | None = None) -> None:
        config = audited.config
        self.audited = audited
        pooled = config.method.moments == "covariance" and audited.anchored
        self.path = path or ReleasePath(
            audited.spec, pooled, config.transport.precision, audited.moments
        )
        self._made: dict[tuple[str, int], Anchor] = {}
        self._anchors = [] if audited.anchor is None else [audited.anchor]
        spec = self.path.spec
        if self._anchors and spec is not None and spec.width != self.anchor.width:
            self._anchors = [self._anchor("anchor", spec.width)]
        self._typical = audited.typical(self.anchor if self._anchors else None, spec)
        self._turn = 0

    @property
    def anchor(self) -> Anchor:
        """The anchor that features are of; there is one in anchored runs alone."""
        return self._anchors[0]

    def _next(self) -> tuple[str, str, Map]:
        """Name of the uploading client, the adversary, and the extractor of the next upload."""
        if self._anchors:
            return "staged", "server", self.anchor
        owners = self.audited.uploaders[:_MODELS]
        self._turn += 1
        client = owners[self._turn % len(owners)]
        return client, "server+device", self.audited.uploaded(client)

    def _anchor(self, name: str, width: int) -> Anchor:
        """The anchor of a repetition: the same one where its seed decides nothing."""
        if self.anchor.is_seedless and width == self.anchor.width:
            return self.anchor
        if (name, width) not in self._made:
            seed = derive_seed(self.audited.config.seed, name)
            method = self.audited.config.method
            self._made[name, width] = Anchor(
                self.audited.shape, width, seed, method.extractor, method.extractor_weights
            ).eval()
        return self._made[name, width]

    def upload(self, where: Indices, extract: Map, *, client: str, who: str) -> Observation:
        """The observation of some records' upload.

        Where only a sum is seen, because of masks or of a trusted server, it is that sum less
        all other clients' parts, which the adversary is taken to know: one whole draw of noise.

        Args:
            client: Name of whoever uploads.
            who: The adversary; who is trusted with the noise leaves it to ``device``.
        """
        audited, path = self.audited, self.path
        labels, spec = audited.labels[where], path.spec
        if spec is None:
            sums = audited.sums(extract, where, pooled=path.pooled)
            if not path.moments:
                data = wire.encode_means(sums)
                means = wire.decode_means(data, classes=audited.classes, width=sums.width)
                return of_means(means, who=who, client=client, round_=0)
            data = wire.encode(sums, precision=path.precision)
            sums = wire.decode(data, classes=audited.classes, width=sums.width, pooled=path.pooled)
            rounding = FLOAT16 if path.precision == "float16" else FLOAT32
            return of_statistics(sums, who=who, client=client, round_=0, rounding=rounding)
        features = audited.embedded(extract, where).numpy()
        about = audited.centre(self.anchor if self._anchors else None)
        if isinstance(spec, ClientReleaseSpec):
            exact, who = clipped_upload(spec, features, labels, about), "device"
        else:
            exact = bounded_sums(spec, features, labels, about)
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

    def trials(
        self, count: int, number: int, *, repetitions: int = REPETITIONS, after: bool = True
    ) -> list[Trial]:
        """Trials on clients with ``count`` records of each class, drawn from all training data.

        In anchored runs each view may also have ``after``, the upload once one record of each
        class has left, and ``again``, the same records in repetitions of the run with other
        seeds; of noised runs also ``second``, another noised upload of the same records. An
        extractor of one's own is another one when the client uploads next.

        Args:
            number: Trials at most; fewer where the data set is too small.
            repetitions: How many of the run, beside itself.
            after: Whether to make the upload without the records that leave, and a second one.
        """
        audited, made = self.audited, list[Trial]()
        others: list[Anchor] = []
        if self._anchors:
            names = (f"anchor of repetition {i}" for i in range(repetitions))
            others = [self._anchor(name, self.anchor.width) for name in names]
        while len(made) < number:
            where, leaving = self._draw(count)
            before = len(made)
            client, who, extract = self._next()
            seen = partial(self.upload, client=client, who=who)
            first, left, second = seen(where, extract), None, None
            if after and self._anchors:
                left = seen(np.setdiff1d(where, leaving), extract)
                second = None if self.path.spec is None else seen(where, extract)
            again = [(seen(where, anchor), anchor) for anchor in others]
            for target in leaving:
                label = int(audited.labels[target])
                view = replace(
                    audited.view(first, label, extract),
                    after=None if left is None else audited.view(left, label, extract),
                    second=None if second is None else audited.view(second, label, extract),
                    again=tuple(audited.view(one, label, by) for one, by in again),
                )
                members = where[audited.labels[where] == label]
                trial = audited.trial(view, int(target), members, client, staged=True)
                made += [trial] if trial is not None else []
            if len(made) == before:
                break  # no class has enough records
        return made[:number]

    def _draw(self, count: int) -> tuple[Indices, Indices]:
        """``count`` records of each class that has enough others, and one of each."""
        audited, where, leaving = self.audited, [np.zeros(0, np.int64)], []
        for label in range(audited.classes):
            pool = np.flatnonzero(audited.labels == label)
            if len(pool) >= count + FEWEST:
                chosen = audited.rng.choice(pool, count, replace=False)
                where.append(chosen)
                leaving.append(chosen[0])
        return np.concatenate(where), np.asarray(leaving, np.int64)


def noise_of(spec: ReleaseSpec, *, halved: bool = False) -> NDArray[np.int64]:
    """The noise of all honest clients together, from the operating system's entropy."""
    share = spec.share / 2 if halved else spec.share
    drawn = np.zeros(spec.size, np.int64)
    for _ in range(spec.shares):
        drawn += discrete_gaussian(share, spec.size)
    return drawn
