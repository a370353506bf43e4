"""Graphs of somebody's own: what runs, and what is refused before or while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.models.onnx_network import OnnxNetwork

DRAW = np.random.default_rng(0)
WEIGHTS = DRAW.standard_normal((3, 7)).astype(np.float32)


def graph(
    shape: list[Any] | None = None,
    *,
    weights: np.ndarray = WEIGHTS,
    kind: int = TensorProto.FLOAT,
    flat: bool = True,
    domain: str = "",
    inputs: int = 1,
) -> onnx.ModelProto:
    """Mean colour of each image times a matrix: the smallest extractor there is."""
    numbers = weights.astype(np.float16 if kind == TensorProto.FLOAT16 else np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul" if not domain else "Mine", ["f", "w"], ["y"], domain=domain),
    ]
    ports = [helper.make_tensor_value_info("x", kind, shape or ["N", 3, "H", "W"])]
    if inputs == 2:
        ports.append(helper.make_tensor_value_info("z", kind, [1]))
    out = "y" if flat else "p"
    body = helper.make_graph(
        nodes if flat else nodes[:1],
        "g",
        ports,
        [helper.make_tensor_value_info(out, kind, None)],
        [numpy_helper.from_array(numbers, "w")] if flat else [],
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(body, opset_imports=opsets, ir_version=8)


def images(count: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_features_are_what_the_graph_says() -> None:
    network, x = OnnxNetwork(graph().SerializeToString(), "g.onnx"), images(5)
    expected = x.mean((2, 3)).numpy() @ WEIGHTS
    np.testing.assert_allclose(network(x).numpy(), expected, atol=1e-5)
    assert network.resolution is None


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_fixed_batch_is_worked_through_in_its_own_pieces(batch: int, count: int) -> None:
    network = OnnxNetwork(graph([batch, 3, 16, 16]).SerializeToString(), "g.onnx")
    x = images(count)
    np.testing.assert_allclose(network(x).numpy(), x.mean((2, 3)).numpy() @ WEIGHTS, atol=1e-5)
    assert network.resolution == 16


def test_the_same_bits_each_time_and_in_a_copy() -> None:
    import copy

    network, x = OnnxNetwork(graph().SerializeToString(), "g.onnx"), images(8)
    first = network(x)
    assert torch.equal(first, network(x))
    assert torch.equal(first, copy.deepcopy(network)(x))
    threads = network.session.get_session_options()
    assert (threads.intra_op_num_threads, threads.inter_op_num_threads) == (1, 1)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (graph(["N", 1, 16, 16], weights=WEIGHTS[:1]), "takes images of 1 channels"),
        (graph(["N", 3, 16, 24]), "takes images of 16 × 24 px"),
        (graph(["N", 3, 513, 513]), "takes images of 513 × 513 px"),
        (graph(kind=TensorProto.FLOAT16), "float16"),
        (graph(inputs=2), "takes"),
        (graph(domain="com.mine"), "refused: operator 'Mine'"),
    ],
)
def test_what_takes_other_images_is_refused(model: onnx.ModelProto, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OnnxNetwork(model.SerializeToString(), "g.onnx")


@pytest.mark.parametrize("data", [b"", b"no protobuf at all", b"\x00" * 100])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"g\.onnx is refused: no"):
        OnnxNetwork(data, "g.onnx")


def test_weights_in_another_file_are_refused_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the working directory must not become a part of what was hashed."""
    monkeypatch.chdir(tmp_path)
    model = graph(weights=np.ones((3, 500), np.float32))
    onnx.save(model, "g.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    data = Path("g.onnx").read_bytes()
    assert Path("w.bin").is_file()
    with pytest.raises(ConfigError, match="in another file") as caught:
        OnnxNetwork(data, "g.onnx")
    assert "save_as_external_data" in caught.value.hint
    inside = onnx.load_model_from_string(data).graph.initializer[0]
    hidden = graph()  # not an initializer but a constant of a node
    hidden.graph.node.append(helper.make_node("Constant", [], ["c"], value=inside))
    with pytest.raises(ConfigError, match="in another file"):
        OnnxNetwork(hidden.SerializeToString(), "g.onnx")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused(bad: float) -> None:
    weights = WEIGHTS.copy()
    weights[0, 0] = bad
    network = OnnxNetwork(graph(weights=weights).SerializeToString(), "g.onnx")
    with pytest.raises(ConfigError, match="not finite"):
        network(images(2))


def test_features_of_another_rank_are_refused() -> None:
    network = OnnxNetwork(graph(flat=False).SerializeToString(), "g.onnx")
    with pytest.raises(ConfigError, match=r"gives \[2, 3, 1, 1\]"):
        network(images(2))


def test_images_of_another_size_than_a_fixed_one_are_refused() -> None:
    network = OnnxNetwork(graph(["N", 3, 16, 16]).SerializeToString(), "g.onnx")
    with pytest.raises(ConfigError, match="fails on images"):
        network(images(2, size=20))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_anchor_of_a_file(tmp_path: Path, channels: int) -> None:
    """Grey images are given as colour ones, all of them in the size that the graph asks for."""
    path = tmp_path / "mine.onnx"
    path.write_bytes(graph(["N", 3, 16, 16]).SerializeToString())
    anchor = Anchor(ImageShape(20, channels), 4, 0, str(path))
    x = images(3, size=20)[:, :channels]
    out = anchor(x)
    assert out.shape == (3, 4)
    np.testing.assert_allclose(out.norm(dim=1).numpy(), 2.0, rtol=1e-5)
    if channels == 1:
        torch.testing.assert_close(
            out, Anchor(ImageShape(20, 3), 4, 0, str(path))(x.expand(-1, 3, -1, -1))
        )
    assert not anchor.matches


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path, shape = tmp_path / "mine.onnx", ImageShape(16, 3)
    path.write_bytes(graph().SerializeToString())
    before = Anchor(shape, 4, 0, str(path)).sha256
    assert before == Anchor(shape, 4, 0, str(path)).sha256
    path.write_bytes(graph(weights=-WEIGHTS[:, :6]).SerializeToString())
    assert Anchor(shape, 4, 0, str(path)).sha256 != before


def test_a_path_without_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        Anchor(ImageShape(16, 3), 4, 0, str(tmp_path / "none.onnx"))
