"""Trials: one member of an upload among non-members of its class, for attacks to tell apart.

A run's data are dealt out once more from its settings, by the same seed. Half of the test set
is the adversary's own (*public*); the other half and the other clients' images are
*non-members*. What an attack gets of all that is a view and candidates; nothing else.

A run has few classes of one record, or of exactly a hundred, and what a record changes is seen
only where there is an upload without it. So uploads are also staged, see :mod:`.staging`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge.data import Dataset, hold_out, partition
from fedvtc_edge.errors import RunError
from fedvtc_edge.models import Classifier, ImageShape
from fedvtc_edge.models.extractor import Anchor, centre, in_chunks, one_by_one
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.privacy.release import contributions
from fedvtc_edge.privacy.release_spec import COUNT, Array, ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.privacy.sampler import GRID
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.training.compute import as_images

from .observations import (
    EVERYONE,
    FLOAT32,
    Observation,
    of_means,
    of_publication,
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

SIZES = ((1, 1), (2, 2), (3, 5), (6, 19), (20, 99), (100, 2**62))
"""Numbers of records of a class that are reported together."""

MOST_CLIENTS = 50
"""Of more clients, so many are drawn and attacked, and one more for each size of class that would
otherwise be missing."""

_OTHER_EXTRACTOR = 0.05
"""Relative error of class means above which they were measured by another extractor than kept:
ten times that of bfloat16."""


def size_of(count: int) -> tuple[int, int]:
    """The range of :data:`SIZES` that a number of records, 1 or more, lies in."""
    return next((low, high) for low, high in SIZES if low <= count <= high)


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

    Attributes:
        sample: Clients that are attacked: all, or :data:`MOST_CLIENTS` and a few.
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
        self.moments = METHODS.find(self.config.method.name).sends_moments
        self.mechanism = mechanism_of(self.config, self.classes)
        self.spec = None if self.mechanism is None else self.mechanism.spec
        self.sample = self._sampled(seed)
        self._models: dict[tuple[str, str], Map] = {}
        self._embedded: dict[tuple[int, bool], tuple[Map, Tensor]] = {}
        self._centres: dict[int, tuple[Anchor, Array]] = {}
        self._decoders: dict[str, Map | None] = {}
        self._populations: dict[Map, list[Population]] = {}

    def _sampled(self, seed: int) -> tuple[str, ...]:
        ids = self.config.client_ids
        if len(ids) <= MOST_CLIENTS:
            return tuple(ids)

        def sizes(client: str) -> set[tuple[int, int]]:
            counts = np.unique(self.labels[self.holdings[client]], return_counts=True)[1]
            return {size_of(count) for count in counts}

        chosen, found = list[int](), set[tuple[int, int]]()
        for place in np.random.default_rng((seed, len(ids))).permutation(len(ids)):
            own = sizes(ids[place])
            if len(chosen) < MOST_CLIENTS or not own <= found:
                chosen.append(int(place))
                found |= own
        return tuple(ids[place] for place in sorted(chosen))

    @cached_property
    def uploaders(self) -> tuple[str, ...]:
        """Clients, of those attacked, whose own extractor is kept as it was at an upload."""
        if self.anchored:
            return ()
        return tuple(client for client in self.sample if self.run.has_uploaded(client))

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
        return self.uploaded(seen.client)

    def model(self, client: str) -> Map:
        """A client's own g, as its device holds it when the run is done."""
        return self._features_of(client, self.run.classifier)

    def uploaded(self, client: str) -> Map:
        """A client's own g, as it was when its last upload was measured.

        Training went on after that: a later g is no key to what was uploaded.
        """
        return self._features_of(client, self.run.uploaded)

    def _features_of(self, client: str, read: Callable[[str, ImageShape, int], Classifier]) -> Map:
        key = (client, read.__name__)
        if key not in self._models:
            self._models[key] = read(client, self.shape, self.classes).features
        return self._models[key]

    def observed(self) -> list[Observation]:
        """Statistics of the finished run as each adversary sees them."""
        last: dict[str, Observation] = {}
        kind = "anchor" if self.anchored else "features"
        for context, data in uploads(self.run.path, self.config, self.sample):
            if context.kind == kind:
                last[context.sender] = opened(
                    data,
                    context,
                    self.config,
                    self.classes,
                    self.spec,
                    self.centre(self.anchor),
                    self.typical(self.anchor, self.spec),
                )
        seen = list(last.values())
        if not self.anchored:
            for one in seen:
                self._check_extractor(one)
            seen += [replace(one, who="server+device") for one in seen]
        published = self.run.published()
        if published is not None and self.spec is None:
            seen.append(of_publication(published, who="device", moments=self.moments))
            seen += self._colluders(seen)
        return seen

    def _check_extractor(self, seen: Observation) -> None:
        """Refuse a kept g that did not make an upload: attacks with it would find nothing.

        Raises:
            RunError: It did not.
        """
        if self.spec is not None:  # noise hides which g it was, as it hides the records
            return
        exact = self.sums(self.uploaded(seen.client), self.holdings[seen.client], pooled=False)
        present = exact.count > 0
        error = float(np.abs(seen.mean - exact.mean)[present].max())
        if error > _OTHER_EXTRACTOR * float(np.abs(exact.mean).max()):
            raise RunError(
                f"{self.run.path}: what {seen.client} uploaded is not what its kept extractor "
                "computes of its data",
                hint="the run is damaged: run it again",
            )

    def _colluders(self, seen: Sequence[Observation]) -> Iterator[Observation]:
        """The publication, less what all clients but one know of themselves."""
        published = self.run.published()
        if published is None or not self.anchored or self.anchor is None:
            return
        total, pooled = sums_of(published), published.covariance is not None
        if self.config.server.trim or self.config.server.minimum_contributors > 1:
            return  # what was published is not the sum
        for client in self.sample:
            rest = np.setdiff1d(self.holdings[EVERYONE], self.holdings[client])
            own = self.sums(self.anchor, rest, pooled=pooled)
            left = ClassStatistics(
                np.maximum(total.count - own.count, 0),
                total.total - own.total,
                total.square - own.square,
                pooled,
            )
            if not self.moments:
                yield of_means(left, who="colluders", client=client, round_=0)
                continue
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

        Each is computed once: a record is in many staged uploads. A pretrained network's are
        computed for all records together: they take milliseconds each.

        Args:
            exactly: To the last bit as if each were the only one, as private sums need them.
        """
        if isinstance(extract, Anchor) and extract.sha256:
            return extract.embed(self.images)[where]
        apply = one_by_one if exactly else in_chunks
        kept = self._embedded.get((id(extract), exactly))
        if kept is None:
            width = apply(extract, self.images[:1]).shape[1]
            table = torch.full((len(self.images), width), torch.nan)
            # With the extractor itself, so that no other can have its identity.
            kept = self._embedded[id(extract), exactly] = (extract, table)
        table = kept[1]
        missing = np.unique(where[torch.isnan(table[where, 0]).numpy()])
        if len(missing):
            table[missing] = apply(extract, self.images[missing])
        return table[where]

    def centre(self, anchor: Anchor | None) -> Array:
        """The public centre that private sums are about, [m]."""
        if anchor is None:
            return np.zeros(self.spec.width if self.spec else self.config.method.latent)
        if id(anchor) not in self._centres:
            self._centres[id(anchor)] = (anchor, centre(anchor, self.shape))
        return self._centres[id(anchor)][1]

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
        hidden = in_chunks(self.uploaded(seen.client), known).double().numpy()
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
