"""int8 variants: smaller, the same every time, silent, and as calibrated."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fedvtc_edge.export import graphs
from fedvtc_edge.export.graphs import OPSET, ClassifierGraph, convert, quantize, write
from fedvtc_edge.export.runtime import Session
from fedvtc_edge.models import ImageShape, build


def images(count: int, top: int = 256, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, top, (count, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp32") / "classifier.onnx"
    model = build("resnet8", ImageShape(8, 1), latent=8, classes=4, seed=1)
    example = {"images": torch.from_numpy(images(2))}
    convert(ClassifierGraph(model), example, path, output="logits")
    return path


def feeds(top: int = 256) -> list[dict[str, Any]]:
    return [{"images": images(16, top, seed)} for seed in range(3)]


def test_small_close_and_of_any_batch(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "classifier.int8.onnx"
    written = quantize(source, target, feeds())
    assert (
        [path.name for path in tmp_path.iterdir()] == ["classifier.int8.onnx"] == [*written.files]
    )
    assert written.opset == OPSET
    assert target.stat().st_size < 0.5 * source.stat().st_size
    whole, small = (Session(path.read_bytes(), name="x") for path in (source, target))
    assert (small.inputs, small.outputs) == (whole.inputs, whole.outputs)
    for count in (1, 2, 33):
        batch = {"images": images(count, seed=9)}
        expected = whole(batch)
        assert np.abs(small(batch) - expected).max() < 0.25 * np.abs(expected).max()
        assert (small(batch) != expected).any()


def test_the_same_images_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    found = []
    for name, top in (("a", 256), ("b", 256), ("c", 64)):
        quantize(source, tmp_path / name, feeds(top))
        found.append((tmp_path / name).read_bytes())
    assert found[0] == found[1]
    assert found[0] != found[2], "ranges are those of the calibration images"


def test_weights_are_integers_and_normalisations_are_not(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "x", feeds())
    graph = onnx.load(tmp_path / "x").graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    for node in graph.node:
        came = [made_by.get(name) for name in node.input]
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            assert came[:2] == ["DequantizeLinear"] * 2, node.op_type
        if node.op_type == "InstanceNormalization":
            assert "DequantizeLinear" not in came[1:]
    kinds = {numpy_helper.to_array(value).dtype for value in graph.initializer}
    assert np.dtype(np.int8) in kinds


def test_a_large_graph_with_weights_beside_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(graphs, "EXTERNAL_BYTES", 100_000)
        written = write(onnx.load(source), tmp_path / "large.onnx")
        assert len(written.files) == 2
    quantize(tmp_path / "large.onnx", tmp_path / "large.int8.onnx", feeds())
    quantize(source, tmp_path / "small.int8.onnx", feeds())
    large, small = (tmp_path / f"{name}.int8.onnx" for name in ("large", "small"))
    assert large.read_bytes() == small.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(graphs, "EXTERNAL_BYTES", 10_000)
        both = quantize(source, tmp_path / "x.int8.onnx", feeds()).files
    assert both == ("x.int8.onnx", "x.int8.onnx.data")
    session = Session((tmp_path / both[0]).read_bytes(), name=both[0], folder=tmp_path)
    batch = {"images": images(3)}
    assert np.array_equal(session(batch), Session(small.read_bytes(), name="x")(batch))


def test_it_says_nothing_and_leaves_logging_as_it_was(
    source: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = logging.root.manager.disable
    with caplog.at_level(logging.INFO):
        quantize(source, tmp_path / "x", feeds())
        assert not caplog.records
        with pytest.raises(Exception, match="no_such"):
            quantize(tmp_path / "no_such.onnx", tmp_path / "y", feeds())
        assert logging.root.manager.disable == before
        logging.warning("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]
    assert capfd.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
