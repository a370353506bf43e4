"""The content of one client's bundle: graphs, statistics, and the proof that they fit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.data import load_data
from fedvtc_edge.data.own import TERMS, TEST_SET, DataTerms, unpack_test
from fedvtc_edge.errors import RunError
from fedvtc_edge.models import Classifier, ImageShape
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.runs.directory import version
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.training.knowledge import CODE_STD, class_codes

from . import inputs
from .codes import Codes
from .graphs import Nearest
from .manifest import STATISTICS, File, Image, Manifest, Privacy
from .writing import GraphWriter

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


class Builder:
    """Makes the bundles of one run.

    Args:
        finished: The run.
        data: Its classes and their form, and evaluation images if there are any.
        int8: Whether to add int8 variants.

    Raises:
        RunError: int8 is wanted and there is nothing to calibrate it with, or the
            published statistics do not fit the settings.
    """

    def __init__(self, finished: FinishedRun, data: ClassificationTask, *, int8: bool) -> None:
        size, _, channels = data.image_shape
        self.finished, self.data, self.int8 = finished, data, int8
        self.shape = ImageShape(size, channels)
        self.latent = finished.config.method.latent
        self.form = Image(
            size=size,
            channels=1 if channels == 1 else 3,
            colour="grey" if channels == 1 else "rgb",
            resize="bilinear, antialiased, stretched to the square",
        )
        self.published = finished.published()
        self.anchor = finished.anchor(self.shape)
        if self.published is not None:
            width = self.anchor.width if self.anchor else self.latent
            if self.published.mean.shape != (data.classes, width):
                raise RunError(
                    f"{finished.path}: statistics of shape {self.published.mean.shape} "
                    f"do not fit {data.classes} classes of {width} features",
                    hint="the run is damaged, or its data set has changed: run it again",
                )
        self.method = METHODS.find(finished.config.method.name)
        if int8 and not self.method.has_decoder:
            raise RunError(
                f"int8 is calibrated with synthesised images, and "
                f"{finished.config.method.name!r} synthesises none",
                hint="leave out --int8, or export a run of method.name = fedvtc",
            )

    def would_be(self, manifest: Manifest, client: str) -> bool:
        """Whether :meth:`build` would write this manifest's bundle again."""
        return (
            manifest.run == self.finished.digest
            and manifest.client == client
            and manifest.revision == 0
            and bool(manifest.int8) == self.int8
            and manifest.source == self._source(client)
            and manifest.tools == _tools()
        )

    def build(self, client: str, folder: Path) -> Manifest:
        """Write a client's graphs and statistics into ``folder`` and return its manifest.

        Raises:
            ParityError: onnxruntime does not compute what torch computes, or the
                accuracy is not the run's.
        """
        record, codes = self.finished.record(client), self._codes(client)
        writer = GraphWriter(
            folder,
            self.form,
            codes,
            classes=self.data.classes,
            latent=self.latent,
            images=self.data.x_test,
            labels=self.data.y_test,
        )
        model: Classifier | Nearest
        model = self.finished.classifier(client, self.shape, self.data.classes)
        if self.method.nearest_prototype and self.published is not None:
            model = Nearest(model, self.published)
        decoder = self.finished.decoder(client, self.shape)
        if decoder is not None and codes is not None:
            writer.paint(decoder)
        writer.classifier(model, record.accuracy)
        if codes is not None:
            (folder / STATISTICS).write_bytes(codes.to_bytes())
            writer.files.append(STATISTICS)
            if decoder is not None:
                writer.synthesizer(decoder)
        if self.anchor is not None:
            writer.anchor(self.anchor, record.accuracy_calibrated)
        if self.int8:
            writer.quantized()
        summary = self.finished.summary
        return Manifest(
            schema=1,
            kind="fedvtc-edge bundle",
            client=client,
            architecture=record.architecture or "",
            device=record.device,
            run=self.finished.digest,
            source=self._source(client),
            method=self.finished.config.method.name,
            share=summary.share,
            classes=self.data.class_names,
            latent=self.latent,
            anchor=self.anchor.width if self.anchor else None,
            image=self.form,
            noise=inputs.described(self.latent) if "synthesizer" in writer.graphs else None,
            files={name: _described(folder / name) for name in sorted(writer.files)},
            graphs=writer.graphs,
            privacy=Privacy(
                mode=self.finished.config.privacy.mode,
                epsilon=summary.epsilon,
                delta=summary.delta,
                unit=summary.privacy_unit,
            ),
            accuracy=writer.accuracy,
            parity=writer.parity,
            int8=writer.int8,
            tools=_tools(),
        )

    def _source(self, client: str) -> dict[str, str]:
        folder = self.finished.path / "clients" / client
        names = ("classifier.safetensors", "decoder.safetensors")
        return {
            name: _described(folder / name).sha256 for name in names if (folder / name).exists()
        }

    def _codes(self, client: str) -> Codes | None:
        knowledge = self.published
        if knowledge is None:
            return None
        counts = self.finished.record(client).class_counts
        if not isinstance(counts, list) or len(counts) != self.data.classes:
            raise RunError(
                f"{self.finished.path}: {client} lacks counts of {self.data.classes} classes",
                hint="the run is damaged, or its data set has changed: run it again",
            )
        own = np.array(counts) > 0
        mechanism = mechanism_of(self.finished.config)
        if mechanism is not None and mechanism.protects_models:  # which it has is private
            own = np.ones_like(own)
        if self.anchor is None:
            mean, std = knowledge.mean.astype(np.float32), knowledge.std.astype(np.float32)
            return Codes(mean, std, knowledge.present, own, None)
        mean = class_codes(self.data.classes, self.latent).astype(np.float32)
        return Codes(mean, np.full_like(mean, CODE_STD), knowledge.present, own, knowledge)


def _described(path: Path) -> File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(sha256=digest, size=path.stat().st_size)


def _tools() -> dict[str, str]:
    return {"fedvtc-edge": version()} | {name: metadata.version(name) for name in _TOOLS}


# ---------------------------------------------------------------- section
# What there is to classify: names and form of the classes, and images to measure on, if any.


class ClassificationTask(Protocol):
    """What an export needs of a data set; a :class:`~fedvtc_edge.data.Dataset` has it all."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the C classes."""

    @property
    def classes(self) -> int:
        """C."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, channels)."""

    @property
    def x_test(self) -> NDArray[np.uint8]:
        """Evaluation images [M, H, W, channels]; M is 0 where there are none."""

    @property
    def y_test(self) -> NDArray[np.int64]:
        """Their labels [M]."""


@dataclass(frozen=True, eq=False)
class HomeTask:
    """What a client knows of its federation's task; see :class:`ClassificationTask`.

    Args:
        terms: Classes and shapes, as agreed.
        x_test: uint8 [M, H, W, channels]; M is 0 where the client had no test set.
        y_test: int64 [M].
    """

    terms: DataTerms
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the C classes."""
        return self.terms.class_names

    @property
    def classes(self) -> int:
        """C."""
        return len(self.terms.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, channels)."""
        return self.terms.shape


def task_of(finished: FinishedRun) -> ClassificationTask:
    """The run's data set; a home's terms and test set, for it need not have the data set.

    Raises:
        DataError: It is not there any more, or damaged.
        RunError: A file of the home is missing.
    """
    if not finished.is_home:
        return load_data(finished.config)
    path = finished.path / TEST_SET
    try:
        terms = DataTerms.from_json((finished.path / TERMS).read_text("utf-8"))
        packed = path.read_bytes() if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            f"cannot read the home {finished.path}: {error}", hint="restore its files from a copy"
        ) from None
    if packed is None:
        return HomeTask(terms, np.zeros((0, *terms.shape), np.uint8), np.zeros(0, np.int64))
    test = unpack_test(packed, terms)
    return HomeTask(terms, test.images, test.labels)
