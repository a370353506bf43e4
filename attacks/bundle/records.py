"""A client's own records, which an auditor knows, and all that a bundle is searched for.

Of a run they are dealt out once more from its settings; else they are read from where the client
keeps them, and features come from the bundle's own extractor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.data import load_data
from fedvtc_edge.data.own import DataTerms, load_own
from fedvtc_edge.errors import RunError
from fedvtc_edge.export.manifest import ANCHOR, Manifest
from fedvtc_edge.export.runtime import Session
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.statistics.class_statistics import Array, ClassStatistics, GlobalStatistics

from ..adversary.trials import AuditedRun
from .known import Known
from .planted import Wanted

Pixels = NDArray[np.uint8]

LIKENESS = 0.8
"""Cosine from which numbers count as an image: trained weights came to 0.66 at most with images
of 64 pixels, the fewest there are (docs/decisions/0037)."""

FEATURE_LIKENESS, FEATURE_MIXTURE = 0.995, 0.9995
"""Likewise for a class mean of features, which a row of the head is trained to resemble, and for
mixtures of all: honest heads came to 0.90 and 0.98."""

_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Records:
    """Records of one client: images, labels and what follows from them.

    Args:
        client: Its id.
        images: uint8 [N, H, W, channels].
        labels: int64 [N].
        classes: Number C of classes.
        features: Of the same images, [N, p], by the name of the extractor.
        published: What the server published, if that is known.
    """

    client: str
    images: Pixels
    labels: NDArray[np.int64]
    classes: int
    features: Mapping[str, Array] = field(default_factory=dict)
    published: GlobalStatistics | None = None

    @classmethod
    def of_run(cls, run: FinishedRun, client: str) -> Records:
        """The client's images in a run, and their features.

        Raises:
            RunError: The run has no such client, or does not know whose images are where.
            DataError: Its data set is not there.
        """
        run.record(client)
        if run.is_served or run.is_home:
            raise RunError(
                f"{run.path}: whose images are where is known to the clients of this run alone",
                hint="give the client's own images: --data PATH",
            )
        data = load_data(run.config)
        audited = AuditedRun(run, data)
        where = audited.holdings[client]
        features = {}
        if run.has_network(client):  # else its head is all clients', on the extractor
            own = audited.embedded(audited.model(client), where, exactly=False)
            features["own"] = np.asarray(own)
        if audited.anchor is not None:
            anchored = audited.embedded(audited.anchor, where, exactly=False)
            features["anchor"] = np.asarray(anchored)
        features = {name: value.astype(np.float64) for name, value in features.items()}
        labels = np.asarray(data.y_train[where], np.int64)
        published = run.published()
        return cls(client, data.x_train[where], labels, data.classes, features, published)

    @classmethod
    def of_data(cls, path: Path, manifest: Manifest, bundle: Path) -> Records:
        """A client's images from where it keeps them.

        Raises:
            DataError: No images there, or of other classes or another size than the bundle's.
        """
        form = manifest.image
        terms = DataTerms(manifest.classes, form.size, form.size, form.channels, form.size)
        own = load_own(path, terms)
        features: dict[str, Array] = {}
        if ANCHOR in manifest.files:
            beside = bundle if f"{ANCHOR}.data" in manifest.files else None
            session = Session((bundle / ANCHOR).read_bytes(), name=ANCHOR, folder=beside)
            parts = [
                session({"images": own.x[at : at + _CHUNK]}) for at in range(0, len(own.x), _CHUNK)
            ]
            features["anchor"] = np.concatenate(parts).astype(np.float64)
        return cls(manifest.client, own.x, own.y, len(manifest.classes), features)

    @property
    def counts(self) -> Array:
        """Records per class, [C]."""
        return np.bincount(self.labels, minlength=self.classes).astype(np.float64)

    def known(self) -> Known:
        """Statistics to be looked for as they are."""
        own = [
            ClassStatistics.of(values, self.labels, classes=self.classes)
            for values in self.features.values()
        ]
        if not own:
            own = [ClassStatistics.of(self._flat(), self.labels, classes=self.classes)]
        published = [] if self.published is None else [self.published]
        return Known(published, {self.client: own})

    def wanted(self, most: int) -> tuple[list[Wanted], int]:
        """Everything to be looked for up to scale and shift, and how many images that is.

        Args:
            most: Images at most; of more, some that lie evenly among them.
        """
        chosen = np.unique(np.linspace(0, len(self.images) - 1, min(most, len(self.images))))
        places = chosen.astype(np.int64)
        found = [
            Wanted(f"image {place} of class {self.labels[place]}", "images", row[None], LIKENESS)
            for place in places
            for row in forms_of(self.images[place])
        ]
        found += self._statistics("images", self._flat(), LIKENESS)
        for space, values in self.features.items():
            found += self._statistics(f"{space} features", values, FEATURE_LIKENESS)
        return [*found, *self._histograms()], len(places)

    def _flat(self) -> Array:
        return self.images.reshape(len(self.images), -1).astype(np.float64)

    def _statistics(self, of: str, values: Array, floor: float) -> Iterator[Wanted]:
        present = np.unique(self.labels)
        groups = [values[self.labels == label] for label in present]
        means = np.stack([group.mean(axis=0) for group in groups])
        for label, mean, group in zip(present, means, groups, strict=True):
            yield Wanted(f"mean {of} of class {label}", "statistics", mean[None], floor)
            if len(group) > 1:
                deviation = group.std(axis=0)[None]
                yield Wanted(f"deviations of {of}, class {label}", "statistics", deviation, floor)
        if 1 < len(means) < values.shape[1] // 2:
            mixture = 0.9 if of == "images" else FEATURE_MIXTURE
            yield Wanted(f"mixtures of mean {of}", "statistics", means, mixture)
        if of != "images":  # all images have about the same
            inner = np.concatenate([g - m for g, m in zip(groups, means, strict=True)])
            for place, row in enumerate(inner.T @ inner):
                yield Wanted(f"row {place} of the scatter of {of}", "statistics", row[None], floor)

    def _histograms(self) -> Iterator[Wanted]:
        counts = self.counts
        forms = {
            "counts": counts,
            "sorted counts": np.sort(counts),
            "counts, most first": np.sort(counts)[::-1],
            "logarithms of counts": np.log(counts + 1.0 / self.classes),
        }
        for name, values in forms.items():
            yield Wanted(f"{name} per class", "histogram", values[None], 0.999)


def forms_of(image: Pixels) -> list[Array]:
    """Orders and sizes in which an image may be stored, each flat.

    As it is, with its channels one after another, as grey, and at half its side.
    """
    pixels = image.astype(np.float64)
    size, _, channels = pixels.shape
    forms = [pixels.ravel()]
    grey = pixels.mean(axis=2)
    if channels > 1:
        forms += [pixels.transpose(2, 0, 1).ravel(), grey.ravel()]
    if size >= 16:
        half = size // 2
        forms.append(
            grey[: 2 * half, : 2 * half].reshape(half, 2, half, 2).mean(axis=(1, 3)).ravel()
        )
    return forms


def bytes_of(images: Sequence[Pixels]) -> Iterator[bytes]:
    """Images as bytes, in both orders of their axes."""
    for image in images:
        yield image.tobytes()
        if image.shape[2] > 1:
            yield image.transpose(2, 0, 1).tobytes()
