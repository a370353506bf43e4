"""Rules that an ONNX graph must keep before any runtime sees it.

A graph is a program, and whoever wrote it need not be trusted. Allowed are operators that compute
numbers from numbers in one pass; refused are branches, loops, functions and operators of other
domains, and weights in any file but the one that is expected. Read by protobuf's wire format alone,
so that a device needs no package for it; what stands there twice is held to the rules twice, since
readers differ in which of two they take.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

LOCATION = "location"
"""Key of a tensor's external data under which its file stands."""

MOST_PARTS = 200_000
"""Nodes and tensors of a graph; the largest networks that fit a device have some thousands."""

_ARITHMETIC = """
Abs Acos Add And Asin Atan Celu Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater
GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log LogSoftmax Max
Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softmax
Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
"""
_LAYERS = """
Attention AveragePool BatchNormalization Conv ConvInteger ConvTranspose DeformConv Dropout
Einsum Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample GroupNormalization
InstanceNormalization LayerNormalization LRN LpNormalization LpPool MatMul MatMulInteger MaxPool
MeanVarianceNormalization QLinearConv QLinearMatMul RMSNormalization Resize RotaryEmbedding
Upsample
"""
_REDUCTIONS = """
ArgMax ArgMin CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
ReduceMin ReduceProd ReduceSum ReduceSumSquare TopK
"""
_SHAPES = """
AffineGrid Cast CastLike CenterCropPad Col2Im Compress Concat Constant ConstantOfShape
DepthToSpace DequantizeLinear DynamicQuantizeLinear Expand EyeLike Flatten Gather GatherElements
GatherND Identity NonZero OneHot Pad QuantizeLinear Range Reshape ScatterElements ScatterND
Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze
"""
OPERATORS = frozenset((_ARITHMETIC + _LAYERS + _REDUCTIONS + _SHAPES).split())
"""Operators of ONNX that compute numbers from numbers, in one pass and without chance."""

DOMAINS = ("", "ai.onnx")
"""Both are names of ONNX's own operators."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Numbers of fields, as onnx.proto gives them.
_GRAPH, _TRAINING, _FUNCTIONS = 7, 20, 25
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15
_OP_TYPE, _ATTRIBUTE, _DOMAIN = 4, 5, 7
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _SPARSE_ONE, _SPARSE_MANY = 5, 6, 10, 11, 22, 23
_EXTERNAL, _PLACE = 13, 14


class GraphError(ValueError):
    """A graph that keeps not to the rules, or bytes that are none."""


def check_graph(data: bytes, *, beside: Collection[str] = ()) -> None:
    """Refuse a graph that could do more than compute.

    Args:
        data: Content of an ONNX file.
        beside: Names of files that its weights may lie in; none: all are in the graph.

    Raises:
        GraphError: It breaks a rule; the message says which, on one line.
    """
    graphs = []
    for number, value in _fields(memoryview(data)):
        if number in (_FUNCTIONS, _TRAINING):
            raise GraphError("functions or training graphs of its own")
        if number == _GRAPH:
            graphs.append(_message(value))
    if not graphs:
        raise GraphError("no graph in it")
    parts = 0
    for graph in graphs:
        for number, value in _fields(graph):
            parts += 1
            if parts > MOST_PARTS:
                raise GraphError(f"more than {MOST_PARTS} parts")
            if number == _NODE:
                _check_node(_message(value))
            elif number == _INITIALIZER:
                _check_tensor(_message(value), beside)
            elif number == _SPARSE:
                _check_sparse(_message(value))


def _check_node(node: memoryview) -> None:
    named = False
    for number, value in _fields(node):
        if number == _DOMAIN and _text(value) not in DOMAINS:
            raise GraphError(f"an operator of the domain {_shown(value)}")
        if number == _OP_TYPE:
            named = True
            if _text(value) not in OPERATORS:
                raise GraphError(f"operator {_shown(value)}, which is not allowed")
        elif number == _ATTRIBUTE:
            _check_attribute(_message(value))
    if not named:
        raise GraphError("a node without an operator")


def _check_attribute(attribute: memoryview) -> None:
    for number, value in _fields(attribute):
        if number in (_SUBGRAPH, _SUBGRAPHS):
            raise GraphError("a graph within a node: branches and loops are not allowed")
        if number in (_TENSOR, _TENSORS):
            _check_tensor(_message(value), ())
        elif number in (_SPARSE_ONE, _SPARSE_MANY):
            _check_sparse(_message(value))


def _check_sparse(tensor: memoryview) -> None:
    """Values and indices, fields 1 and 2, are tensors of their own."""
    for number, value in _fields(tensor):
        if number in (1, 2):
            _check_tensor(_message(value), ())


def _check_tensor(tensor: memoryview, beside: Collection[str]) -> None:
    outside, places = False, []
    for number, value in _fields(tensor):
        if number == _PLACE:
            outside = outside or value != 0
        elif number == _EXTERNAL:
            outside = True
            entry = [(n, _text(v)) for n, v in _fields(_message(value))]
            if (1, LOCATION) in entry:
                places += [text for n, text in entry if n == 2]
    if not outside:
        return
    strange = [place for place in places if place not in beside]
    if strange or not places:
        where = ascii(strange[0][:80]) if strange else "no file"
        raise GraphError(f"weights in another file: {where}")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Numbers and values of a message's fields; of fixed-width ones the value is 0."""
    place, end = 0, len(data)
    while place < end:
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        value: memoryview | int = 0
        if kind == _VARINT:
            value, place = _varint(data, place)
        elif kind == _BYTES:
            length, place = _varint(data, place)
            value = data[place : place + length]
            place += length
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise GraphError("no ONNX model")
        if place > end or number == 0:
            raise GraphError("no ONNX model, or one that was cut off")
        yield number, value


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise GraphError("no ONNX model, or one that was cut off")


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise GraphError("no ONNX model: a number where a message belongs")
    return value


def _text(value: memoryview | int) -> str:
    return bytes(_message(value)).decode("utf-8", "backslashreplace")


def _shown(value: memoryview | int) -> str:
    return ascii(_text(value)[:80])
