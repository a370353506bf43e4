"""One client's graphs, each written and held against torch: an export that differs ends here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedvtc_edge.errors import BundleError, ParityError, VerificationError
from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.models.vtc import VTC
from fedvtc_edge.runs.records import ClientRecord
from fedvtc_edge.statistics.class_prior import accuracy_on, recalls

from . import inputs
from .codes import Codes, StatisticsClassifier, combined, log_softmax
from .extractors import AnchorFiles
from .graphs import (
    ClassifierGraph,
    Model,
    SynthesizerGraph,
    convert,
    quantize,
)
from .manifest import Graph, GraphName, Image, ports
from .runtime import Arrays, Session

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]

RANDOM_IMAGES, SYNTHESISED, CALIBRATION_IMAGES, CHUNK = 256, 512, 256, 32
_PARITY_SEED, _CALIBRATION_SEED, _HELD_OUT_SEED = 101, 102, 103

TOLERANCE = 1e-4
"""Largest difference, as a share of the sample's largest value. float32 in another order of
summation reaches 5e-6 on the small built-in networks and 4e-5 on torchvision's deeper ones,
where torch itself is as far from float64, and from itself at another batch size."""

TIE = 0.01
"""Distance from a half, in levels of 255, within which a pixel's rounding may depend on the
last bits of a sum; 3e-5 is the most that was seen."""

Report = dict[str, Any]

ACCURACY_SLACK = 0.001
"""How far an exported accuracy may be from the run's; one image may always differ."""


class GraphWriter:
    """Writer of one bundle's graphs into ``folder``.

    Args:
        codes: Inputs of the synthesiser and of the combined prediction; None where the
            method published nothing.
        latent: Width p of the latents.
        images: Evaluation images, uint8 [n, H, W, channels]; n may be 0.
        labels: Their labels [n].
    """

    def __init__(
        self,
        folder: Path,
        form: Image,
        codes: Codes | None,
        *,
        classes: int,
        latent: int,
        images: Images,
        labels: NDArray[np.int64],
    ) -> None:
        self.folder, self.form, self.codes = folder, form, codes
        self.classes, self.latent = classes, latent
        self.images, self.labels = images, labels
        self.graphs: dict[GraphName, Graph] = {}
        self.files: list[str] = []
        self.parity: dict[str, Any] = {}
        self.int8: dict[str, Any] = {}
        self.accuracy: dict[str, Any] = {"images": len(images)}
        self._predictions: dict[str, Floats] = {}
        draw = np.random.Generator(np.random.Philox(key=_PARITY_SEED))
        shape = (RANDOM_IMAGES, *images.shape[1:])
        self._random: Images = draw.integers(0, 256, shape, np.uint8)
        self._compared: dict[str, Images] = {"random": self._random}
        if len(images):
            self._compared["evaluation"] = images

    def synthesise(self, decoder: VTC) -> None:
        """Compare graphs on synthesised images, too, where there are no evaluation images."""
        if not len(self.images):
            latents = self._latents(SYNTHESISED, _PARITY_SEED)
            with torch.no_grad():
                images = SynthesizerGraph(decoder)(*map(torch.from_numpy, latents.values()))
            self._compared["painted"] = images.numpy()  # a key of the manifest

    def classifier(self, model: Model, expected: float | None) -> None:
        """``classifier.onnx``; its accuracy must be the run's.

        Raises:
            ParityError: It computes something else, or is more or less accurate.
        """
        graph = ClassifierGraph(model)
        session = self._write("classifier", graph, self.example)
        report = {
            what: compare_logits(
                _torch(graph, images), _run(session, images), f"classifier.onnx, {what} images"
            )
            for what, images in self._compared.items()
        }
        self.parity["classifier"] = report
        self._record_accuracy("classifier", self._scores(session), expected)

    def synthesizer(self, decoder: VTC) -> None:
        """``synthesizer.onnx``: labels, means, stds and noise to pixels.

        Raises:
            ParityError: A pixel differs from torch's.
        """
        graph = SynthesizerGraph(decoder)
        feed = self._latents(SYNTHESISED, _PARITY_SEED)
        example = {name: torch.from_numpy(value) for name, value in feed.items()}
        for name in ("labels", "noise"):
            example[name] = example[name][:2]
        session = self._write("synthesizer", graph, example, fixed=("means", "stds"))
        with torch.no_grad():
            levels = graph.levels(*(torch.from_numpy(value) for value in feed.values())).numpy()
        self.parity["synthesizer"] = compare_pixels(levels, session(feed), "synthesizer.onnx")

    def anchor(self, made: AnchorFiles, expected: float | None) -> None:
        """``anchor.onnx``: what the combined prediction needs beside the statistics.

        Args:
            made: The graph, written once for all bundles; what is compared on images that
                they have in common is compared once, too.
            expected: Accuracy of the run's combined prediction.

        Raises:
            ParityError: It computes something else, or the combined accuracy is not
                the run's.
        """
        codes, known = self.codes, None
        assert codes is not None
        assert codes.knowledge is not None
        self.graphs["anchor"] = made.graph
        self.files += made.copy_into(self.folder)
        report = self.parity["anchor"] = {}
        for what, images in self._compared.items():
            if what not in made.remembered or what == "painted":  # each client's are its own
                features = _run(made.session, images)
                reference = _torch(made.module, images)
                agreed = compare_floats(reference, features, f"anchor.onnx, {what} images")
                made.remembered[what] = agreed, features
            report[what], features = made.remembered[what]
            known = features if what == "evaluation" else known
        own = self._scores(self._session("classifier.onnx"))
        both = None
        if own is not None and known is not None:
            own = log_softmax(own).astype(np.float32)
            both = combined(own, StatisticsClassifier(codes.knowledge)(known))
        self._record_accuracy("calibrated", both, expected)

    def at_home(self, prior: Sequence[float], counts: Sequence[int], record: ClientRecord) -> None:
        """Accuracies with the client's own prior, where classes come as often as it has them.

        Args:
            prior: The client's, [C].
            counts: Its examples per class, [C].
            record: The run's figures.

        Raises:
            ParityError: They are not the run's.
        """
        shift = np.log(np.array(prior)).astype(np.float32)
        expected = {
            "classifier": record.accuracy_home,
            "calibrated": record.accuracy_home_calibrated,
        }
        for what, scores in self._predictions.items():
            recall = recalls((scores + shift).argmax(1), self.labels, self.classes)
            images = np.bincount(self.labels, minlength=self.classes)
            heaviest = max(n / sum(counts) / m for n, m in zip(counts, images, strict=True) if m)
            reached = accuracy_on(counts, recall)
            self._compare(f"{what}_home", reached, expected[what], 1.5 * heaviest)

    def quantized(self) -> None:
        """int8 variants of classifier and synthesiser, and how far they are from fp32."""
        synthesizer = self._session("synthesizer.onnx")
        reference = self._session("classifier.onnx")
        latents = self._latents(CALIBRATION_IMAGES, _CALIBRATION_SEED)
        fresh = self._latents(SYNTHESISED, _HELD_OUT_SEED)
        calibration, held_out = synthesizer(latents), synthesizer(fresh)

        smaller = self._quantize("classifier", [{"images": part} for part in _split(calibration)])
        same = _run(smaller, held_out).argmax(1) == _run(reference, held_out).argmax(1)
        self.int8["classifier"] = {
            "calibration_images": CALIBRATION_IMAGES,
            "agreement_images": SYNTHESISED,
            "agreement": round(float(same.mean()), 6),
        }
        self.accuracy["classifier_int8"] = self._accuracy(self._scores(smaller))

        parts = [
            {**latents, "labels": labels, "noise": noise_}
            for labels, noise_ in zip(
                _split(latents["labels"]), _split(latents["noise"]), strict=True
            )
        ]
        error = self._quantize("synthesizer", parts)(fresh).astype(np.float64) - held_out
        power = float(np.square(error).mean())
        self.int8["synthesizer"] = {
            "calibration_images": CALIBRATION_IMAGES,
            "psnr_db": round(10 * np.log10(255.0**2 / power), 2) if power else None,
            "largest_difference": int(np.abs(error).max()),
        }

    def _write(
        self,
        name: GraphName,
        module: nn.Module,
        example: Mapping[str, Tensor],
        *,
        fixed: tuple[str, ...] = (),
    ) -> Session:
        path = self.folder / f"{name}.onnx"
        given, outputs = ports(
            name, self.form, classes=self.classes, latent=self.latent, anchor=None
        )
        written = convert(module, example, path, output=next(iter(outputs)), fixed=fixed)
        self.graphs[name] = Graph(
            variants={"fp32": path.name},
            opset=written.opset,
            ir=written.ir,
            inputs=given,
            outputs=outputs,
        )
        self.files += written.files
        return self._session(path.name)

    def _quantize(self, name: GraphName, calibration: Sequence[Arrays]) -> Session:
        path = self.folder / f"{name}.int8.onnx"
        written = quantize(self.folder / f"{name}.onnx", path, calibration)
        graph = self.graphs[name]
        self.graphs[name] = replace(graph, variants={**graph.variants, "int8": path.name})
        self.files += written.files
        return self._session(path.name)

    def _session(self, name: str) -> Session:
        try:
            return Session((self.folder / name).read_bytes(), name=name, folder=self.folder)
        except BundleError as error:  # here the exporter is at fault, not what it was given
            raise ParityError(
                str(error), hint="install the versions that pyproject.toml asks for"
            ) from None
        except VerificationError as error:  # an architecture of somebody's own
            raise ParityError(
                str(error), hint="devices refuse it: build the architecture of other operators"
            ) from None

    @property
    def example(self) -> dict[str, Tensor]:
        """Two images, as graphs take them."""
        return {"images": torch.from_numpy(self._random[:2])}

    def _latents(self, count: int, seed: int) -> dict[str, NDArray[Any]]:
        assert self.codes is not None
        known = np.flatnonzero(self.codes.known)
        return {
            "labels": np.resize(known, count).astype(np.int64),
            "means": self.codes.mean,
            "stds": self.codes.std,
            "noise": inputs.draw(seed, count, self.latent),
        }

    def _scores(self, session: Session) -> Floats | None:
        """Scores of the evaluation images, where there are any."""
        return _run(session, self.images) if len(self.images) else None

    def _accuracy(self, scores: Floats | None) -> float | None:
        return None if scores is None else float((scores.argmax(1) == self.labels).mean())

    def _record_accuracy(self, what: str, scores: Floats | None, expected: float | None) -> None:
        if scores is not None:
            self._predictions[what] = scores
        self._compare(what, self._accuracy(scores), expected, 1.5 / max(len(self.images), 1))

    def _compare(
        self, what: str, reached: float | None, expected: float | None, images: float
    ) -> None:
        """Note an accuracy; it may differ from the run's by the weight of so many images."""
        self.accuracy[what], self.accuracy[f"{what}_run"] = reached, expected
        slack = max(ACCURACY_SLACK, images)
        if expected is not None and reached is not None and abs(reached - expected) > slack:
            raise ParityError(
                f"{what}: {100 * reached:.2f} % on the evaluation images, "
                f"the run's summary says {100 * expected:.2f} %",
                hint="the data set or the weights are not those of the run: run it again",
            )


@torch.no_grad()
def _torch(graph: nn.Module, images: Images) -> Floats:
    result: Floats = in_chunks(graph.eval(), torch.from_numpy(images)).numpy()
    return result


def _run(session: Session, images: Images) -> Floats:
    return np.concatenate([session({"images": part}) for part in _split(images)])


def _split(array: NDArray[Any]) -> list[NDArray[Any]]:
    return [array[start : start + CHUNK] for start in range(0, len(array), CHUNK)]


def compare_floats(reference: Floats, actual: Floats, what: str) -> Report:
    """Relative error of features or logits [N, K], row by row.

    Raises:
        ParityError: Another shape, a value that is not finite, or an error above tolerance.
    """
    finite = np.isfinite(reference).all() and np.isfinite(actual).all()
    if reference.shape != actual.shape or not finite:
        raise _disagreement(what, f"shape {actual.shape} or a value that is not finite")
    scale = np.maximum(np.abs(reference).max(axis=1), np.finfo(np.float32).tiny)
    error = float((np.abs(reference - actual).max(axis=1) / scale).max())
    if error > TOLERANCE:
        raise _disagreement(what, f"relative error {error:.2g}, expected at most {TOLERANCE:g}")
    return {"samples": len(reference), "max_relative_error": float(f"{error:.2g}")}


def compare_logits(reference: Floats, actual: Floats, what: str) -> Report:
    """Compare as :func:`compare_floats` does; the predicted classes must be the same too.

    A class that the runtime prefers by less than the tolerance is a tie, not a
    disagreement; ties are counted.

    Raises:
        ParityError: An error above tolerance, or another class.
    """
    report = compare_floats(reference, actual, what)
    rows = np.arange(len(reference))
    chosen = actual.argmax(axis=1)
    best = reference.max(axis=1)
    differs = chosen != reference.argmax(axis=1)
    tied = best - reference[rows, chosen] <= 2 * TOLERANCE * np.abs(reference).max(axis=1)
    if (differs & ~tied).any():
        raise _disagreement(what, f"{int((differs & ~tied).sum())} of {len(rows)} in another class")
    agreement = 1.0 - float(differs.mean())
    return report | {"argmax_agreement": agreement, "ties": int(differs.sum())}


def compare_pixels(levels: Floats, actual: NDArray[np.uint8], what: str) -> Report:
    """Compare synthesised pixels: one may differ only where rounding is a coin's toss.

    Args:
        levels: torch's pixels before rounding, [N, H, W, channels] in 0…255.
        what: Name of the graph, for the error.

    Raises:
        ParityError: A pixel differs that is not a tie.
    """
    if levels.shape != actual.shape or actual.dtype != np.uint8:
        raise _disagreement(what, f"{actual.dtype} of shape {actual.shape}")
    if not np.isfinite(levels).all():  # both would make them black, and agree
        raise _disagreement(what, "a pixel that is not finite")
    expected = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    differs = expected != actual
    ties = differs & (np.abs(levels - actual) <= 0.5 + TIE)
    if (differs & ~ties).any():
        raise _disagreement(what, f"{int((differs & ~ties).sum())} of {differs.size} pixels differ")
    return {
        "samples": len(actual),
        "pixels": int(differs.size),
        "equal_pixels": int(differs.size - ties.sum()),
        "rounding_ties": int(ties.sum()),
    }


def _disagreement(what: str, why: str) -> ParityError:
    return ParityError(
        f"{what}: onnxruntime and torch disagree: {why}",
        hint="this client was not exported; install the versions that pyproject.toml asks for",
    )
