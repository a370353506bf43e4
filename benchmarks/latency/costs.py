"""Costs of one inference, node by node: arithmetic and bytes.

Counted on the graph as it was exported. onnxruntime changes little of it: it fuses an
activation into the convolution or product before it, and computes constants once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from fedvtc_edge.errors import BundleError, MissingExtra

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
    """Arithmetic and traffic of one node.

    Args:
        operator: ONNX name of the operator.
        bytes: Bytes read and written: inputs (weights included), outputs, work space.
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


_LARGEST_MODEL, _LONGEST_LIST = 1 << 30, 1 << 20
_INTEGER = ("Quantize", "QLinear", "Integer")
_HINT = "give a float32 graph that fedvtc-edge exported"


@dataclass(frozen=True)
class Value:
    """An array that a graph reads, hands on or writes, its elements of ``width`` bytes."""

    shape: tuple[int, ...]
    width: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.width


def inferred(model: bytes, batch: int) -> onnx.ModelProto:
    """Read a graph, set its batch and infer all shapes.

    Raises:
        MissingExtra: The ``onnx`` package is not installed.
        BundleError: No ONNX graph, or one that is not modelled.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"modelling a graph needs {error.name}, which is not installed",
            hint="pip install 'fedvtc-edge[train]'",
        ) from None
    if len(model) > _LARGEST_MODEL:
        _refuse(f"a graph of {len(model)} bytes, expected at most {_LARGEST_MODEL}")
    try:
        parsed = onnx.load_model_from_string(model)
    except Exception as error:  # protobuf's own class, which ships without types
        raise BundleError(f"{len(model)} bytes that are no ONNX graph", hint=_HINT) from error
    if not parsed.graph.node or not parsed.opset_import:
        _refuse("an ONNX graph without nodes or without an opset")
    _check_operators(parsed.graph)
    _fix_batch(parsed.graph, batch)
    _count_ranges(parsed.graph)
    _check_lists(_infer(parsed, follow=False).graph)
    return _infer(parsed, follow=True)


def _infer(model: onnx.ModelProto, *, follow: bool) -> onnx.ModelProto:
    """Infer shapes; with ``follow`` also those that are computed inside the graph."""
    from onnx.shape_inference import infer_shapes

    try:
        return infer_shapes(model, check_type=True, strict_mode=True, data_prop=follow)
    except Exception as error:  # onnx raises its own classes, ValueError and RuntimeError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BundleError(f"shapes do not follow: {reason:.200}", hint=_HINT) from error


def _check_lists(graph: onnx.GraphProto) -> None:
    """ONNX follows computed shapes by spelling one-dimensional values out: it would fill memory."""
    for value in (*graph.input, *graph.value_info, *graph.output):
        axes = value.type.tensor_type.shape.dim
        if len(axes) == 1 and axes[0].dim_value > _LONGEST_LIST:
            _refuse(
                f"{value.name!r}: a list of {axes[0].dim_value} values, "
                f"expected at most {_LONGEST_LIST}"
            )


def values_of(graph: onnx.GraphProto) -> dict[str, Value]:
    """Every value of an inferred graph by its name.

    Raises:
        BundleError: A shape is not known.
    """
    values = {}
    for tensor in graph.initializer:
        values[tensor.name] = _value(tensor.name, tensor.dims, tensor.data_type)
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(axis.HasField("dim_value") for axis in kind.shape.dim):
            axes = [axis.dim_value for axis in kind.shape.dim]
            values[value.name] = _value(value.name, axes, kind.elem_type)
    for node in graph.node:
        for name in (*node.input, *node.output):
            if name and name not in values:
                _refuse(f"{node.op_type}: the shape of {name!r} depends on data")
    return values


def _value(name: str, axes: Iterable[int], kind: int) -> Value:
    from onnx.helper import tensor_dtype_to_np_dtype

    shape = tuple(axes)
    try:
        width = tensor_dtype_to_np_dtype(kind).itemsize
    except KeyError:
        _refuse(f"{name!r} is of type {kind}, which ONNX does not have")
    if any(axis < 0 for axis in shape):
        _refuse(f"{name!r} has the shape {list(shape)}, expected no negative axes")
    return Value(shape, width)


def _check_operators(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        # What is no UTF-8 comes as bytes.
        if not all(isinstance(text, str) for text in (node.op_type, *node.input, *node.output)):
            _refuse("a node with a name that is no text")
        if any(word in node.op_type for word in _INTEGER):
            _refuse(f"{node.op_type}: int8 graphs are not modelled")
        if node.domain not in ("", "ai.onnx"):
            _refuse(f"{node.op_type} of the domain {node.domain!r} is not modelled")
        if any(item.HasField("g") or item.graphs for item in node.attribute):
            _refuse(f"{node.op_type}: branches and loops are not modelled")


def _fix_batch(graph: onnx.GraphProto, batch: int) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in weights:
            continue
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.HasField("dim_value"):
                continue
            if axis:
                _refuse(f"input {value.name!r}: axis {axis} is open, expected only the batch to be")
            dimension.dim_value = batch
    for value in graph.output:  # says "N", which would contradict the number
        value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]


def _count_ranges(graph: onnx.GraphProto) -> None:
    """Let shapes follow through Range(0, n, 1), as exporters write for the batch's indices.

    ONNX infers the length of ConstantOfShape from a computed n, but not that of Range.
    What matters here is the length alone.
    """
    from onnx import TensorProto, helper, numpy_helper

    known = {t.name: t for t in graph.initializer if not t.dims and not t.external_data}
    nodes = list(graph.node)
    del graph.node[:]
    for number, node in enumerate(nodes):
        if node.op_type == "Range":
            start, end, step = node.input
            fixed = [known[name] for name in (start, step) if name in known]
            if [int(numpy_helper.to_array(value)) for value in fixed] == [0, 1]:
                axes, length = f"range axes {number}", f"range length {number}"
                graph.initializer.append(helper.make_tensor(axes, TensorProto.INT64, [1], [0]))
                zero = helper.make_tensor("", TensorProto.INT64, [1], [0])
                graph.node.append(helper.make_node("Unsqueeze", [end, axes], [length]))
                node = helper.make_node("ConstantOfShape", [length], node.output, value=zero)
        graph.node.append(node)


def _refuse(problem: str) -> NoReturn:
    raise BundleError(problem, hint=_HINT)
