"""A classifier on a device, in onnxruntime as exported, beside the same network in torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from fedvtc_edge.config import ClientSettings
from fedvtc_edge.export.graphs import ClassifierGraph, convert
from fedvtc_edge.export.quantization import quantize
from fedvtc_edge.export.runtime import Session
from fedvtc_edge.models import Classifier, ImageShape, build

SHAPE, LATENT, CLASSES = ImageShape(8, 1), 64, 10
Images = NDArray[np.uint8]


class Networks(NamedTuple):
    """One network, three times.

    Args:
        model: In torch.
        fp32: As exported.
        int8: As exported, quantised.
    """

    model: Classifier
    fp32: Session
    int8: Session


@pytest.fixture(scope="module", params=ClientSettings().architectures)
def architecture(request: pytest.FixtureRequest) -> str:
    """The default fleet's."""
    return str(request.param)


@pytest.fixture(scope="module", params=[1, 32])
def batch(request: pytest.FixtureRequest) -> int:
    """Images per call: of a device, and as many as a bundle takes at once."""
    return int(request.param)


@pytest.fixture
def group(architecture: str, batch: int) -> str:
    """A group per architecture and batch."""
    return f"classifier inference, {architecture}, batch {batch}"


@pytest.fixture(scope="module")
def networks(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """Untrained: weights change no time."""
    folder = tmp_path_factory.mktemp(architecture)
    model = build(architecture, SHAPE, latent=LATENT, classes=CLASSES, seed=0).eval()
    fp32, int8 = folder / "classifier.onnx", folder / "classifier.int8.onnx"
    example = {"images": torch.from_numpy(_images(2, 1))}
    convert(ClassifierGraph(model), example, fp32, output="logits")
    quantize(fp32, int8, [{"images": _images(64, 2)}])
    sessions = [Session(path.read_bytes(), name=path.name, folder=folder) for path in (fp32, int8)]
    return Networks(model, *sessions)


@pytest.fixture(scope="module")
def images(batch: int) -> Images:
    """Pixels, as a camera has them."""
    return _images(batch, 0)


@pytest.mark.floor
def test_torch(benchmark: BenchmarkFixture, networks: Networks, images: Images) -> None:
    """Eager, on scaled float32 images that are ready: nothing but the network."""
    with torch.inference_mode():
        assert benchmark(networks.model, _scaled(images)).shape == (len(images), CLASSES)


def test_onnxruntime(benchmark: BenchmarkFixture, networks: Networks, images: Images) -> None:
    """The exported graph, from pixels; scaling is in it."""
    logits = benchmark(networks.fp32, {"images": images})
    np.testing.assert_allclose(logits, _expected(networks, images), rtol=1e-4, atol=1e-5)


def test_onnxruntime_int8(benchmark: BenchmarkFixture, networks: Networks, images: Images) -> None:
    """The same in eight bits."""
    logits = benchmark(networks.int8, {"images": images})
    expected = _expected(networks, images)
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.95


def _images(count: int, seed: int) -> Images:
    shape = (count, SHAPE.size, SHAPE.size, SHAPE.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _scaled(images: Images) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255.0).contiguous()


def _expected(networks: Networks, images: Images) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = networks.model(_scaled(images)).numpy()
    return logits
