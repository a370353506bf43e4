"""Graphs of somebody else: what computes in one pass is let in, and nothing that does more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from fedvtc_edge import graph_rules
from fedvtc_edge.graph_rules import OPERATORS, GraphError, check_graph

Change = Callable[[onnx.ModelProto], object]


def model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """Input times a matrix, and further nodes."""
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.ones((4, 3), np.float32), "w")],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def outside(tensor: onnx.TensorProto, *locations: str) -> onnx.TensorProto:
    tensor.data_location = TensorProto.EXTERNAL
    for location in locations:
        tensor.external_data.add(key="location", value=location)
    return tensor


BRANCH = helper.make_graph([], "branch", [], [])
TENSOR = numpy_helper.from_array(np.ones(3, np.float32), "t")
FAR = outside(TensorProto(dims=[3], data_type=1, name="far"), "w.data")
NODES: dict[str, tuple[onnx.NodeProto, str]] = {
    "if": (helper.make_node("If", ["c"], ["z"], then_branch=BRANCH, else_branch=BRANCH), "'If'"),
    "loop": (helper.make_node("Loop", [], ["z"], body=BRANCH), "'Loop'"),
    "scan": (helper.make_node("Scan", [], ["z"], body=BRANCH, num_scan_inputs=1), "'Scan'"),
    "chance": (helper.make_node("RandomNormal", [], ["z"], shape=[3]), "'RandomNormal'"),
    "domain": (helper.make_node("Add", ["y", "y"], ["z"], domain="com.mine"), "'com.mine'"),
    "hidden branch": (helper.make_node("Add", ["y", "y"], ["z"], body=BRANCH), "within a node"),
    "branches": (helper.make_node("Add", ["y", "y"], ["z"], bodies=[BRANCH]), "within a node"),
    "constant": (helper.make_node("Constant", [], ["z"], value=FAR), "'w.data'"),
    "constants": (helper.make_node("Add", ["y", "y"], ["z"], t=[FAR]), "'w.data'"),
    "no operator": (onnx.NodeProto(output=["z"]), "without an operator"),
    "control": (helper.make_node("A\x1b[2J\n", [], ["z"]), r"'A\\x1b\[2J\\n'"),
}


def refused(data: bytes, words: str, beside: tuple[str, ...] = ()) -> None:
    with pytest.raises(GraphError, match=words) as caught:
        check_graph(data, beside=beside)
    assert str(caught.value).isprintable()


def test_what_computes_is_let_in() -> None:
    constant = helper.make_node("Constant", [], ["z"], value=TENSOR)
    check_graph(model(constant, helper.make_node("Relu", ["y"], ["r"])).SerializeToString())


def test_every_operator_that_is_allowed_exists() -> None:
    schemas = [one for one in onnx.defs.get_all_schemas_with_history() if not one.domain]
    later = {"Swish", "RotaryEmbedding", "Attention", "RMSNormalization"}  # than some onnx
    assert OPERATORS - {schema.name for schema in schemas} <= later
    kinds = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    subgraphs = {
        schema.name
        for schema in schemas
        if any(attribute.type in map(int, kinds) for attribute in schema.attributes.values())
    }
    assert "Loop" in subgraphs
    assert not OPERATORS & subgraphs


@pytest.mark.parametrize("kind", NODES)
def test_what_does_more_is_refused(kind: str) -> None:
    node, words = NODES[kind]
    refused(model(node).SerializeToString(), words, ("w.data",) if "constant" not in kind else ())


def test_functions_and_training_are_refused() -> None:
    own = helper.make_function("mine", "f", ["x"], ["y"], [], [helper.make_opsetid("", 20)])
    changed = model()
    changed.functions.append(own)
    refused(changed.SerializeToString(), "functions")
    changed = model()
    changed.training_info.add()
    refused(changed.SerializeToString(), "training")


@pytest.mark.parametrize(
    "locations", [("other.data",), ("../w.data",), ("/etc/passwd",), ("",), (), ("w.data", "x")]
)
def test_weights_lie_in_the_expected_file_or_inside(locations: tuple[str, ...]) -> None:
    changed = model()
    outside(changed.graph.initializer[0], *locations)
    refused(changed.SerializeToString(), "another file", ("w.data",))
    expected = model()
    outside(expected.graph.initializer[0], "w.data")
    check_graph(expected.SerializeToString(), beside=("w.data",))
    refused(expected.SerializeToString(), "another file: 'w.data'")


def test_weights_that_are_outside_without_saying_so_are_refused() -> None:
    """Some readers look at the entries, and some at the flag."""
    changed = model()
    changed.graph.initializer[0].external_data.add(key="location", value="x")
    refused(changed.SerializeToString(), "another file: 'x'")


def test_sparse_tensors_are_tensors() -> None:
    changed = model()
    sparse = changed.graph.sparse_initializer.add()
    sparse.values.CopyFrom(FAR)
    refused(changed.SerializeToString(), "another file")
    node = helper.make_node("Constant", [], ["z"])
    attribute = node.attribute.add(name="sparse_value", type=AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(sparse)
    refused(model(node).SerializeToString(), "another file")


def test_what_stands_there_twice_is_held_to_the_rules_twice() -> None:
    """Protobuf merges two messages of one field, and takes the last of two names."""
    clean, bad = model(), model(NODES["loop"][0])
    for data in (
        clean.SerializeToString() + bad.SerializeToString(),
        bad.SerializeToString() + clean.SerializeToString(),
    ):
        refused(data, "'Loop'")


def test_an_endless_list_of_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_rules, "MOST_PARTS", 3)
    refused(model(*[helper.make_node("Relu", ["y"], ["r"])] * 3).SerializeToString(), "parts")


@pytest.mark.parametrize("data", [b"", b"hello, no graph", b"\x00" * 40, b"\xff" * 40, b"\x3a\x05"])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    refused(data, "no (ONNX model|graph)")


@given(st.binary(max_size=200), st.integers(0, 60))
def test_any_bytes_are_read_or_refused(data: bytes, place: int) -> None:
    sound = model().SerializeToString()
    for one in (data, sound[:place] + data + sound[place:]):
        with suppress(GraphError):
            check_graph(one)


def test_what_is_exported_keeps_the_rules(exported: Path) -> None:
    files = sorted(exported.glob("*/*.onnx"))
    assert len(files) >= 10
    for path in files:
        check_graph(path.read_bytes(), beside=(f"{path.name}.data",))
