"""A device's graphs in onnxruntime as exported, fp32 and int8, beside the network in torch.

Networks are untrained: weights change no time.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from fedvtc_edge.config import ClientSettings
from fedvtc_edge.export.graphs import ClassifierGraph, SynthesizerGraph, convert, quantize
from fedvtc_edge.export.inputs import draw
from fedvtc_edge.export.runtime import Session
from fedvtc_edge.models import ImageShape, build, vtc
from fedvtc_edge.training.knowledge import CODE_STD, class_codes

SHAPE, LATENT, CLASSES = ImageShape(8, 1), 64, 10
Feed = dict[str, NDArray[Any]]


class Networks(NamedTuple):
    """One network, three times."""

    graph: Any
    fp32: Session
    int8: Session


@pytest.fixture(scope="module", params=[1, 32])
def batch(request: pytest.FixtureRequest) -> int:
    """Images per call: of a device, and as many as a bundle takes at once."""
    return int(request.param)


@pytest.fixture(scope="module", params=ClientSettings().architectures)
def architecture(request: pytest.FixtureRequest) -> str:
    """The default fleet's."""
    return str(request.param)


@pytest.fixture(scope="module")
def classifier(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """The classifier."""
    model = build(architecture, SHAPE, latent=LATENT, classes=CLASSES, seed=0).eval()
    feeds = _images(2, 1), _images(64, 2)
    folder = tmp_path_factory.mktemp(architecture)
    return _exported(ClassifierGraph(model), *feeds, folder, "logits")


@pytest.fixture(scope="module")
def pixels(batch: int) -> Feed:
    """Pixels, as a camera has them."""
    return _images(batch, 0)


class TestClassifier:
    """Pixels to logits."""

    @pytest.fixture
    def group(self, architecture: str, batch: int) -> str:
        """A group per architecture and batch."""
        return f"classifier inference, {architecture}, batch {batch}"

    @pytest.mark.floor
    def test_torch(self, benchmark: BenchmarkFixture, classifier: Networks, pixels: Feed) -> None:
        """Eager, on scaled float32 images that are ready: nothing but the network."""
        images = torch.from_numpy(pixels["images"])
        ready = images.permute(0, 3, 1, 2).float().div(255.0).contiguous()
        with torch.inference_mode():
            assert benchmark(classifier.graph.model, ready).shape == (len(images), CLASSES)

    def test_onnxruntime(
        self, benchmark: BenchmarkFixture, classifier: Networks, pixels: Feed
    ) -> None:
        """The exported graph, from pixels; scaling is in it."""
        logits = benchmark(classifier.fp32, pixels)
        np.testing.assert_allclose(logits, _torch(classifier.graph, pixels), rtol=1e-4, atol=1e-5)

    def test_onnxruntime_int8(
        self, benchmark: BenchmarkFixture, classifier: Networks, pixels: Feed
    ) -> None:
        """The same in eight bits."""
        logits, expected = benchmark(classifier.int8, pixels), _torch(classifier.graph, pixels)
        assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.95


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """The decoder."""
    graph = SynthesizerGraph(vtc.build(SHAPE, latent=LATENT, seed=0)).eval()
    folder = tmp_path_factory.mktemp("decoder")
    return _exported(graph, _latents(2, 1), _latents(64, 2), folder, "images", _STATISTICS)


@pytest.fixture(scope="module")
def latents(batch: int) -> Feed:
    """Labels, the statistics and noise."""
    return _latents(batch, 0)


class TestDecoder:
    """Labels and noise to images."""

    @pytest.fixture
    def group(self, batch: int) -> str:
        """A group per batch."""
        return f"decoder inference, batch {batch}"

    @pytest.mark.floor
    def test_torch(self, benchmark: BenchmarkFixture, decoder: Networks, latents: Feed) -> None:
        """Eager, on latents that are ready: nothing but the decoder."""
        labels = latents["labels"]
        ready = torch.from_numpy(
            latents["means"][labels] + latents["stds"][labels] * latents["noise"]
        )
        with torch.inference_mode():
            images = benchmark(decoder.graph.decoder, ready)
        assert images.shape == (len(labels), SHAPE.channels, SHAPE.size, SHAPE.size)

    def test_onnxruntime(
        self, benchmark: BenchmarkFixture, decoder: Networks, latents: Feed
    ) -> None:
        """The exported graph, from labels and noise; sampling and rounding are in it."""
        apart = np.abs(benchmark(decoder.fp32, latents) - _torch(decoder.graph.levels, latents))
        assert apart.max() < 0.51  # rounding, and a tie that fell the other way

    def test_onnxruntime_int8(
        self, benchmark: BenchmarkFixture, decoder: Networks, latents: Feed
    ) -> None:
        """The same in eight bits, as far as onnxruntime has integer operators for it."""
        apart = np.abs(benchmark(decoder.int8, latents) - _torch(decoder.graph.levels, latents))
        assert apart.mean() < 2


_STATISTICS = ("means", "stds")


def _exported(
    graph: Any,
    example: Feed,
    calibration: Feed,
    folder: Path,
    output: str,
    fixed: Collection[str] = (),
) -> Networks:
    fp32, int8 = folder / "graph.onnx", folder / "graph.int8.onnx"
    inputs = {name: torch.from_numpy(value) for name, value in example.items()}
    convert(graph, inputs, fp32, output=output, fixed=fixed)
    quantize(fp32, int8, [calibration])
    sessions = [Session(path.read_bytes(), name=path.name, folder=folder) for path in (fp32, int8)]
    return Networks(graph, *sessions)


def _images(count: int, seed: int) -> Feed:
    shape = (count, SHAPE.size, SHAPE.size, SHAPE.channels)
    return {"images": np.random.default_rng(seed).integers(0, 256, shape, np.uint8)}


def _latents(count: int, seed: int) -> Feed:
    means = class_codes(CLASSES, LATENT).astype(np.float32)
    return {
        "labels": np.arange(count, dtype=np.int64) % CLASSES,
        "means": means,
        "stds": np.full_like(means, CODE_STD),
        "noise": draw(seed, count, LATENT),
    }


def _torch(graph: Any, feed: Feed) -> NDArray[np.float32]:
    with torch.inference_mode():
        result: NDArray[np.float32] = graph(*map(torch.from_numpy, feed.values())).numpy()
    return result
