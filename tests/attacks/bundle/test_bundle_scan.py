"""The scan of bundles: what was planted is found where it was planted, and nothing else is."""

from __future__ import annotations

import getpass
import json
import os
import socket
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from fedvtc_edge import run
from fedvtc_edge.attacks.bundle import known as exact
from fedvtc_edge.attacks.bundle import reading
from fedvtc_edge.attacks.bundle.known import Known, Vector, found_in
from fedvtc_edge.attacks.bundle.scan import Leak, people, scan_pieces
from fedvtc_edge.config import Config
from fedvtc_edge.errors import BundleError, VerificationError
from fedvtc_edge.export.exporting import export
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics

Array = NDArray[Any]

C, P = 5, 8
DRAW = np.random.default_rng(0)
LABELS = np.repeat(np.arange(C), [7, 1, 0, 3, 9])
FEATURES = DRAW.standard_normal((len(LABELS), P))
OWN = ClassStatistics.of(FEATURES, LABELS, classes=C)
OTHER, THIRD = (
    ClassStatistics.of(DRAW.standard_normal((n, P)), np.arange(n) % C, classes=C) for n in (37, 23)
)
WORLD = GlobalStatistics.from_sum(OWN + OTHER + THIRD)
KNOWN = Known([WORLD], {"client-00": [OWN], "client-01": [OTHER]})

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


def scan(
    folder: Path, *, known: Known | None = None, names: Sequence[str] | None = None
) -> list[Leak]:
    files = reading.read_files(folder)
    return scan_pieces(reading.pieces_of(files), known=known, names=names)


def weights(*shape: int) -> Array:
    return np.random.default_rng(9).standard_normal(shape).astype(np.float32)


def graph(
    arrays: dict[str, Array] | None = None,
    nodes: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[str] = ("logits",),
    **fields: Any,
) -> onnx.ModelProto:
    """images → logits, with initialisers and nodes beside that nothing needs."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 4]) for n in outputs]
    made = helper.make_graph(
        [helper.make_node("MatMul", ["images", "head.weight"], ["logits"]), *nodes],
        "fedvtc-edge",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 64])],
        ports,
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in {"head.weight": weights(64, 4), **(arrays or {})}.items()
        ],
    )
    return helper.make_model(made, producer_name="fedvtc-edge", **fields)


Plant = Callable[..., Path]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """``plant(model, **manifest)``: a bundle with that classifier and manifest."""

    def write(model: onnx.ModelProto | bytes | None = None, **manifest: Any) -> Path:
        model = graph() if model is None else model
        data = model if isinstance(model, bytes) else model.SerializeToString()
        (tmp_path / "classifier.onnx").write_bytes(data)
        document = {"client": "client-00", "classes": ["cat", "dog"], **manifest}
        (tmp_path / "manifest.json").write_text(json.dumps(document))
        return tmp_path

    return write


def found(folder: Path, known: Known | None = KNOWN) -> list[tuple[str, str, str]]:
    return [(leak.where, leak.kind, leak.what) for leak in scan(folder, known=known, names=["ada"])]


# ---------------------------------------------------------------- clean


def test_a_clean_bundle_yields_nothing(plant: Plant) -> None:
    folder = plant(graph({"conv": weights(16, 8, 3, 3), "shape": np.array([-1, 64, 0, 8])}))
    (folder / "manifest.sig").write_bytes(b"\x01" * 64)
    assert scan(folder, known=KNOWN, names=["ada"]) == []


# ---------------------------------------------------------------- statistics


def surrounded(rows: Array) -> Array:
    """Rows somewhere inside an array that is longer than they are."""
    return np.concatenate([weights(3), rows.ravel(), weights(5)]).astype(np.float32)


FORMS: dict[str, Callable[[Array], Array]] = {
    "rows": lambda rows: rows.astype(np.float32),
    "columns": lambda rows: rows.T.astype(np.float32).copy(),
    "float64": lambda rows: rows,
    "float16": lambda rows: rows.astype(np.float16),
    "flat": surrounded,
    "cube": lambda rows: np.stack([weights(*rows.shape), rows.astype(np.float32)]),
    "channels": lambda rows: np.moveaxis(
        np.stack([weights(*rows.shape), rows.astype(np.float32)]), 2, 0
    ).copy(),
}
MEANS = ("statistics", "means of client-00, classes 0, 1, 3, 4")
"""Class 2 has no samples, and so no mean."""


@pytest.mark.parametrize("form", FORMS)
def test_planted_means_are_found_in_every_form(plant: Plant, form: str) -> None:
    folder = plant(graph({"hidden": FORMS[form](OWN.mean)}))
    assert found(folder) == [("hidden", *MEANS)]


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (WORLD.mean, "published means, classes 0, 1, 2, 3, 4"),
        (WORLD.std, "published deviations, classes 0, 1, 2, 3, 4"),
        (WORLD.count, "published counts"),
        (OWN.count, "counts of client-00"),
        (OTHER.mean[2:3], "means of client-01, classes 2"),
        (OWN.std, "deviations of client-00, classes 0, 3, 4"),  # of one sample there is none
    ],
    ids=["means", "deviations", "counts", "own counts", "one row", "own deviations"],
)
def test_each_kind_of_statistic_is_named(plant: Plant, values: Array, what: str) -> None:
    folder = plant(graph({"hidden": values.astype(np.float32)}))
    assert found(folder) == [("hidden", "statistics", what)]


def test_a_covariance_is_found_by_its_rows(plant: Plant) -> None:
    pooled = ClassStatistics.of(FEATURES, LABELS, classes=C, pooled=True)
    world = GlobalStatistics.from_sum(pooled)
    assert world.covariance is not None
    folder = plant(graph({"hidden": world.covariance.astype(np.float32)}))
    leaks = found(folder, Known([world]))
    assert leaks == [("hidden", "statistics", "published covariance")]


def test_counts_are_found_as_integers_and_in_the_attributes_of_nodes(plant: Plant) -> None:
    nodes = [helper.make_node("Constant", [], ["kept"], value_ints=[int(n) for n in OWN.count])]
    folder = plant(graph({"hidden": OWN.count.astype(np.int64)}, nodes))
    places = {where for where, _, what in found(folder) if what == "counts of client-00"}
    assert places == {"hidden", "kept.value_ints"}


def test_constants_and_branches_are_looked_into(plant: Plant) -> None:
    value = numpy_helper.from_array(OWN.mean.astype(np.float32))
    constant = helper.make_node("Constant", [], ["kept"], value=value)
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["inner"], value_floats=OWN.mean.ravel().tolist())],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(OWN.mean.astype(np.float32), "deep")],
    )
    choice = helper.make_node("If", ["on"], ["chosen"], then_branch=branch, else_branch=branch)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(OWN.mean[0].astype(np.float32), "thin"),
        numpy_helper.from_array(np.arange(0, 2 * P, 2), "places"),
        [2 * P],
    )
    model = graph(nodes=[constant, choice])
    model.graph.sparse_initializer.append(sparse)
    model.functions.append(
        helper.make_function("own", "f", [], ["given"], [constant], model.opset_import)
    )
    leaks = found(plant(model))
    assert {what for _, _, what in leaks} == {MEANS[1], "means of client-00, classes 0"}
    assert {where for where, _, _ in leaks} == {"kept", "deep", "inner.value_floats", "thin"}


@pytest.mark.parametrize("axis", [None, 0, 1, -1, "unnamed"])
@pytest.mark.parametrize("unsigned", [False, True])
def test_quantised_means_are_found(plant: Plant, axis: int | str | None, unsigned: bool) -> None:
    """One scale, or one per row or column; ONNX's axis is 1 where none is named."""
    low, high, middle = (0, 127, 64) if unsigned else (-63, 63, 0)  # seven bits, as export uses
    over = None if axis is None else 1 if axis == 0 else 0
    across = np.abs(OWN.mean).max(axis=over, keepdims=axis is not None) * 2 / (high - low)
    across = np.maximum(across, 1e-6)
    kind = np.uint8 if unsigned else np.int8
    arrays = {
        "q": np.clip(np.rint(OWN.mean / across) + middle, low, high).astype(kind),
        "s": across.astype(np.float32).ravel() if axis is not None else np.float32(across),
        "z": np.full(across.size if axis is not None else (), middle, kind),
        "w": weights(200, P),
    }
    named = {"axis": axis} if isinstance(axis, int) else {}
    node = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["back"], **named)
    assert found(plant(graph(arrays, [node]))) == [("q", *MEANS)]


def test_what_is_not_told_by_chance_is_not_reported(plant: Plant) -> None:
    """Masks, constants and short rows are everywhere; and seven bits are few."""
    masks = ClassStatistics(np.array([1, 0, 0, 1, 1.0]), np.zeros((5, P)), np.zeros((5, P)))
    even = ClassStatistics(np.full(5, 4.0), np.ones((5, P)), np.ones((5, P)))
    known = Known([], {"a": [masks], "b": [even]})
    arrays = {"mask": masks.count, "even": even.count, "ones": np.ones((5, P))}
    assert found(plant(graph(arrays)), known) == []
    draw = np.random.default_rng(3)
    many = [Vector("random", i, row) for i, row in enumerate(draw.standard_normal((200, P)))]
    assert found_in(draw.standard_normal((3, 1000, 100)), many, 0.02) == []
    assert found_in(np.zeros((0, 8)), many, 0.0) == []
    few = [Vector("short", i, row) for i, row in enumerate(draw.standard_normal((200, 5)))]
    assert found_in(draw.standard_normal(300_000), few, 0.05) == []


@pytest.mark.parametrize("largest", [0, -1])
def test_no_run_goes_on_at_the_other_end(largest: int) -> None:
    numbers = weights(100).astype(np.float64)
    numbers[largest] = 9.0
    for cut in range(1, P):
        around = np.concatenate([numbers[-cut:], numbers[: P - cut]])
        assert found_in(numbers, [Vector("around", cut, around)], 0.0) == []


def test_impossible_numbers_are_no_obstacle(plant: Plant) -> None:
    """Warnings are errors here."""
    strange = np.array([np.nan, np.inf, -np.inf, 0.0] * 20, np.float32)
    arrays = {
        "count": strange,
        "cold": strange.astype(np.float16),
        "empty": np.zeros((0, 3), np.float32),
        "on": np.ones(8, bool),
        "complex": np.ones(40, np.complex64),
    }
    model = graph({**arrays, "hidden": OWN.mean.astype(np.float32)})
    for kind in (TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT4):
        model.graph.initializer.append(helper.make_tensor(f"k{kind}", kind, [4], [0, 1, 2, 3]))
    assert found(plant(model, count=[float("inf"), 2.0])) == [("hidden", *MEANS)]


def test_blocks_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_BLOCK", 7)
    numbers = weights(100)
    for place in range(100 - P + 1):
        row = Vector("planted", place, numbers[place : place + P].astype(np.float64))
        assert found_in(numbers, [row], 0.0) == [row]


def test_the_published_file_is_by_design_and_no_other(plant: Plant) -> None:
    folder = plant(graph({"hidden": WORLD.mean.astype(np.float32)}))
    arrays = {
        "mean": WORLD.mean.astype(np.float32),
        "std": WORLD.std.astype(np.float32),
        "known": np.ones(C, np.uint8),
        "own": np.array([1, 1, 0, 1, 1], np.uint8),
    }
    path = folder / "statistics.safetensors"
    path.write_bytes(save(arrays))
    every = "classes 0, 1, 2, 3, 4"
    assert sorted(scan(folder, known=KNOWN, names=[]), key=str) == [
        Leak("classifier.onnx", "hidden", "statistics", f"published means, {every}"),
        Leak(path.name, "mean", "statistics", f"published means, {every}", True),
        Leak(path.name, "own", "statistics", "which classes the client had", True),
        Leak(path.name, "std", "statistics", f"published deviations, {every}", True),
    ]
    arrays |= {"extra": OWN.count.astype(np.float32), "total": WORLD.count.astype(np.float32)}
    path.write_bytes(save({**arrays, "own": np.ones(C, np.uint8)}))
    leaks = [leak for leak in scan(folder, known=KNOWN, names=[]) if leak.file == path.name]
    assert "own" not in {leak.where for leak in leaks}
    assert {(leak.where, leak.what) for leak in leaks if not leak.by_design} == {
        ("extra", "counts of client-00"),
        ("total", "published counts"),
    }


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("made in /home/me/run-1/model.py, line 3", "path", "/home/me/run-1/model.py,"),
        ("/Users/me/x", "path", "/Users/me/x"),
        ("C:\\Users\\me", "path", "C:\\Users\\me"),
        ("D:/data/x", "path", "D:/data/x"),
        ("(/tmp/x", "path", "/tmp/x"),
        ("~/secret", "path", "~/secret"),
        ("\\\\host\\share", "path", "\\\\host\\share"),
        ("File '/venv/lib/torch/nn.py'", "path", "/venv/lib/torch/nn.py"),
        ("by a.b+c@mail.example.org.", "address", "a.b+c@mail.example.org"),
        ("on Ada_3", "name", "Ada"),
        ("x" * 200 + " /tmp/" + "y\x1b" * 100, "path", None),
        ("/tmp/" + "y" * 500, "path", "/tmp/" + "y" * 115),
    ],
)
def test_words_are_found_wherever_they_stand(
    plant: Plant, text: str, kind: str, what: str | None
) -> None:
    model = graph(doc_string=text)
    model.metadata_props.add(key=text, value="1")
    model.producer_version = model.domain = text
    model.graph.doc_string = model.graph.node[0].name = text
    model.graph.initializer[0].doc_string = text
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = text
    model.graph.node[0].attribute.append(helper.make_attribute("note", text))
    values = np.array([text.encode()], object)
    model.graph.initializer.append(numpy_helper.from_array(values, "words"))
    folder = plant(model, **{"notes": [{"of": text}], text: 1})
    leaks = [leak for leak in scan(folder, names=["ada"]) if leak.kind == kind]
    assert {leak.file for leak in leaks} == {"classifier.onnx", "manifest.json"}
    assert {leak.what for leak in leaks} == {what} or what is None
    assert all(leak.what.isprintable() and len(leak.what) <= 600 for leak in leaks)
    places = {leak.where.removesuffix(f".{text}") for leak in leaks}
    # One leak for each place, however many strings stand there.
    assert {"model", "fedvtc-edge", "logits", "head.weight", "logits.note", "words"} <= places
    assert {"", "notes.of"} <= places


@pytest.mark.parametrize(
    "text",
    [
        "/body/body.0/Conv_output_0",
        "model.body.0.weight",
        "https://example.org/home/x",
        "adapter",
        "Canada",
        "x / 255, inside the graph",
        "N:H",
        "@",
        "numpy Generator(Philox(key=seed)).standard_normal([N, p], float32)",
    ],
)
def test_innocent_words_are_left_alone(plant: Plant, text: str) -> None:
    assert found(plant(graph(doc_string=text), notes=text)) == []


def test_metadata_of_safetensors_are_words_too(plant: Plant) -> None:
    folder = plant()
    data = save({"mean": weights(2, 2)}, metadata={"source": "/home/me/run"})
    (folder / "statistics.safetensors").write_bytes(data)
    assert found(folder) == [("header.__metadata__.source", "path", "/home/me/run")]


def test_this_user_and_this_machine_are_looked_for(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "grace")
    monkeypatch.setattr(socket, "gethostname", lambda: "lab-7.example.org")
    monkeypatch.setattr(Path, "home", lambda: Path("/root"))
    assert people() == {"grace", "lab-7.example.org", "lab-7"}
    leaks = scan(plant(note="by Grace on lab-7, root"))
    assert [(leak.kind, leak.what) for leak in leaks] == [("name", "Grace"), ("name", "lab-7")]

    def nobody() -> str:
        raise KeyError("uid")

    monkeypatch.setattr(getpass, "getuser", nobody)
    monkeypatch.setattr(socket, "gethostname", lambda: "vm")
    assert people() == set()  # two letters stand for anything


COUNTS = [int(n) for n in OWN.count]


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ({"x": COUNTS}, "x"),
        ({"class_counts": COUNTS}, "class_counts"),
        ({"x": {str(i): n for i, n in enumerate(COUNTS)}}, "x"),
        ({"x": [{"y": [0, *COUNTS]}]}, "x.y"),
        ({"x": json.dumps({"y": COUNTS})}, "x.y"),
        ({"x": f"of {COUNTS}"}, "x"),
    ],
)
def test_counts_in_the_manifest_are_found(plant: Plant, document: Any, where: str) -> None:
    assert found(plant(**document)) == [(where, "statistics", "counts of client-00")]


def test_the_first_of_two_equal_keys_is_read_too(plant: Plant) -> None:
    folder = plant()
    (folder / "manifest.json").write_text(f'{{"x": {COUNTS}, "x": 1}}')
    assert found(folder) == [("x", "statistics", "counts of client-00")]


def test_counts_that_say_so_need_no_knowledge(plant: Plant) -> None:
    model = graph({"sample_count": np.array([2, 0, 4])})
    model.metadata_props.add(key="histogram", value="[3, 4]")
    folder = plant(
        model, noise={"count": 64, "seed": 3}, class_counts=[5, 6], counted=[0.5, 2], count=[5]
    )
    what = "whole numbers under this name"
    assert found(folder, None) == [
        ("sample_count", "statistics", what),
        ("model.histogram", "statistics", what),
        ("class_counts", "statistics", what),
    ]


# ---------------------------------------------------------------- graphs


def test_features_at_an_output_are_an_oracle(plant: Plant) -> None:
    folder = plant(graph(outputs=("logits", "features")))
    assert found(folder) == [("features", "output", "an output that is not documented")]
    (folder / "anchor.onnx").write_bytes(graph(outputs=("features",)).SerializeToString())
    (folder / "classifier.int8.onnx").write_bytes(graph(outputs=("logits",)).SerializeToString())
    (folder / "other.onnx").write_bytes(graph(outputs=("logits",)).SerializeToString())
    assert [(leak.file, leak.where, leak.kind) for leak in scan(folder, names=[])] == [
        ("classifier.onnx", "features", "output"),
        ("other.onnx", "logits", "output"),
    ]


def outside(location: str, **entries: str) -> onnx.ModelProto:
    model = graph({"far": OWN.mean.astype(np.float32)})
    tensor = model.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return model


@pytest.mark.parametrize("location", ["../w", "/etc/passwd", "a/../../w", "gone.data", "", "."])
def test_weights_outside_are_reported_and_not_followed(plant: Plant, location: str) -> None:
    folder = plant(outside(location))
    (folder.parent / "w").write_bytes(OWN.mean.astype(np.float32).tobytes())
    leaks = [leak for leak in found(folder) if leak[1] != "path"]
    assert leaks == [("far", "external", f"weights in {location!r}, not in the bundle")]
    model = outside(location)
    model.graph.initializer[1].doc_string = "of ada"
    assert ("far", "name", "ada") in found(plant(model))


def test_weights_beside_a_graph_are_read(plant: Plant) -> None:
    folder = plant(outside("classifier.onnx.data", offset="8", length=str(C * P * 4)))
    data = b"\0" * 8 + OWN.mean.astype("<f4").tobytes() + b"\0" * 3
    (folder / "classifier.onnx.data").write_bytes(data)
    (folder / "anchor.onnx.data").write_bytes(data)
    assert found(folder) == [
        ("anchor.onnx.data", "unread", "weights of no graph"),
        ("far", *MEANS),
    ]


def test_weights_before_the_beginning_of_a_file_are_refused(plant: Plant) -> None:
    """To Python, 200 bytes before the end."""
    folder = plant(outside("classifier.onnx.data", offset="-200", length=str(C * P * 4)))
    (folder / "classifier.onnx.data").write_bytes(OWN.mean.astype("<f4").tobytes() + b"\0" * 40)
    refused(folder, "weights at -200")


def test_words_that_are_no_text_are_read_all_the_same(plant: Plant) -> None:
    model = graph({"\u1234 of ada": OWN.mean.astype(np.float32)})
    model.graph.node[0].attribute.append(helper.make_attribute("note", b"\xff in /tmp/x"))
    data = model.SerializeToString().replace("\u1234".encode(), b"\xff\xfe\xfd")
    name = "\ufffd\ufffd\ufffd of ada"
    assert found(plant(data)) == [
        ("logits.note", "path", "/tmp/x"),
        (name, "name", "ada"),
        (name, *MEANS),
    ]


def test_what_nobody_can_read_is_said_to_be_there(plant: Plant) -> None:
    # Field 1000, three bytes: ONNX has no such field, and readers pass over it.
    folder = plant(graph().SerializeToString() + b"\xc2\x3e\x03abc")
    (folder / "notes.txt").write_text("hello")
    assert found(folder) == [
        ("classifier.onnx", "unread", "6 bytes that ONNX has no name for"),
        ("notes.txt", "unread", "no file of a bundle, and not looked into"),
    ]


# ---------------------------------------------------------------- refused


def refused(folder: Path, reason: str) -> None:
    with pytest.raises(VerificationError, match=reason) as error:
        scan(folder, known=KNOWN)
    assert error.value.hint


DAMAGED = {
    "cut": graph({"x": weights(50)}).SerializeToString()[:-7],
    "text": b"hello, this is no graph",
    "shape": graph({"x": weights(4)})
    .SerializeToString()
    .replace(b"\x08\x04\x10\x01", b"\x08\x05\x10\x01"),
    "type": graph({"x": weights(4)})
    .SerializeToString()
    .replace(b"\x08\x04\x10\x01", b"\x08\x04\x10\x63"),
    "offset": outside("classifier.onnx", offset="-4").SerializeToString(),
    "number": outside("classifier.onnx", length="many").SerializeToString(),
    "short": outside("classifier.onnx", length="12").SerializeToString(),
    "no input": graph(nodes=[helper.make_node("DequantizeLinear", [], ["y"])]).SerializeToString(),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_graphs_are_refused(plant: Plant, damage: str) -> None:
    refused(plant(DAMAGED[damage]), r"^classifier\.onnx cannot be read: ")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b"[" * 5000 + b"]" * 5000],
    ids=["empty", "cut", "not UTF-8", "deep"],
)
def test_damaged_manifests_are_refused(plant: Plant, data: bytes) -> None:
    folder = plant()
    (folder / "manifest.json").write_bytes(data)
    refused(folder, r"^manifest\.json cannot be read: ")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 40,
        save({"x": weights(3)})[:-1],
        save({"x": weights(3)}, metadata={"x": "y" * 5_000_000}),
    ],
    ids=["empty", "nonsense", "cut", "long header"],
)
def test_damaged_statistics_are_refused(plant: Plant, data: bytes) -> None:
    folder = plant()
    (folder / "statistics.safetensors").write_bytes(data)
    refused(folder, r"^statistics\.safetensors cannot be read: ")


def test_huge_files_are_refused_before_they_are_read(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plant()
    for name, size in (
        ("classifier.onnx", reading.LARGEST_TEXT),
        ("manifest.json", reading.LARGEST_TEXT),
        ("classifier.onnx.data", reading.LARGEST),
    ):
        path = folder / name
        before = path.read_bytes() if path.exists() else None
        with path.open("wb") as file:
            file.truncate(size + 1)  # sparse: no byte of it is on the disk
        refused(folder, f"^{name}: more than")
        path.unlink() if before is None else path.write_bytes(before)
    assert found(folder) == []
    total = sum(path.stat().st_size for path in folder.iterdir())
    monkeypatch.setattr(reading, "LARGEST", total - 1)
    refused(folder, "^manifest.json: more than")
    monkeypatch.undo()
    for number in range(reading.MOST_FILES):
        (folder / f"{number}.txt").touch()
    refused(folder, "files")


def test_one_file_of_weights_does_not_become_many(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = outside("classifier.onnx.data")
    for _ in range(30):
        model.graph.initializer.append(model.graph.initializer[1])
    folder = plant(model)
    (folder / "classifier.onnx.data").write_bytes(OWN.mean.astype("<f4").tobytes())
    assert len(found(folder)) == 1
    monkeypatch.setattr(reading, "LARGEST", sum(f.stat().st_size for f in folder.iterdir()))
    refused(folder, "tensors of over")


def test_a_scale_does_not_make_weights_grow(plant: Plant) -> None:
    """[N, 1] by [N] would be [N, N] under NumPy's rules."""
    arrays = {"q": np.zeros((60_000, 1), np.int8), "s": np.ones(60_000, np.float32)}
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["back"], axis=1)
    assert found(plant(graph(arrays, [node]))) == []


def test_long_keys_do_not_multiply(plant: Plant) -> None:
    """A key of 100 kB above 10,000 others would be a gigabyte of names."""
    tracemalloc.start()
    try:
        scan(plant(**{"k" * 100_000: {str(i): "" for i in range(10_000)}}), names=[])
        assert tracemalloc.get_traced_memory()[1] < 1e8
    finally:
        tracemalloc.stop()


@posix
@pytest.mark.parametrize("name", ["classifier.onnx", "manifest.json", "extra.txt"])
def test_links_pipes_and_folders_are_refused(plant: Plant, name: str) -> None:
    folder = plant()
    path, elsewhere = folder / name, folder.parent / f"{folder.name}-elsewhere"
    elsewhere.write_bytes(path.read_bytes() if path.exists() else b"")
    path.unlink(missing_ok=True)
    path.symlink_to(elsewhere)
    refused(folder, f"^{name}: a link")
    path.unlink()
    os.mkfifo(path)
    refused(folder, f"^{name}: not a regular file")
    path.unlink()
    path.mkdir()
    refused(folder, f"^{name}: not a regular file")


def test_no_folder_and_no_bundle_are_different_mistakes(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path / ("x" * 300)):
        with pytest.raises(BundleError, match="no such folder"):
            scan(path)
    refused(tmp_path, "no bundle: manifest.json is missing")


# ---------------------------------------------------------------- our own


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
    tiny: Callable[..., Config],
    quickly: Callable[[], AbstractContextManager[None]],
) -> tuple[FinishedRun, Path]:
    """A tiny run whose clients share features, and one of its bundles with int8 variants."""
    folder = tmp_path_factory.mktemp("scanned")
    with quickly():
        run(tiny(method={"share": "features"}), out=folder / "run")
    export(folder / "run", folder / "bundles", clients=["client-01"], int8=True)
    return FinishedRun.open(folder / "run"), folder / "bundles" / "client-01"


def test_a_bundle_of_ours_holds_no_more_than_it_must(exported: tuple[FinishedRun, Path]) -> None:
    finished, folder = exported
    counts = {name: np.array(finished.record(name).class_counts) for name in finished.clients}
    world = finished.published()
    assert world is not None
    zeros = np.zeros_like(world.mean)
    known = Known([world], {k: [ClassStatistics(n, zeros, zeros)] for k, n in counts.items()})
    leaks = scan(folder, known=known, names=["ada"])
    assert {(leak.file, leak.where) for leak in leaks} == {
        ("statistics.safetensors", name) for name in ("mean", "std")
    }
    assert all(leak.by_design for leak in leaks)


def test_a_class_of_one_client_alone_is_that_clients_own(
    exported: tuple[FinishedRun, Path],
) -> None:
    """The server publishes its mean, and every bundle holds it; nothing an export could mend."""
    finished, folder = exported
    counts = np.array([finished.record(name).class_counts for name in finished.clients])
    alone = np.flatnonzero((counts > 0).sum(0) == 1)
    world = finished.published()
    assert world is not None
    assert len(alone)
    holder = int(counts[:, alone[0]].argmax())
    # What such a client measured is what was published, up to the format's rounding.
    mean = np.where((counts[holder] > 0)[:, None], world.mean, 0.0)
    mean += (counts[holder] < counts.sum(0))[:, None] * 0.3  # all others shared in the rest
    own = ClassStatistics(counts[holder], mean * counts[holder][:, None], np.square(mean))
    leaks = scan(folder, known=Known([world], {"holder": [own]}), names=[])
    (leak,) = (leak for leak in leaks if not leak.by_design)
    mine = ", ".join(str(label) for label in alone if counts[holder, label])
    assert (leak.where, leak.what) == ("mean", f"means of holder, classes {mine}")
