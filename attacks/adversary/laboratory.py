"""The auditor's laboratory: it knows whose data are where, and puts attacks to the test.

A run is rebuilt from its settings: the same data set, dealt out by the same seed. Half of the
test set is the adversary's own (*public*), the other half and the other clients' images are
*decoys*. What an attack gets of all that is a view and candidates; nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge.config import client_ids
from fedvtc_edge.data import Dataset, partition
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.anchor import Anchor, centre
from fedvtc_edge.privacy.mechanism import release_spec_of
from fedvtc_edge.privacy.release import contributions
from fedvtc_edge.privacy.release_spec import COUNT, Array, ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.privacy.sampler import GRID
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.training.client import in_chunks, one_by_one
from fedvtc_edge.training.compute import as_images

from .observations import (
    EVERYONE,
    FLOAT32,
    Observation,
    of_publication,
    of_statistics,
    opened,
    sums_of,
    uploads,
)
from .population import populations
from .subjects import AuditTarget, shared
from .view import Case, Map, Pairs, Population, View

Indices = NDArray[np.int64]

CANDIDATES = 50
"""One member and its same-class decoys: chance is 2 %."""

KNOWN_PAIRS = 50
"""Of a server that lacks the extractor."""

FEWEST = 10
"""With fewer candidates a rank says next to nothing."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A case and, for scoring alone, its truth.

    Args:
        case: What the attack gets.
        target: Place of the one member among the candidates.
        count: Records that the view is of, n.
        client: Whose.
        staged: Whether the upload was made here, by the run's own path, and not by the run.
        average: Mean image of those records, [channels, size, size].
    """

    case: Case
    target: int
    count: int
    client: str
    staged: bool
    average: Tensor


class Laboratory:
    """A finished run and the data it was made from.

    Args:
        run: The run.
        data: Its data set, loaded anew.
        seed: Of the split into public images and decoys, and of what is staged.
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
        self.holdings: dict[str, Indices] = dict(zip(client_ids(self.config), parts, strict=True))
        self.holdings[EVERYONE] = np.concatenate(parts)
        order = self.rng.permutation(len(data.y_test))
        half = len(order) // 2
        test = as_images(data.x_test, cpu)
        self.public, self.public_labels = test[order[:half]], data.y_test[order[:half]]
        self.held, self.held_labels = test[order[half:]], data.y_test[order[half:]]
        self.anchored = shared(self.config) == "anchored"
        self.spec = release_spec_of(self.config, self.classes)
        self._models: dict[str, Map] = {}
        self._decoders: dict[str, Map | None] = {}
        self._populations: dict[Map, list[Population]] = {}

    @cached_property
    def anchor(self) -> Anchor | None:
        """R of the run, or None."""
        return self.run.anchor(self.shape)

    def extractor(self, seen: Observation) -> Map | None:
        """What the adversary who saw this can compute features with, or None."""
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

    # ------------------------------------------------------------ what was seen

    def observed(self) -> list[Observation]:
        """What each adversary sees of the finished run."""
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
        world = self.run.published()
        if world is not None and self.spec is None:
            seen.append(of_publication(world, who="device"))
            seen += self._colluders(seen)
        return seen

    def _colluders(self, seen: Sequence[Observation]) -> Iterator[Observation]:
        """The publication, less what all clients but one know of themselves."""
        world = self.run.published()
        if world is None or not self.anchored or self.anchor is None:
            return
        total, pooled = sums_of(world), world.covariance is not None
        if self.config.server.trim or self.config.server.minimum_contributors > 1:
            return  # what was published is not the sum
        for client in client_ids(self.config):
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
        features = in_chunks(extract, self.images[where])
        return ClassStatistics.of(features, self.labels[where], classes=self.classes, pooled=pooled)

    def centre(self, anchor: Anchor | None) -> Array:
        """Public centre that private sums are about."""
        if anchor is None:
            return np.zeros(self.spec.width if self.spec else self.config.method.latent)
        return centre(anchor, self.shape)

    def typical(self, anchor: Anchor | None, spec: ReleaseSpec | None) -> float:
        """How much joint clipping shortens an example, from public images."""
        if spec is None or anchor is None or isinstance(spec, ClientReleaseSpec):
            return 1.0
        features = one_by_one(anchor, self.public[:200]).double().numpy()
        count, _, _ = contributions(spec, features, self.centre(anchor))
        return float(count.mean() / (COUNT * GRID))

    # ------------------------------------------------------------ trials

    def view(self, seen: Observation, label: int, extract: Map | None) -> View:
        """One class of what was seen."""
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
        """ψ, which paints from the client's own features: who has the device, or was sent it."""
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
        probe_copy = Anchor(
            self.shape, self.config.method.anchor, derive_seed(0, "stand-in")
        ).eval()
        return Pairs(probe_copy, in_chunks(probe_copy, known).double().numpy(), hidden)

    def trials(self, seen: Observation, number: int, extract: Map | None) -> list[Trial]:
        """Up to ``number`` trials on the classes of an upload, one member each."""
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
        """One member among decoys of its class; None where there are too few of those."""
        decoys = self._decoys(view.label, members)
        if len(decoys) < FEWEST - 1:
            return None
        chosen = self.rng.permutation(len(decoys))[: CANDIDATES - 1]
        place = int(self.rng.integers(len(chosen) + 1))
        others = decoys[chosen]
        candidates = torch.cat([others[:place], self.images[target][None], others[place:]])
        return Trial(
            Case(view, candidates),
            place,
            len(members),
            client,
            staged,
            self.images[members].mean(0),
        )

    def _decoys(self, label: int, members: Indices) -> Tensor:
        pool = np.setdiff1d(np.flatnonzero(self.labels == label), members)
        return torch.cat([self.images[pool], self.held[self.held_labels == label]])

    def _population(self, extract: Map, label: int) -> Population:
        if extract not in self._populations:
            features = in_chunks(extract, self.public).double().numpy()
            made = populations(features, self.public_labels, self.classes)
            self._populations[extract] = made
        return self._populations[extract][label]
