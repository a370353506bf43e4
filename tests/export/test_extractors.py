"""The frozen extractor's graph: written once, held or named by bundles, a user's own inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fedvtc_edge.config import MethodSettings
from fedvtc_edge.errors import BundleError, ConfigError, FedVTCError, RunError, VerificationError
from fedvtc_edge.export import Bundle, verify
from fedvtc_edge.export.exporting import export
from fedvtc_edge.export.extractors import REFERENCE, write_anchor
from fedvtc_edge.export.graphs import OPSET
from fedvtc_edge.export.manifest import File, Image, Manifest
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor

FORM = Image(
    size=16, channels=1, colour="grey", resize="bilinear, antialiased, stretched to the square"
)
IMAGES = np.random.default_rng(3).integers(0, 256, (5, 16, 16, 1), np.uint8)


def network(path: Path, *, opset: int = OPSET, operator: str = "Relu") -> Path:
    """A small graph [N, 3, H, W] → [N, 6], as a user would bring one."""
    draw = np.random.default_rng(1)
    weight = draw.standard_normal((6, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["images"]),  # names that ours have, too
        helper.make_node(operator, ["images"], ["pixels"]),
        helper.make_node("GlobalAveragePool", ["pixels"], ["h"]),
        helper.make_node("Flatten", ["h"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, path)
    return path


def written(folder: Path, path: Path, *, by_reference: bool = False) -> Any:
    anchor = Anchor(ImageShape(16, 1), 4, 7, str(path)).eval()
    example = {"images": torch.from_numpy(IMAGES[:2])}
    folder.mkdir(exist_ok=True)
    settings = MethodSettings(extractor=str(path))
    return write_anchor(folder, anchor, settings, FORM, example, by_reference=by_reference)


@pytest.mark.parametrize("opset", [17, OPSET])
def test_a_users_graph_becomes_part_of_the_anchors(tmp_path: Path, opset: int) -> None:
    made = written(tmp_path / "shared", network(tmp_path / "own.onnx", opset=opset))
    with torch.no_grad():
        expected = made.module(torch.from_numpy(IMAGES)).numpy()
    assert np.allclose(made.session({"images": IMAGES}), expected, atol=1e-5)
    assert np.allclose(np.square(expected).sum(1), 4)
    assert made.graph.opset == OPSET
    about = made.described
    assert about.name == about.origin == "own.onnx"  # not where it lay
    assert about.sha256 == made.anchor.sha256
    assert about.file is None


def test_a_graph_of_a_later_opset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedVTCError) as refused:
        # what onnxruntime itself cannot run is refused before
        written(tmp_path / "shared", network(tmp_path / "own.onnx", opset=99))
    assert isinstance(refused.value, (ConfigError, RunError))


def test_a_graph_that_changed_since(tmp_path: Path) -> None:
    path = network(tmp_path / "own.onnx")
    anchor = Anchor(ImageShape(16, 1), 4, 7, str(path)).eval()
    network(path, operator="Sigmoid")
    example = {"images": torch.from_numpy(IMAGES[:2])}
    with pytest.raises(ConfigError, match="has changed since"):
        write_anchor(
            tmp_path,
            anchor,
            MethodSettings(extractor=str(path)),
            FORM,
            example,
            by_reference=False,
        )


@pytest.fixture(scope="module")
def named(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Bundles of one client that name their extractor, and what export returned."""
    out = tmp_path_factory.mktemp("named") / "bundles"
    return out, export(tiny_run, out, clients=["client-00"], extractor="by-reference")


def test_bundles_name_one_file(named: tuple[Path, dict[str, Any]], tiny_run: Path) -> None:
    out, document = named
    assert document["extractor"] == str(out / REFERENCE)
    assert sorted(path.name for path in out.iterdir()) == ["client-00", REFERENCE]
    bundle = out / "client-00"
    assert not (bundle / "anchor.onnx").exists()
    manifest = verify(bundle).manifest
    assert manifest.referenced == File.of(out / REFERENCE)
    assert manifest.extractor is not None
    assert manifest.extractor.name == "random"
    again = export(tiny_run, out, clients=["client-00"], extractor="by-reference")
    assert again["bundles"] == document["bundles"]
    with pytest.raises(RunError, match="not empty"):  # an embedded export is another one
        export(tiny_run, out, clients=["client-00"])


def test_a_device_uses_the_file_that_was_named(
    named: tuple[Path, dict[str, Any]], exported: Path
) -> None:
    out, _ = named
    held = Bundle.open(exported / "client-00", variant="fp32")
    form = held.manifest.image
    shape = (4, form.size, form.size, form.channels)
    images = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    bundle = Bundle.open(out / "client-00", extractor=out / REFERENCE)
    scores = bundle.classify(images, calibrated=True)
    assert np.array_equal(scores, held.classify(images, calibrated=True))
    with pytest.raises(BundleError, match="needs no extractor"):
        Bundle.open(exported / "client-00", extractor=out / REFERENCE)


def test_without_the_file_all_else_works(named: tuple[Path, dict[str, Any]]) -> None:
    out, _ = named
    bundle = Bundle.open(out / "client-00")
    form = bundle.manifest.image
    images = np.zeros((1, form.size, form.size, form.channels), np.uint8)
    assert np.isfinite(bundle.classify(images)).all()
    with pytest.raises(BundleError, match="names its extractor") as refused:
        bundle.classify(images, calibrated=True)
    assert "--extractor" in refused.value.hint


@pytest.mark.parametrize("change", ["other", "longer", "missing", "folder"])
def test_another_file_is_refused(
    named: tuple[Path, dict[str, Any]], tmp_path: Path, change: str
) -> None:
    out, _ = named
    data, path = bytearray((out / REFERENCE).read_bytes()), tmp_path / "given.onnx"
    if change == "other":
        data[100] ^= 1
    if change == "longer":
        data += b"\0"
    if change == "folder":
        path.mkdir()
    elif change != "missing":
        path.write_bytes(data)
    expected = BundleError if change == "missing" else VerificationError
    with pytest.raises(expected):
        verify(out / "client-00", extractor=path)


def test_a_name_without_need_of_it(named: tuple[Path, dict[str, Any]]) -> None:
    out, _ = named
    manifest = Manifest.from_bytes((out / "client-00" / "manifest.json").read_bytes())
    document = manifest.document()
    del document["graphs"]["anchor"]
    with pytest.raises(ValueError, match="holds or needs none"):
        Manifest.read(document)
