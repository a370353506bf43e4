"""Files that a runtime reads: any batch, the asked opset, the same bytes, and no word of us."""

from __future__ import annotations

import getpass
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from fedvtc_edge.errors import ParityError
from fedvtc_edge.export import graphs as conversion
from fedvtc_edge.export.graphs import (
    OPSET,
    PRODUCER,
    AnchorGraph,
    ClassifierGraph,
    Converted,
    SynthesizerGraph,
    convert,
    quantize,
    strip,
    write,
)
from fedvtc_edge.export.runtime import Session
from fedvtc_edge.export.writing import TOLERANCE, compare_floats, compare_logits, compare_pixels
from fedvtc_edge.models import ImageShape, architectures, build, vtc
from fedvtc_edge.models.extractor import Anchor

# Two classes, latents of width two and, below, batches of two: nothing may take one for another.
C = P = 2
BATCHES = [1, 2, 7, 33]

Made = dict[str, tuple[nn.Module, Converted]]


def images(count: int, size: int = 8, channels: int = 1, seed: int = 0) -> Any:
    shape = (count, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def latents(count: int, classes: int = C, width: int = P, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        "labels": draw.integers(0, classes, count),
        "means": draw.standard_normal((classes, width), np.float32),
        "stds": draw.random((classes, width), np.float32),
        "noise": draw.standard_normal((count, width), np.float32),
    }


def tensors(feed: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in feed.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("somewhere-secret")


@pytest.fixture(scope="module")
def made(folder: Path) -> Made:
    """A classifier, an anchor and a synthesiser of two classes, converted."""
    shape, example = ImageShape(8, 1), {"images": torch.from_numpy(images(2))}
    model = build("lenet", shape, latent=P, classes=C, seed=1)
    written: Made = {}
    for name, module, inputs, output, fixed in (
        ("classifier", ClassifierGraph(model), example, "logits", ()),
        ("anchor", AnchorGraph(Anchor(shape, 2, 1)), example, "features", ()),
        (
            "synthesizer",
            SynthesizerGraph(vtc.build(shape, latent=P, seed=1)),
            tensors(latents(2)),
            "images",
            ("means", "stds"),
        ),
    ):
        path = folder / f"{name}.onnx"
        written[name] = module, convert(module, inputs, path, output=output, fixed=fixed)
    return written


def plain(path: Path) -> Any:
    """onnxruntime as anyone would use it."""
    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


# What the graphs promise.


@torch.no_grad()
@pytest.mark.parametrize("count", BATCHES)
def test_any_number_of_images(made: Made, folder: Path, count: int) -> None:
    batch = images(count, seed=count)
    for name, compare in (("classifier", compare_logits), ("anchor", compare_floats)):
        expected = made[name][0](torch.from_numpy(batch)).numpy()
        (actual,) = plain(folder / f"{name}.onnx").run(None, {"images": batch})
        assert actual.shape == (count, 2)
        compare(expected, actual, name)


@torch.no_grad()
@pytest.mark.parametrize("count", BATCHES)
def test_any_number_of_labels(made: Made, folder: Path, count: int) -> None:
    graph, feed = made["synthesizer"][0], latents(count, seed=count)
    assert isinstance(graph, SynthesizerGraph)
    (painted,) = plain(folder / "synthesizer.onnx").run(None, feed)
    assert painted.shape == (count, 8, 8, 1)
    compare_pixels(graph.levels(*tensors(feed).values()).numpy(), painted, "synthesizer")


def test_inputs_and_outputs(made: Made, folder: Path) -> None:
    def ports(of: Any) -> list[tuple[str, str, list[Any]]]:
        return [(port.name, port.type, port.shape) for port in of]

    classifier, synthesizer = (plain(folder / f"{name}.onnx") for name in made if name != "anchor")
    assert ports(classifier.get_inputs()) == [("images", "tensor(uint8)", ["N", 8, 8, 1])]
    assert ports(classifier.get_outputs()) == [("logits", "tensor(float)", ["N", C])]
    assert ports(synthesizer.get_inputs()) == [
        ("labels", "tensor(int64)", ["N"]),
        ("means", "tensor(float)", [C, P]),
        ("stds", "tensor(float)", [C, P]),
        ("noise", "tensor(float)", ["N", P]),
    ]
    assert ports(synthesizer.get_outputs()) == [("images", "tensor(uint8)", ["N", 8, 8, 1])]


def test_statistics_are_inputs_and_not_weights(made: Made, folder: Path) -> None:
    session, feed = plain(folder / "synthesizer.onnx"), latents(4)
    (before,) = session.run(None, feed)
    for name in ("means", "stds", "noise", "labels"):
        changed = feed | {name: 1 - feed[name] if name == "labels" else feed[name] + 1}
        assert (session.run(None, changed)[0] != before).any(), name
    swapped = feed | {"labels": 1 - feed["labels"], "means": feed["means"][::-1]}
    swapped["stds"] = feed["stds"][::-1]
    assert (session.run(None, swapped)[0] == before).all(), "a class is its row and no more"


@pytest.mark.parametrize("name", ["classifier", "anchor", "synthesizer"])
def test_opset_and_format_are_read_back(made: Made, folder: Path, name: str) -> None:
    model, written = onnx.load(folder / f"{name}.onnx"), made[name][1]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert (written.files, written.opset) == ((f"{name}.onnx",), OPSET)
    assert written.ir == model.ir_version
    onnx.checker.check_model(model, full_check=True)


def test_another_opset_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.onnx.export

    def other(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **options | {"opset_version": 18})

    monkeypatch.setattr(torch.onnx, "export", other)
    example = {"x": torch.zeros(2, 3)}
    with pytest.raises(ParityError, match="wrote opset 18, expected 20") as refused:
        convert(nn.Linear(3, 2), example, tmp_path / "x.onnx", output="y")
    assert "pyproject.toml" in refused.value.hint
    assert not list(tmp_path.iterdir())


# The same bytes, and nothing of where they were made.


def test_the_same_network_gives_the_same_bytes(made: Made, folder: Path, tmp_path: Path) -> None:
    model = build("lenet", ImageShape(8, 1), latent=P, classes=C, seed=1)
    example = {"images": torch.from_numpy(images(2, seed=9))}
    convert(ClassifierGraph(model), example, tmp_path / "other.onnx", output="logits")
    assert (tmp_path / "other.onnx").read_bytes() == (folder / "classifier.onnx").read_bytes()


def tells(path: Path) -> set[bytes]:
    """What a file of ours must not hold; four letters could be a weight by chance."""
    words = [b"site-packages", b"Traceback", b"fedvtc_edge", b"export/", b"torch.nn"]
    words += [b"namespace", b"stack_trace", b"lambda", b"<locals>", b"somewhere-secret"]
    words += [str(Path.home()).encode() + b"/", str(path.parent).encode(), sys.prefix.encode()]
    words += [b"/" + getpass.getuser().encode() + b"/"]
    classes = (ClassifierGraph, SynthesizerGraph, AnchorGraph, ImageShape)
    words += [kind.__name__.encode() for kind in classes]
    words += [Path(inspect.getfile(kind)).name.encode() for kind in classes]
    data = path.read_bytes()
    files = set(re.findall(rb"\w{3,}\.py\b", data))
    return files | {word for word in words if len(word) > 4 and word in data}


def loose(message: Any) -> int:
    """How many doc strings and metadata a graph holds, at whatever depth."""
    found = 0
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props", "value_info"):
            found += bool(value)  # one that was emptied is still listed
        elif field.type == field.TYPE_MESSAGE:
            items = value if field.is_repeated else [value]
            found += sum(loose(item) for item in items)
    return found


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", ["classifier", "anchor", "synthesizer"])
def test_no_word_of_the_machine_or_the_source(
    made: Made, folder: Path, name: str, int8: bool
) -> None:
    path = folder / f"{name}.onnx"
    if int8:
        feed = latents(4) if name == "synthesizer" else {"images": images(4)}
        quantize(path, folder / f"{name}.int8.onnx", [feed])
        path = folder / f"{name}.int8.onnx"
    model = onnx.load(path)
    assert (model.producer_name, model.producer_version, model.domain) == (PRODUCER, "", "")
    assert model.graph.name == PRODUCER
    assert not loose(model)
    assert not tells(path)


def test_what_tells_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"...File /a/graphs.py, line 3, in ImageShape.f, fedvtc_edge.a1.py")
    assert tells(path) == {b"graphs.py", b"ImageShape", b"fedvtc_edge"}
    assert loose(talkative()) > 8


def talkative() -> onnx.ModelProto:
    """A graph in a graph and a function, each with a word in every place that takes one."""

    def graph(name: str, nodes: list[Any]) -> Any:
        ports = [helper.make_tensor_value_info(port, TensorProto.FLOAT, [1]) for port in "xyz"]
        weights = [helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])]
        made = helper.make_graph(nodes, name, ports[:1], ports[1:2], weights, "graph")
        made.value_info.append(ports[2])
        return made

    def node(kind: str, inputs: list[str], **attributes: Any) -> Any:
        made = helper.make_node(kind, inputs, ["y"], doc_string="node", **attributes)
        for attribute in made.attribute:
            attribute.doc_string = "attribute"
        return made

    inner = graph("inner", [node("Add", ["x", "w"])])
    inner.ClearField("input")
    outer = graph("outer", [node("If", ["c"], then_branch=inner, else_branch=inner)])
    function = helper.make_function("own", "f", ["x"], ["y"], [node("Neg", ["x"])], [])
    function.doc_string = "function"
    model = helper.make_model(outer, functions=[function], doc_string="model", producer_name="me")
    model.domain, model.producer_version = "home", "3"
    for item in (model, model.graph, model.graph.node[0], model.graph.input[0], function, inner):
        item.metadata_props.add(key="path", value="/home")
    return model


def test_words_are_found_at_any_depth() -> None:
    model = talkative()
    strip(model)
    assert not loose(model)
    data = model.SerializeToString()
    assert not [word for word in (b"outer", b"inner", b"/home", b"home", b"me") if word in data]


# Large networks.


def test_large_weights_lie_beside_the_graph(
    tmp_path: Path, made: Made, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, other = folder / "classifier.onnx", tmp_path / "classifier.onnx"
    monkeypatch.setattr(conversion, "EXTERNAL_BYTES", whole.stat().st_size - 1)
    written = write(onnx.load(whole), other)
    assert written.files == ("classifier.onnx", "classifier.onnx.data")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(written.files)
    assert other.stat().st_size < whole.stat().st_size / 2
    assert not tells(tmp_path / "classifier.onnx.data")
    first = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    batch = {"images": images(5)}
    session = Session(other.read_bytes(), name=other.name, folder=tmp_path)
    assert np.array_equal(session(batch), Session(whole.read_bytes(), name="x")(batch))
    for path in list(tmp_path.iterdir()):
        path.unlink()
    write(onnx.load(whole), other)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == first
    monkeypatch.setattr(conversion, "EXTERNAL_BYTES", whole.stat().st_size)
    assert write(onnx.load(whole), tmp_path / "y.onnx").files == ("y.onnx",)


# Every architecture; torchvision's have dozens of layers, and take seconds to export.

SHAPES = {
    "lenet": [(8, 1), (28, 3)],
    "resnet8": [(8, 3), (64, 1)],
    "mobilenet": [(32, 3)],
    "shufflenet": [(64, 3)],
    "mlp": [(28, 1), (64, 1)],
    "mobilenet_v3_small": [(32, 3)],
    "shufflenet_v2_x0_5": [(8, 1)],
    "resnet18": [(28, 3)],
}
CASES = [
    pytest.param(name, *shape, marks=[pytest.mark.slow] if name not in list(SHAPES)[:5] else [])
    for name in architectures()
    for shape in SHAPES.get(name, [(28, 1)])
]


@pytest.mark.parametrize(("name", "size", "channels"), CASES)
def test_every_architecture_computes_what_torch_does(
    tmp_path: Path,
    name: str,
    size: int,
    channels: int,
    record_property: Callable[[str, object], None],
) -> None:
    model = build(name, ImageShape(size, channels), latent=64, classes=10, seed=3)
    graph, path = ClassifierGraph(model).eval(), tmp_path / "classifier.onnx"
    batch = images(64, size, channels)
    example = {"images": torch.from_numpy(batch[:2])}
    written = convert(graph, example, path, output="logits")
    with torch.no_grad():
        expected = graph(torch.from_numpy(batch)).numpy()
    session = Session(path.read_bytes(), name=path.name, folder=tmp_path)
    report = compare_logits(expected, session({"images": batch}), name)
    record_property("max_relative_error", report["max_relative_error"])
    assert report["argmax_agreement"] == 1
    assert report["max_relative_error"] < TOLERANCE / 2, "no room is left for other machines"
    for count in (1, 3):
        compare_logits(expected[:count], session({"images": batch[:count]}), name)
    weights = 4 * sum(value.numel() for value in model.parameters())
    assert len(written.files) == 1 + (weights > conversion.EXTERNAL_BYTES)
    total = sum((tmp_path / file).stat().st_size for file in written.files)
    assert 0.99 * weights <= total <= 1.1 * weights + 200_000  # equal initial values are shared
    assert not any(tells(tmp_path / file) for file in written.files)


@torch.no_grad()
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 1)])
def test_every_canvas_is_painted_as_torch_does(tmp_path: Path, size: int, channels: int) -> None:
    graph = SynthesizerGraph(vtc.build(ImageShape(size, channels), latent=16, seed=3)).eval()
    feed, example = latents(48, 5, 16), tensors(latents(2, 5, 16))
    path = tmp_path / "synthesizer.onnx"
    convert(graph, example, path, output="images", fixed=("means", "stds"))
    painted = Session(path.read_bytes(), name=path.name, folder=tmp_path)(feed)
    levels = graph.levels(*tensors(feed).values()).numpy()
    report = compare_pixels(levels, painted, path.name)
    assert report["rounding_ties"] <= 1e-4 * report["pixels"]
    assert np.ptp(painted) > 20
