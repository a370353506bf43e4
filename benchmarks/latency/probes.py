"""Makes the graphs that ``devices calibrate`` times: ``python -m …latency.probes FOLDER``.

They ship in ``fedvtc_edge/devices/probes``, so that a device needs no onnx package; a
test holds the files against this source. Weights are ConstantOfShape nodes, which the
runtime computes when it loads a graph: each file has a few kilobytes at most.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper

from fedvtc_edge.devices import calibration as sizes
from fedvtc_edge.export.graphs import PRODUCER
from fedvtc_edge.storage.atomic import write_atomic

_OPSET, _IR = 17, 8
"""Old on purpose: every onnxruntime that can be installed runs them."""


def probes() -> dict[str, bytes]:
    """The content of each probe by its file name; the same bytes every time."""
    graphs = {
        "product.onnx": _product(),
        "convolutions.onnx": _convolutions(),
        "traffic.onnx": _traffic(),
        "calls.onnx": _calls(),
    }
    return {name: model.SerializeToString(deterministic=True) for name, model in graphs.items()}


def _product() -> ModelProto:
    """One square matrix by another."""
    form = [sizes.SIDE, sizes.SIDE]
    node = helper.make_node("MatMul", ["x", "y"], ["out"])
    return _model([node], [_port("x", form), _port("y", form)], _port("out", form))


def _convolutions() -> ModelProto:
    """3 × 3 convolutions and ReLU of a small network: each pair halves the image once."""
    nodes, constants, last = [], [], "x"
    small = helper.make_tensor("", TensorProto.FLOAT, [1], [0.01])
    for number, (narrow, wide, stride) in enumerate(sizes.LAYERS):
        weight, inner, outer = (f"{kind}{number}" for kind in ("weight", "conv", "relu"))
        outer = "out" if number == len(sizes.LAYERS) - 1 else outer
        form = helper.make_tensor(f"form{number}", TensorProto.INT64, [4], [wide, narrow, 3, 3])
        constants.append(form)
        nodes += [
            helper.make_node("ConstantOfShape", [form.name], [weight], value=small),
            helper.make_node(
                "Conv", [last, weight], [inner], pads=[1, 1, 1, 1], strides=[stride, stride]
            ),
            helper.make_node("Relu", [inner], [outer]),
        ]
        last = outer
    narrow, side = sizes.LAYERS[0][0], sizes.IMAGE
    wide, end = sizes.LAYERS[-1][1], side // math.prod(layer[2] for layer in sizes.LAYERS)
    return _model(
        nodes, [_port("x", [1, narrow, side, side])], _port("out", [1, wide, end, end]), constants
    )


def _traffic() -> ModelProto:
    """An addition of arrays larger than caches."""
    form = [sizes.SIDE, sizes.ELEMENTS // sizes.SIDE]
    node = helper.make_node("Add", ["x", "y"], ["out"])
    return _model([node], [_port("x", form), _port("y", form)], _port("out", form))


def _calls() -> ModelProto:
    """Convolution, GroupNorm and ReLU as exporters write them, over and over on 32 numbers."""
    image, grouped, channels = [1, 8, 2, 2], [1, 2, 16], [8, 1, 1]
    constants = [
        helper.make_tensor("image", TensorProto.INT64, [4], image),
        helper.make_tensor("grouped", TensorProto.INT64, [3], grouped),
        helper.make_tensor("weight", TensorProto.FLOAT, [8, 8, 1, 1], [0.125] * 64),
        helper.make_tensor("one", TensorProto.FLOAT, [2], [1.0] * 2),
        helper.make_tensor("zero", TensorProto.FLOAT, [2], [0.0] * 2),
        helper.make_tensor("scale", TensorProto.FLOAT, channels, [1.5] * 8),
        helper.make_tensor("shift", TensorProto.FLOAT, channels, [0.5] * 8),
    ]
    steps = [
        ("Conv", "weight"),
        ("Reshape", "grouped"),
        ("InstanceNormalization", "one", "zero"),
        ("Reshape", "image"),
        ("Mul", "scale"),
        ("Add", "shift"),
        ("Relu",),
    ]
    names = ["x", *(f"v{number}" for number in range(1, sizes.CALLS)), "out"]
    nodes = [
        helper.make_node(operator, [names[number], *rest], [names[number + 1]])
        for number, (operator, *rest) in enumerate(steps * (sizes.CALLS // len(steps)))
    ]
    return _model(nodes, [_port("x", image)], _port("out", image), constants)


def _port(name: str, shape: list[int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(
    nodes: list[NodeProto],
    inputs: list[ValueInfoProto],
    output: ValueInfoProto,
    constants: Sequence[TensorProto] = (),
) -> ModelProto:
    graph = helper.make_graph(nodes, PRODUCER, inputs, [output], constants)
    opset = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=_IR, producer_name=PRODUCER)
    checker.check_model(model, full_check=True)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m fedvtc_edge.benchmarks.latency.probes``."""
    parser = argparse.ArgumentParser(
        prog="fedvtc_edge.benchmarks.latency.probes",
        description="Write the probe graphs of fedvtc-edge devices calibrate.",
    )
    parser.add_argument("folder", type=Path, help="where the files go")
    folder = parser.parse_args(arguments).folder
    for name, content in probes().items():
        write_atomic(folder / name, content)
        print(f"{folder / name}: {len(content)} bytes")


if __name__ == "__main__":
    main()
