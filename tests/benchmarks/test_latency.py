"""What nodes cost, and the model that is fitted to them."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fedvtc_edge.benchmarks.latency import (
    LEAST_GRAPHS,
    LatencyModel,
    NodeCost,
    Sample,
    fit,
    leave_one_out,
    node_costs,
)
from fedvtc_edge.devices import DeviceProfile
from fedvtc_edge.errors import BundleError, ConfigError, MissingExtra


def graph(
    *nodes: Any,
    inputs: dict[str, list[Any]],
    out: str | tuple[str, ...] = "out",
    weights: dict[str, list[int]] | None = None,
    numbers: dict[str, list[int] | int] | None = None,
    opset: int = 20,
) -> bytes:
    """A model of ``nodes``; weights are zeros, numbers are int64 constants."""
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, [0.0] * math.prod(shape))
        for name, shape in (weights or {}).items()
    ]
    for name, value in (numbers or {}).items():
        flat = value if isinstance(value, list) else [value]
        shape = [len(flat)] if isinstance(value, list) else []
        constants.append(helper.make_tensor(name, TensorProto.INT64, shape, flat))
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in inputs.items()
    ]
    outs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in ([out] if isinstance(out, str) else out)
    ]
    made = helper.make_graph(list(nodes), "test", ports, outs, constants)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString()


def node(operator: str, *inputs: str, out: str = "out", **attributes: Any) -> Any:
    return helper.make_node(operator, list(inputs), [out], **attributes)


def slow_convolution(
    batch: int, narrow: int, wide: int, size: int, kernel: int, groups: int, stride: int
) -> int:
    """Multiplications and additions of a convolution that is written out, one by one."""
    side, count = (size - kernel) // stride + 1, 0
    for _ in itertools.product(range(batch), range(wide), range(side), range(side)):
        for _ in itertools.product(range(narrow // groups), range(kernel), range(kernel)):
            count += 2
    return count


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 2),
    groups=st.integers(1, 2),
    narrow=st.integers(1, 2),
    wide=st.integers(1, 2),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
)
def test_a_convolution_counts_as_written_out(
    batch: int, groups: int, narrow: int, wide: int, kernel: int, stride: int
) -> None:
    narrow, wide, size = groups * narrow, groups * wide, 4
    convolution = node("Conv", "x", "w", group=groups, strides=[stride] * 2)
    model = graph(
        convolution,
        inputs={"x": ["N", narrow, size, size]},
        weights={"w": [wide, narrow // groups, kernel, kernel]},
    )
    (cost,) = node_costs(model, batch=batch)
    assert cost.flops == slow_convolution(batch, narrow, wide, size, kernel, groups, stride)
    side = (size - kernel) // stride + 1
    values = batch * narrow * size**2 + wide * narrow // groups * kernel**2
    assert cost.bytes == 4 * (values + batch * wide * side**2)


@pytest.mark.parametrize(
    ("model", "flops", "traffic"),
    [
        (  # 3 × 2 pixels of 2 channels, each spread over 5 × 4² values
            graph(
                node("ConvTranspose", "x", "w", strides=[2, 2], pads=[1, 1, 1, 1]),
                inputs={"x": ["N", 2, 3, 2]},
                weights={"w": [2, 5, 4, 4]},
            ),
            2 * (2 * 6) * 5 * 16,
            4 * (2 * 6 + 2 * 5 * 16 + 5 * 6 * 4 + 2 * 6 * 5 * 16),
        ),
        (
            graph(
                node("Gemm", "x", "w", transA=1),
                inputs={"x": [7, 3]},
                weights={"w": [7, 2]},
            ),
            2 * 3 * 2 * 7,
            4 * (21 + 14 + 6),
        ),
        (
            graph(node("MatMul", "x", "w"), inputs={"x": ["N", 5, 4]}, weights={"w": [4, 3]}),
            2 * 5 * 3 * 4,
            4 * (20 + 12 + 15),
        ),
        (
            graph(
                node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2]),
                inputs={"x": ["N", 3, 4, 4]},
            ),
            4 * 3 * 4,
            4 * (48 + 12),
        ),
        (graph(node("GlobalAveragePool", "x"), inputs={"x": ["N", 3, 4, 4]}), 48, 4 * (48 + 3)),
        (graph(node("ReduceSum", "x", keepdims=0), inputs={"x": ["N", 6]}), 6, 4 * (6 + 1)),
        (graph(node("Add", "x", "x"), inputs={"x": ["N", 6]}), 6, 4 * 18),
        (graph(node("Sigmoid", "x"), inputs={"x": ["N", 6]}), 8 * 6, 4 * 12),
        (graph(node("Transpose", "x"), inputs={"x": ["N", 6]}), 0, 4 * 12),
        (
            graph(
                node("InstanceNormalization", "x", "w", "w"),
                inputs={"x": ["N", 3, 4]},
                weights={"w": [3]},
            ),
            8 * 12,
            4 * (3 * 12 + 2 * 3),
        ),
        (
            graph(node("Reshape", "x", "to"), inputs={"x": ["N", 6]}, numbers={"to": [0, 2, 3]}),
            0,
            0,
        ),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
def test_one_node(model: bytes, flops: int, traffic: int) -> None:
    (cost,) = node_costs(model, batch=1)
    assert (cost.flops, cost.bytes) == (flops, traffic)


def test_work_grows_with_the_batch_and_weights_do_not() -> None:
    model = graph(node("Gemm", "x", "w"), inputs={"x": ["N", 4]}, weights={"w": [4, 3]})
    (one,), (eight,) = node_costs(model, batch=1), node_costs(model, batch=8)
    assert eight.flops == 8 * one.flops
    assert eight.bytes == 8 * one.bytes - 7 * 4 * 12


def test_an_activation_is_fused_only_where_nobody_else_looks() -> None:
    layer, act = node("Gemm", "x", "w", out="h"), node("Relu", "h")
    given_: dict[str, Any] = {"inputs": {"x": ["N", 4]}, "weights": {"w": [4, 4]}}
    assert [c.operator for c in node_costs(graph(layer, act, **given_), batch=1)] == ["Gemm"]
    shown = graph(layer, act, out=("out", "h"), **given_)
    assert [c.operator for c in node_costs(shown, batch=1)] == ["Gemm", "Relu"]
    alone = graph(node("Relu", "x"), **given_)
    assert [c.operator for c in node_costs(alone, batch=1)] == ["Relu"]


def test_constants_cost_nothing() -> None:
    constant = node("Constant", out="c", value_float=1.0)
    model = graph(
        constant,
        node("Identity", "x", out="same"),
        node("Mul", "same", "c"),
        inputs={"x": ["N", 4]},
    )
    assert [cost.operator for cost in node_costs(model, batch=2)] == ["Mul"]


def test_shapes_follow_through_the_indices_of_a_batch() -> None:
    """As torch's exporter writes them: Shape, Squeeze, Range, and a gather by it."""
    nodes = [
        node("Shape", "x", out="shape", start=0, end=1),
        node("Squeeze", "shape", out="n"),
        node("Range", "zero", "n", "one", out="indices"),
        node("Gather", "x", "indices"),
    ]
    model = graph(*nodes, inputs={"x": ["N", 4]}, numbers={"zero": 0, "one": 1})
    *_, gather = node_costs(model, batch=5)
    assert gather.bytes == 4 * 20 + 8 * 5 + 4 * 20


QUANTIZED = graph(
    node("QuantizeLinear", "x", "scale"), inputs={"x": ["N", 4]}, weights={"scale": []}
)
OTHER_DOMAIN = graph(
    helper.make_node("FusedConv", ["x"], ["out"], domain="com.microsoft"), inputs={"x": ["N", 4]}
)
NONZERO = graph(
    node("NonZero", "x", out="found"),
    node("Cast", "found", to=TensorProto.FLOAT),
    inputs={"x": ["N", 4]},
)
LONG = graph(  # would be spelt out value by value while shapes are inferred
    node("Reshape", "x", "to", out="list"),
    node("Add", "list", "list"),
    inputs={"x": [1 << 10, 1 << 20]},
    numbers={"to": [-1]},
)
BRANCH = graph(
    helper.make_node(
        "If",
        ["x"],
        ["out"],
        then_branch=helper.make_graph([], "a", [], []),
        else_branch=helper.make_graph([], "b", [], []),
    ),
    inputs={"x": ["N"]},
)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"", "without nodes"),
        (LONG, "a list of 1073741824 values"),
        (b"\xff\xff\xff", "no ONNX graph"),
        (QUANTIZED, "int8 graphs are not modelled"),
        (OTHER_DOMAIN, "FusedConv of the domain 'com.microsoft'"),
        (BRANCH, "branches and loops"),
        (graph(node("Relu", "x"), inputs={"x": ["N", "H"]}), "input 'x': axis 1 is open"),
        (graph(node("Relu", "x"), inputs={"x": [2, -4]}), "no negative axes"),
        (graph(node("Relu", "nobody"), inputs={"x": ["N", 4]}), "shapes do not follow"),
        (graph(node("Relux", "x"), inputs={"x": ["N", 4]}), "shape of 'out' depends on data"),
        (NONZERO, "NonZero: the shape of 'found' depends on data"),
        (
            graph(node("MatMul", "x", "w"), inputs={"x": ["N", 5]}, weights={"w": [4, 3]}),
            "shapes do not follow",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_modelled_is_refused(model: bytes, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        node_costs(model, batch=1)
    assert message in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("batch", [0, -1, 1 << 17])
def test_a_batch_out_of_range(batch: int) -> None:
    with pytest.raises(BundleError, match="a batch of"):
        node_costs(QUANTIZED, batch=batch)


DAMAGED = graph(
    node("Conv", "x", "w", out="h"),
    node("Relu", "h", out="r"),
    node("Reshape", "r", "to"),
    inputs={"x": ["N", 2, 4, 4]},
    weights={"w": [3, 2, 3, 3]},
    numbers={"to": [0, -1]},
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_bytes_are_refused_or_counted(data: st.DataObject) -> None:
    content = bytearray(DAMAGED)
    for place in data.draw(st.sets(st.integers(0, len(DAMAGED) - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    try:
        costs = node_costs(bytes(content), batch=2)
    except BundleError:
        return
    assert all(cost.flops >= 0 and cost.bytes >= 0 for cost in costs)


def test_without_onnx_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtra) as caught:
        node_costs(b"", batch=1)
    assert caught.value.hint == "pip install 'fedvtc-edge[train]'"


# ---------------------------------------------------------------- the model


def slow_milliseconds(nodes: list[NodeCost], gflops: float, gbps: float, overhead: float) -> float:
    """The formula, one node at a time."""
    seconds = 0.0
    for each in nodes:
        seconds += max(each.flops / (gflops * 1e9), each.bytes / (gbps * 1e9)) + overhead / 1e6
    return 1e3 * seconds


def workload(seed: int) -> list[tuple[NodeCost, ...]]:
    """Graphs that are bound by arithmetic, by traffic and by calls."""
    draw = np.random.default_rng(seed)
    graphs = []
    for scale in (1e2, 1e4, 1e6, 1e6, 1e7, 1e8):
        flops = scale * 10 ** draw.uniform(-1, 1, 12)
        traffic = scale * 10 ** draw.uniform(-1, 1, 12)
        graphs.append(
            tuple(NodeCost("x", *map(float, pair)) for pair in zip(flops, traffic, strict=True))
        )
    return graphs


figures = st.tuples(st.floats(0.5, 500), st.floats(0.5, 50), st.floats(0.2, 100))


@settings(max_examples=10, deadline=None)
@given(true=figures, seed=st.integers(0, 99))
def test_a_fit_finds_the_device_that_made_the_times(
    true: tuple[float, float, float], seed: int
) -> None:
    graphs = workload(seed)
    samples = [
        Sample(str(number), nodes, slow_milliseconds(list(nodes), *true))
        for number, nodes in enumerate(graphs)
    ]
    model = fit(samples)
    for sample in samples:
        assert model.milliseconds(sample.nodes) == pytest.approx(sample.ms, rel=0.05)


def test_a_fit_is_no_worse_than_trying_everything() -> None:
    draw = np.random.default_rng(3)
    samples = [
        Sample(str(n), nodes, slow_milliseconds(list(nodes), 20, 5, 3) * draw.uniform(0.5, 2))
        for n, nodes in enumerate(workload(1))
    ]

    def error(model: LatencyModel) -> float:
        return sum(math.log(model.milliseconds(s.nodes) / s.ms) ** 2 for s in samples)

    grid = [10**exponent for exponent in np.linspace(-1, 3, 17)]
    best = min(error(LatencyModel(*point)) for point in itertools.product(grid, repeat=3))
    assert error(fit(samples)) <= best
    assert fit(samples) == fit(samples)


def test_a_group_is_left_out_as_a_whole() -> None:
    graphs = workload(2)
    honest = [
        Sample(str(number), nodes, slow_milliseconds(list(nodes), 20, 5, 3))
        for number, nodes in enumerate(graphs)
    ]
    # Two samples of one network that no roofline explains: each would excuse the other.
    odd = [Sample(f"odd{n}", graphs[4], 1e4, group="odd") for n in range(2)]
    held = leave_one_out([*honest, *odd])
    assert [row.name for row in held] == [str(n) for n in range(6)] + ["odd0", "odd1"]
    alone = fit(honest).milliseconds(graphs[4])
    for row in held[-2:]:
        assert row.predicted_ms == alone
        assert row.ratio == pytest.approx(alone / 1e4)
        assert not row.within


def test_samples_that_nothing_can_be_fitted_to() -> None:
    nodes = workload(0)[0]
    few = [Sample("a", nodes, 1.0)] * (LEAST_GRAPHS - 1)
    with pytest.raises(ConfigError, match="3 measured graphs, expected 4 or more"):
        fit(few)
    with pytest.raises(ConfigError, match="3 measured graphs"):
        leave_one_out([Sample(str(n), nodes, 1.0) for n in range(LEAST_GRAPHS)])
    for ms in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="positive time"):
            fit([*few, Sample("b", nodes, ms)])
    with pytest.raises(ConfigError, match="at least one node"):
        fit([*few, Sample("b", (), 1.0)])


def test_a_profile_makes_a_model() -> None:
    pi = DeviceProfile.load("rpi4")
    one, four = LatencyModel.of(pi), LatencyModel.of(pi, threads=4)
    assert one.gflops == pytest.approx(58 * 0.45 / 4)
    assert four.gflops == pytest.approx(58 * 0.45)
    assert (one.gbps, one.overhead_us) == (four.gbps, four.overhead_us) == (2.2, 40)
    nodes = [NodeCost("Conv", 6.525e6, 1.0), NodeCost("Add", 1.0, 2.2e6)]
    assert one.milliseconds(nodes) == pytest.approx(1 + 1 + 2 * 0.04)
    with pytest.raises(ConfigError, match="5 threads, expected 1 to 4"):
        LatencyModel.of(pi, threads=5)


def test_a_profile_without_the_figures() -> None:
    with pytest.raises(ConfigError, match="efficiency, memory_gbps, node_overhead_us") as caught:
        LatencyModel.of(DeviceProfile.load("stm32h7"))
    assert "calibrate" in caught.value.hint
    lazy = DeviceProfile.load("rpi4").model_dump()
    lazy["efficiency"]["value"] = 0.0
    with pytest.raises(ConfigError, match="efficiency = 0"):
        LatencyModel.of(DeviceProfile.model_validate(lazy))
