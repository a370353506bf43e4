"""Trials: one member of an upload among non-members of its class, for attacks to tell apart.

A run's data are dealt out once more from its settings, by the same seed. Half of the test set
is the adversary's own (*public*); the other half and the other clients' images are
*non-members*. What an attack gets of all that is a view and candidates; nothing else.

A run has few classes of one record, or of exactly a hundred, and what a record changes is seen
only where there is an upload without it. So uploads are also *staged*: made here, of records
drawn from all training data, by the path that the run's own uploads went.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge import wire
from fedvtc_edge.data import Dataset, hold_out, partition
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor, centre, in_chunks, one_by_one
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.privacy.release import bounded_sums, clipped_upload, contributions
from fedvtc_edge.privacy.release_spec import COUNT, Array, ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.privacy.sampler import GRID, discrete_gaussian
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.training.compute import as_images

from .observations import (
    EVERYONE,
    FLOAT16,
    FLOAT32,
    Observation,
    of_publication,
    of_release,
    of_statistics,
    opened,
    sums_of,
    uploads,
)
from .subjects import AuditTarget, shared
from .view import Case, Map, Pairs, Population, View, populations

Indices = NDArray[np.int64]

CANDIDATES = 50
"""One member and non-members of its class: chance is 2 %."""

KNOWN_PAIRS = 50
"""Images whose hidden features a server that lacks the extractor came to know."""

FEWEST = 10
"""Least candidates of a trial: among fewer a rank says next to nothing."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A case and, for scoring alone, its truth.

    Args:
        target: Place of the one member among the candidates.
        count: Number n of records that the view is of.
        staged: Whether the upload was made here and not by the run.
        average: Mean image of those records, [channels, size, size].
    """

    case: Case
    target: int
    count: int
    client: str
    staged: bool
    average: Tensor


class AuditedRun:
    """A run and the data it was made from.

    Args:
        seed: Seed of the split into public images and non-members, and of what is staged.
    """

    def __init__(self, run: AuditTarget, data: Dataset, *, seed: int = 0) -> None:
        self.run, self.config, self.classes = run, run.config, data.classes
        height, _, channels = data.image_shape
        self.shape = ImageShape(height, channels)
        self.names = data.class_names
        cpu = torch.device("cpu")
        self.images, self.labels = as_images(data.x_train, cpu), np.asarray(data.y_train)
        self.rng = np.random.default_rng(seed)
        parts = partition(
            data.y_train,
            clients=self.config.clients.count,
            classes=data.classes,
            settings=self.config.data,
            seed=derive_seed(self.config.seed, "partition"),
        )
        self.holdings: dict[str, Indices] = {
            client: part[hold_out(data.y_train[part], self.config, client)[0]]
            for client, part in zip(self.config.client_ids, parts, strict=True)
        }
        self.holdings[EVERYONE] = np.concatenate(list(self.holdings.values()))
        order = self.rng.permutation(len(data.y_test))
        half = len(order) // 2
        test = as_images(data.x_test, cpu)
        self.public, self.public_labels = test[order[:half]], data.y_test[order[:half]]
        self.held, self.held_labels = test[order[half:]], data.y_test[order[half:]]
        self.anchored = shared(self.config) == "anchored"
        self.mechanism = mechanism_of(self.config, self.classes)
        self.spec = None if self.mechanism is None else self.mechanism.spec
        self._models: dict[str, Map] = {}
        self._decoders: dict[str, Map | None] = {}
        self._populations: dict[Map, list[Population]] = {}

    @cached_property
    def anchor(self) -> Anchor | None:
        """The run's anchor R, or None."""
        return self.run.anchor(self.shape)

    def extractor(self, seen: Observation) -> Map | None:
        """The extractor that whoever saw this can compute features with, or None."""
        if self.anchored:
            return self.anchor
        if seen.who != "server+device":
            return None
        return self.model(seen.client)

    def model(self, client: str) -> Map:
        """A client's own g, as its device holds it when the run is done."""
        if client not in self._models:
            found = self.run.classifier(client, self.shape, self.classes)
            self._models[client] = found.features
        return self._models[client]

    def observed(self) -> list[Observation]:
        """Statistics of the finished run as each adversary sees them."""
        seen = []
        kinds = ("anchor",) if self.anchored else ("features",)
        for context, data in uploads(self.run.path, self.config):
            if context.kind in kinds and context.sender in self.holdings:
                one = opened(
                    data,
                    context,
                    self.config,
                    self.classes,
                    self.spec,
                    self.centre(self.anchor),
                    self.typical(self.anchor, self.spec),
                )
                seen.append(one)
        if not self.anchored:  # only what the last round's extractor may still be near to
            last = max((one.round for one in seen), default=0)
            seen = [one for one in seen if one.round == last]
            seen += [replace(one, who="server+device") for one in seen]
        published = self.run.published()
        if published is not None and self.spec is None:
            seen.append(of_publication(published, who="device"))
            seen += self._colluders(seen)
        return seen

    def _colluders(self, seen: Sequence[Observation]) -> Iterator[Observation]:
        """The publication, less what all clients but one know of themselves."""
        published = self.run.published()
        if published is None or not self.anchored or self.anchor is None:
            return
        total, pooled = sums_of(published), published.covariance is not None
        if self.config.server.trim or self.config.server.minimum_contributors > 1:
            return  # what was published is not the sum
        for client in self.config.client_ids:
            rest = np.setdiff1d(self.holdings[EVERYONE], self.holdings[client])
            own = self.sums(self.anchor, rest, pooled=pooled)
            left = ClassStatistics(
                np.maximum(total.count - own.count, 0),
                total.total - own.total,
                total.square - own.square,
                pooled,
            )
            # The difference keeps the rounding of the sum.
            share = max(len(self.holdings[client]) / len(self.holdings[EVERYONE]), 1e-9)
            yield of_statistics(
                left, who="colluders", client=client, round_=0, rounding=FLOAT32 / share
            )

    def sums(self, extract: Map, where: Indices, *, pooled: bool) -> ClassStatistics:
        """Exact statistics of some training records."""
        features = self.embedded(extract, where, exactly=False)
        return ClassStatistics.of(features, self.labels[where], classes=self.classes, pooled=pooled)

    def embedded(self, extract: Map, where: Indices, *, exactly: bool = True) -> Tensor:
        """Features of some training records.

        A pretrained network's are computed once for all records: they take milliseconds each.

        Args:
            exactly: To the last bit as if each were the only one, as private sums need them.
        """
        if isinstance(extract, Anchor) and extract.sha256:
            return extract.embed(self.images)[where]
        return (one_by_one if exactly else in_chunks)(extract, self.images[where])

    def centre(self, anchor: Anchor | None) -> Array:
        """The public centre that private sums are about, [m]."""
        if anchor is None:
            return np.zeros(self.spec.width if self.spec else self.config.method.latent)
        return centre(anchor, self.shape)

    def typical(self, anchor: Anchor | None, spec: ReleaseSpec | None) -> float:
        """The factor by which joint clipping shortens an example, from public images."""
        if spec is None or anchor is None or isinstance(spec, ClientReleaseSpec):
            return 1.0
        features = one_by_one(anchor, self.public[:200]).double().numpy()
        count, _, _ = contributions(spec, features, self.centre(anchor))
        return float(count.mean() / (COUNT * GRID))

    def view(self, seen: Observation, label: int, extract: Map | None) -> View:
        """The view of one class of what was seen."""
        known = self.public[self.public_labels == label]
        return View(
            who=seen.who,
            label=label,
            count=float(max(seen.count[label], 1.0)),
            mean=seen.mean[label],
            std=None if seen.std is None else seen.std[label],
            public=known,
            everyday=self.public,
            scatter=seen.scatter,
            freedom=seen.freedom,
            noise=float(seen.noise[label]),
            rounding=seen.rounding,
            extract=extract,
            decode=self._decoder(seen),
            pairs=self._pairs(seen) if extract is None else None,
            population=None if extract is None else self._population(extract, label),
        )

    def _decoder(self, seen: Observation) -> Map | None:
        """The client's ψ, for whoever has the device or was sent the decoder."""
        sent = seen.who == "server" and shared(self.config) == "features+decoder"
        if self.anchored or seen.client == EVERYONE or not (sent or seen.who == "server+device"):
            return None
        if seen.client not in self._decoders:
            self._decoders[seen.client] = self.run.decoder(seen.client, self.shape)
        return self._decoders[seen.client]

    def _pairs(self, seen: Observation) -> Pairs | None:
        """A few public images whose features under the client's own g became known."""
        if self.anchored or seen.client == EVERYONE:
            return None
        known = self.public[:KNOWN_PAIRS]
        hidden = in_chunks(self.model(seen.client), known).double().numpy()
        width, seed = self.config.method.anchor, derive_seed(0, "stand-in")
        substitute = Anchor(self.shape, width, seed).eval()
        return Pairs(substitute, in_chunks(substitute, known).double().numpy(), hidden)

    def trials(self, seen: Observation, number: int, extract: Map | None) -> list[Trial]:
        """Trials on the classes of an upload, one member each."""
        own = self.holdings[seen.client]
        cells = [own[self.labels[own] == label] for label in range(self.classes)]
        cells = [cell for cell in cells if len(cell)]
        made: list[Trial] = []
        per_cell = -(-number // max(len(cells), 1))
        for cell in cells:
            view = self.view(seen, int(self.labels[cell[0]]), extract)
            targets = self.rng.permutation(cell)[:per_cell]
            tried = (self.trial(view, int(t), cell, seen.client, staged=False) for t in targets)
            made += [trial for trial in tried if trial is not None]
        return made

    def trial(
        self, view: View, target: int, members: Indices, client: str, *, staged: bool
    ) -> Trial | None:
        """One member among non-members of its class; None where there are too few of those."""
        nonmembers = self._nonmembers(view.label, members)
        if len(nonmembers) < FEWEST - 1:
            return None
        chosen = self.rng.permutation(len(nonmembers))[: CANDIDATES - 1]
        place = int(self.rng.integers(len(chosen) + 1))
        others = nonmembers[chosen]
        candidates = torch.cat([others[:place], self.images[target][None], others[place:]])
        return Trial(
            Case(view, candidates),
            place,
            len(members),
            client,
            staged,
            self.images[members].mean(0),
        )

    def _nonmembers(self, label: int, members: Indices) -> Tensor:
        pool = np.setdiff1d(np.flatnonzero(self.labels == label), members)
        return torch.cat([self.images[pool], self.held[self.held_labels == label]])

    def _population(self, extract: Map, label: int) -> Population:
        if extract not in self._populations:
            features = in_chunks(extract, self.public).double().numpy()
            made = populations(features, self.public_labels, self.classes)
            self._populations[extract] = made
        return self._populations[extract][label]


@dataclass(frozen=True)
class ReleasePath:
    """The way that statistics leave a client.

    Args:
        spec: Terms of private releases; None for exact sums.
        pooled: Whether exact sums have one second-moment matrix over all classes.
        precision: Format of exact sums, ``float32`` or ``float16``.
    """

    spec: ReleaseSpec | None
    pooled: bool
    precision: wire.Precision = "float32"


class UploadStager:
    """Maker of uploads and of trials on them.

    Args:
        audited: The run; it must have an anchor.
        path: None is the run's own.
    """

    def __init__(self, audited: AuditedRun, path: ReleasePath | None = None) -> None:
        config = audited.config
        assert audited.anchor is not None
        self.audited, self.anchor = audited, audited.anchor
        self.path = path or ReleasePath(
            audited.spec, config.method.moments == "covariance", config.transport.precision
        )
        spec = self.path.spec
        if spec is not None and spec.width != self.anchor.width:
            self.anchor = self._anchor("anchor", spec.width)
        self._typical = audited.typical(self.anchor, spec)

    def _anchor(self, name: str, width: int) -> Anchor:
        """The anchor of a repetition: the same one where its seed decides nothing."""
        if self.anchor.is_seedless and width == self.anchor.width:
            return self.anchor
        seed = derive_seed(self.audited.config.seed, name)
        method = self.audited.config.method
        return Anchor(
            self.audited.shape, width, seed, method.extractor, method.extractor_weights
        ).eval()

    def upload(self, where: Indices, anchor: Anchor, *, client: str) -> Observation:
        """The observation of some records' upload.

        Where only a sum is seen, because of masks or of a trusted server, it is that sum less
        all other clients' parts, which the adversary is taken to know: one whole draw of noise.
        """
        audited, path = self.audited, self.path
        labels, spec = audited.labels[where], path.spec
        if spec is None:
            sums = audited.sums(anchor, where, pooled=path.pooled)
            data = wire.encode(sums, precision=path.precision)
            sums = wire.decode(data, classes=audited.classes, width=sums.width, pooled=path.pooled)
            rounding = FLOAT16 if path.precision == "float16" else FLOAT32
            return of_statistics(sums, who="server", client=client, round_=0, rounding=rounding)
        features = audited.embedded(anchor, where).numpy()
        about = audited.centre(anchor)
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
            number: Trials at most; fewer where the data set is too small.
            repetitions: How many of the run, beside itself.
        """
        audited, made = self.audited, list[Trial]()
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
                label = int(audited.labels[target])
                view = replace(
                    audited.view(first, label, self.anchor),
                    after=audited.view(after, label, self.anchor),
                    again=tuple(
                        audited.view(seen, label, anchor)
                        for seen, anchor in zip(again, others, strict=True)
                    ),
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
