"""Painting on a device, in onnxruntime as exported, beside the decoder in torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from fedvtc_edge.export.graphs import SynthesizerGraph, convert
from fedvtc_edge.export.inputs import draw
from fedvtc_edge.export.quantization import quantize
from fedvtc_edge.export.runtime import Session
from fedvtc_edge.models import ImageShape, vtc
from fedvtc_edge.training.knowledge import CODE_STD, class_codes

SHAPE, LATENT, CLASSES = ImageShape(8, 1), 64, 10
Feed = dict[str, NDArray[Any]]


class Painters(NamedTuple):
    """One decoder, three times.

    Args:
        graph: In torch.
        fp32: As exported.
        int8: As exported, quantised.
    """

    graph: SynthesizerGraph
    fp32: Session
    int8: Session


@pytest.fixture(scope="module", params=[1, 32])
def batch(request: pytest.FixtureRequest) -> int:
    """Images per call: one, and as many as a bundle paints at once."""
    return int(request.param)


@pytest.fixture
def group(batch: int) -> str:
    """A group per batch."""
    return f"decoder inference, batch {batch}"


@pytest.fixture(scope="module")
def painters(tmp_path_factory: pytest.TempPathFactory) -> Painters:
    """Untrained: weights change no time."""
    folder = tmp_path_factory.mktemp("decoder")
    graph = SynthesizerGraph(vtc.build(SHAPE, latent=LATENT, seed=0)).eval()
    fp32, int8 = folder / "synthesizer.onnx", folder / "synthesizer.int8.onnx"
    example = {name: torch.from_numpy(value) for name, value in _feed(2, 1).items()}
    convert(graph, example, fp32, output="images", fixed=("means", "stds"))
    quantize(fp32, int8, [_feed(64, 2)])
    sessions = [Session(path.read_bytes(), name=path.name, folder=folder) for path in (fp32, int8)]
    return Painters(graph, *sessions)


@pytest.fixture(scope="module")
def feed(batch: int) -> Feed:
    """Labels, the statistics and noise."""
    return _feed(batch, 0)


@pytest.mark.floor
def test_torch(benchmark: BenchmarkFixture, painters: Painters, feed: Feed) -> None:
    """Eager, on latents that are ready: nothing but the decoder."""
    labels = feed["labels"]
    latents = torch.from_numpy(feed["means"][labels] + feed["stds"][labels] * feed["noise"])
    with torch.inference_mode():
        painted = benchmark(painters.graph.decoder, latents)
    assert painted.shape == (len(labels), SHAPE.channels, SHAPE.size, SHAPE.size)


def test_onnxruntime(benchmark: BenchmarkFixture, painters: Painters, feed: Feed) -> None:
    """The exported graph, from labels and noise to pixels; sampling and rounding are in it."""
    apart = np.abs(benchmark(painters.fp32, feed) - _levels(painters, feed))
    assert apart.max() < 0.51  # rounding, and a tie that fell the other way


def test_onnxruntime_int8(benchmark: BenchmarkFixture, painters: Painters, feed: Feed) -> None:
    """The same in eight bits, as far as onnxruntime has integer operators for it."""
    apart = np.abs(benchmark(painters.int8, feed) - _levels(painters, feed))
    assert apart.mean() < 2


def _feed(count: int, seed: int) -> Feed:
    means = class_codes(CLASSES, LATENT).astype(np.float32)
    return {
        "labels": np.arange(count, dtype=np.int64) % CLASSES,
        "means": means,
        "stds": np.full_like(means, CODE_STD),
        "noise": draw(seed, count, LATENT),
    }


def _levels(painters: Painters, feed: Feed) -> NDArray[np.float32]:
    with torch.inference_mode():
        levels = painters.graph.levels(*(torch.from_numpy(value) for value in feed.values()))
    result: NDArray[np.float32] = levels.numpy()
    return result
