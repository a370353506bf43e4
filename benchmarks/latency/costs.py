"""What one inference asks of a device, node by node: arithmetic and bytes.

Counted on the graph as it was exported. onnxruntime changes little of it: it fuses an
activation into the convolution or product before it, and computes constants once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedvtc_edge.benchmarks.latency.shapes import Value, inferred, values_of
from fedvtc_edge.errors import BundleError

if TYPE_CHECKING:
    import onnx

LARGEST_BATCH = 1 << 16

_FOLDED = {"Constant", "Identity"}
"""Computed when the graph is loaded, or never."""

_VIEWS = {"Flatten", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze"}
"""Hand on the same memory, or look at no more than its shape: a call and no work."""

_MOVES = {
    *("Cast", "Concat", "DepthToSpace", "Expand", "Gather", "GatherElements", "GatherND"),
    *("Pad", "Resize", "Slice", "SpaceToDepth", "Split", "Tile", "Transpose"),
}
"""Bytes and no arithmetic."""

_FUSED = {"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"}
_FUSED_INTO = {"Conv", "Gemm"}

_DEAR = {
    *("BatchNormalization", "GroupNormalization", "InstanceNormalization"),
    *("LayerNormalization", "LpNormalization", "RMSNormalization"),
    *("Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Log", "LogSoftmax", "Mish"),
    *("Pow", "Selu", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Tanh"),
}
_DEAR_FLOPS = 8
"""Of each element of a normalisation or a transcendental function; of others one."""

_TWICE = {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "Softmax"}
"""Read their input once for its moments (or its maximum) and once more to scale it."""


@dataclass(frozen=True)
class NodeCost:
    """What one node asks for.

    Args:
        operator: ONNX name of the operator.
        flops: Floating-point operations; a multiply-add is two.
        bytes: Read and written: inputs (weights included), outputs, work space.
    """

    operator: str
    flops: float
    bytes: float


def node_costs(model: bytes, *, batch: int) -> tuple[NodeCost, ...]:
    """The nodes that a runtime executes for one inference of ``batch`` samples.

    Args:
        model: Content of an ONNX file. Weights that lie beside it are not needed.
        batch: Takes the place of every first axis that the graph leaves open.

    Returns:
        In the graph's order. Constants and fused activations are left out; a reshape
        is a node without work, for it costs a call.

    Raises:
        MissingExtra: The ``onnx`` package is not installed.
        BundleError: A batch out of range; no ONNX graph; or one that is not modelled:
            int8, other domains, branches and loops, shapes that depend on data.
    """
    if not 1 <= batch <= LARGEST_BATCH:
        raise BundleError(
            f"a batch of {batch}, expected 1 to {LARGEST_BATCH}", hint="give another batch"
        )
    graph = inferred(model, batch).graph
    return tuple(_costs(graph, values_of(graph)))


def _costs(graph: onnx.GraphProto, values: dict[str, Value]) -> Iterator[NodeCost]:
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    producer = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        operator, first = node.op_type, node.input[0] if node.input else ""
        fused = producer.get(first) in _FUSED_INTO and readers[first] == 1
        if operator in _FOLDED or (operator in _FUSED and fused):
            continue
        inputs = [values[name] for name in node.input if name]
        outputs = [values[name] for name in node.output if name]
        if operator in _VIEWS or not outputs:
            yield NodeCost(operator, 0.0, 0.0)
            continue
        traffic = sum(value.bytes for value in (*inputs, *outputs))
        if operator in _TWICE:
            traffic += inputs[0].bytes
        if operator == "ConvTranspose":  # a product into columns, which are then added up
            channels, *columns = inputs[1].shape
            traffic += 2 * inputs[0].bytes // max(channels, 1) * math.prod(columns)
        yield NodeCost(operator, float(_flops(node, inputs, outputs[0])), float(traffic))


def _flops(node: onnx.NodeProto, inputs: list[Value], output: Value) -> int:
    attributes = {item.name: item for item in node.attribute}
    out: int = output.size
    given: int = inputs[0].size if inputs else 0
    weight: tuple[int, ...] = inputs[1].shape if len(inputs) > 1 else ()
    match node.op_type:
        case "Conv":  # weight [Cout, Cin / groups, *kernel]
            return 2 * out * math.prod(weight[1:])
        case "ConvTranspose":  # weight [Cin, Cout / groups, *kernel]
            return 2 * given * math.prod(weight[1:])
        case "Gemm":
            rows, columns = inputs[0].shape
            transposed = "transA" in attributes and attributes["transA"].i
            return 2 * out * int(rows if transposed else columns)
        case "MatMul":
            return 2 * out * int(inputs[0].shape[-1])
        case "MaxPool" | "AveragePool" | "LpPool":
            window: list[int] = list(attributes["kernel_shape"].ints)
            return out * math.prod(window)
        case operator if operator in _MOVES:
            return 0
        case operator if operator in _DEAR:
            return _DEAR_FLOPS * out
    # Elementwise: one per output. Reductions and global pools: one per input.
    return max(out, given)
