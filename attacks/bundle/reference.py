"""The bundle as export would write it: of the run itself, or of freshly drawn networks.

From a run every byte follows. Without it the graphs have the architecture's nodes, names, shapes
and types all the same, and other weights.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.errors import FedVTCError, RunError
from fedvtc_edge.export import inputs
from fedvtc_edge.export.exporting import Builder
from fedvtc_edge.export.extractors import write_anchor
from fedvtc_edge.export.graphs import (
    ClassifierGraph,
    CommonHead,
    Model,
    Nearest,
    SynthesizerGraph,
    convert,
    quantize,
)
from fedvtc_edge.export.manifest import GraphName, Image, Manifest
from fedvtc_edge.export.task import task_of
from fedvtc_edge.models import ImageShape, network, vtc
from fedvtc_edge.models.extractor import Anchor, extractor_of
from fedvtc_edge.models.registry import ON_EXTRACTOR
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.training.compute import deterministic

from .reading import MANIFEST

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Reference:
    """Files that a bundle is compared with.

    Args:
        files: Content of each file that could be made; of the manifest, too, of a run.
        exact: Whether the weights must be the same, and not only their names and shapes.
        missing: Files that could not be made, and why.
    """

    files: Mapping[str, bytes]
    exact: bool
    missing: Mapping[str, str]


def of_run(run: FinishedRun, manifest: Manifest) -> Reference:
    """Export the client's bundle once more.

    Raises:
        RunError: The run has no such client, or cannot be exported.
        DataError: Its data set is not there.
        ParityError: Its export would be refused.
    """
    run.need_networks()
    with deterministic(), _folder() as folder, _folder() as shared:
        builder = Builder(
            run,
            task_of(run),
            int8="int8" in manifest.graphs["classifier"].variants,
            with_prior=manifest.prior is not None,
            shared=shared,
            by_reference=manifest.referenced is not None,
        )
        again = builder.build(manifest.client, folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return Reference({**files, MANIFEST: again.to_bytes()}, True, {})


def of_architecture(manifest: Manifest) -> Reference:
    """Export freshly drawn networks of the architecture that the manifest names.

    Nothing is fetched: where a public extractor is not at hand, what stands on it is missing.
    """
    with deterministic(), _folder() as folder:
        made = _Fresh(manifest, folder)
        missing: dict[str, str] = {}
        for name in manifest.graphs:
            try:
                made.write(name)
            except FedVTCError as error:
                for file in manifest.graphs[name].variants.values():
                    missing[file] = str(error)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return Reference(files, False, missing)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _unlike(module: M) -> M:
    """A copy with noise on all of its numbers.

    Of tensors that are equal the exporter makes one: fresh normalisations are, trained ones not.
    """
    other, draw = copy.deepcopy(module), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.01 * torch.rand(tensor.shape, generator=draw))
    return other


class _Fresh:
    """Writer of a bundle's graphs with weights that were drawn here."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.manifest, self.folder = manifest, folder
        self.shape = ImageShape(manifest.image.size, manifest.image.channels)
        self.classes = len(manifest.classes)

    def write(self, name: GraphName) -> None:
        """One graph, and its int8 variant if the bundle has one.

        Raises:
            FedVTCError: An architecture, method or extractor that is not at hand.
        """
        make = {
            "classifier": self._classifier,
            "synthesizer": self._synthesizer,
            "anchor": self._anchor,
        }
        make[name]()
        if "int8" in self.manifest.graphs[name].variants:
            few = [self._images() if name == "classifier" else self._latents()]
            path = self.folder / f"{name}.onnx"
            quantize(path, self.folder / f"{name}.int8.onnx", few)

    @property
    def _config(self) -> Config:
        manifest = self.manifest
        method: dict[str, Any] = {"name": manifest.method, "latent": manifest.latent}
        if manifest.share in ("anchored", "features", "features+decoder"):
            method["share"] = manifest.share
        if manifest.anchor is not None:
            method["anchor"] = manifest.anchor
        extractor = manifest.extractor
        if extractor is not None:
            if ":" in extractor.name or extractor.name.endswith(".onnx"):
                raise RunError(
                    f"the extractor {extractor.name!r:.80} is not looked for",
                    hint="give the run: --run RUN",
                )
            method["extractor"] = extractor.name
        return load_config({"method": method})

    def _classifier(self) -> None:
        kind, model = METHODS.find(self.manifest.method), self._network()
        if kind.nearest_prototype:
            zeros = np.zeros((self.classes, self.manifest.latent))
            model = Nearest(model, GlobalStatistics(np.ones(self.classes), zeros, zeros))
        example = {k: torch.from_numpy(v) for k, v in self._images().items()}
        model = _unlike(model)
        convert(ClassifierGraph(model), example, self.folder / "classifier.onnx", output="logits")

    def _network(self) -> Model:
        if not METHODS.find(self.manifest.method).common_head:
            name, config = self.manifest.architecture, self._config
            return network(name, config, self.shape, classes=self.classes, seed=0)
        draw, width = np.random.default_rng(0), self.manifest.anchor or 0
        shapes = (width, self.classes), (width, self.classes), (self.classes,)
        quadratic, linear, offset = (draw.standard_normal(shape) for shape in shapes)
        known = np.ones(self.classes, bool)
        return CommonHead(self._extractor(), (quadratic, linear, offset), known)

    def _extractor(self) -> Anchor:
        anchor = extractor_of(self._config, self.shape, self.classes)
        if anchor is None:
            raise RunError("its method has no anchor", hint="give the run: --run RUN")
        return anchor

    def _synthesizer(self) -> None:
        if self.manifest.architecture in ON_EXTRACTOR:
            raise RunError("its architecture has no decoder", hint="give the run: --run RUN")
        decoder = _unlike(vtc.build(self.shape, latent=self.manifest.latent, seed=0))
        example = {k: torch.from_numpy(v) for k, v in self._latents().items()}
        path, fixed = self.folder / "synthesizer.onnx", ("means", "stds")
        convert(SynthesizerGraph(decoder), example, path, output="images", fixed=fixed)

    def _anchor(self) -> None:
        config, anchor = self._config, self._extractor()
        example = {k: torch.from_numpy(v) for k, v in self._images().items()}
        by_reference = self.manifest.referenced is not None
        form: Image = self.manifest.image
        write_anchor(self.folder, anchor, config.method, form, example, by_reference=by_reference)

    def _images(self) -> dict[str, Any]:
        size, channels = self.shape
        return {
            "images": np.random.default_rng(0).integers(0, 256, (2, size, size, channels), "u1")
        }

    def _latents(self) -> dict[str, Any]:
        draw = np.random.default_rng(0)
        moments = draw.standard_normal((self.classes, self.manifest.latent)).astype(np.float32)
        return {
            "labels": np.arange(2),
            "means": moments,
            "stds": np.abs(moments),
            "noise": inputs.draw(0, 2, self.manifest.latent),
        }
