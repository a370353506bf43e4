"""The gates of one bundle: a graph that computes something else never passes one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fedvtc_edge.config import MethodSettings
from fedvtc_edge.errors import ParityError
from fedvtc_edge.export import extractors, writing
from fedvtc_edge.export.codes import Codes
from fedvtc_edge.export.extractors import AnchorFiles, write_anchor
from fedvtc_edge.export.graphs import (
    AnchorGraph,
    ClassifierGraph,
    Converted,
    SynthesizerGraph,
    convert,
)
from fedvtc_edge.export.manifest import Image
from fedvtc_edge.export.writing import ACCURACY_SLACK, CALIBRATION_IMAGES, SYNTHESISED, GraphWriter
from fedvtc_edge.models import ImageShape, build, vtc
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.statistics.class_statistics import GlobalStatistics

SIZE, CHANNELS, CLASSES, LATENT, ANCHOR, TEST = 8, 3, 3, 4, 6, 40
SHAPE = ImageShape(SIZE, CHANNELS)
FORM = Image(
    size=SIZE,
    channels=CHANNELS,
    colour="rgb",
    resize="bilinear, antialiased, stretched to the square",
)

Change = Callable[[onnx.ModelProto], None]
Write = Callable[..., GraphWriter]

MODEL = build("lenet", SHAPE, latent=LATENT, classes=CLASSES, seed=2)
DECODER = vtc.build(SHAPE, latent=LATENT, seed=2)
R = Anchor(SHAPE, ANCHOR, 2).eval()
with torch.no_grad():
    for parameter in DECODER.parameters():  # untrained, all it paints is grey
        parameter.mul_(3)

_draw = np.random.default_rng(1)
IMAGES = _draw.integers(0, 256, (TEST, SIZE, SIZE, CHANNELS), np.uint8)
LABELS = _draw.integers(0, CLASSES, TEST)
KNOWN = np.array([True, False, True])
WORLD = GlobalStatistics(
    np.array([3.0, 0, 5]),
    _draw.standard_normal((CLASSES, ANCHOR)) * KNOWN[:, None],
    np.ones((CLASSES, ANCHOR)),
    np.eye(ANCHOR),
)
CODES = Codes(
    _draw.standard_normal((CLASSES, LATENT), np.float32),
    np.full((CLASSES, LATENT), 0.5, np.float32),
    KNOWN,
    WORLD,
)


def writer(folder: Path, **changes: Any) -> GraphWriter:
    options = {"classes": CLASSES, "latent": LATENT, "images": IMAGES, "labels": LABELS} | changes
    return GraphWriter(folder, FORM, options.pop("codes", CODES), **options)


def anchor_files(folder: Path) -> AnchorFiles:
    """The anchor's graph, beside the bundle's folder."""
    shared = folder.with_name(f"{folder.name}-shared")
    shared.mkdir(exist_ok=True)
    example = {"images": torch.from_numpy(IMAGES[:2])}
    return write_anchor(shared, R, MethodSettings(), FORM, example, by_reference=False)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Converted]]:
    """The three graphs, converted once."""
    folder, made = tmp_path_factory.mktemp("good"), {}
    images = {"images": torch.from_numpy(IMAGES[:2])}
    latents = {
        "labels": torch.tensor([0, 2]),
        "means": torch.from_numpy(CODES.mean),
        "stds": torch.from_numpy(CODES.std),
        "noise": torch.randn(2, LATENT, generator=torch.Generator().manual_seed(1)),
    }
    for module, example, output, fixed in (
        (ClassifierGraph(MODEL), images, "logits", ()),
        (AnchorGraph(R), images, "features", ()),
        (SynthesizerGraph(DECODER), latents, "images", ("means", "stds")),
    ):
        name = type(module).__name__.removesuffix("Graph").lower()
        path = folder / f"{name}.onnx"
        made[name] = path, convert(module, example, path, output=output, fixed=fixed)
    return made


@pytest.fixture
def changed(
    good: Mapping[str, tuple[Path, Converted]], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Change], None]:
    """Has an exporter that writes something else, as a bug in one would."""

    def install(change: Change) -> None:
        def convert_wrongly(module: Any, example: Any, path: Path, **_: Any) -> Converted:
            source, written = good[path.stem]
            model = onnx.load(source)
            if path.stem == "classifier" or path.stem == install.only:  # type: ignore[attr-defined]
                change(model)
            path.write_bytes(model.SerializeToString())
            return written

        for module in (writing, extractors):
            monkeypatch.setattr(module, "convert", convert_wrongly)

    install.only = "classifier"  # type: ignore[attr-defined]
    return install


@pytest.fixture
def quick_convert(
    good: Mapping[str, tuple[Path, Converted]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right graphs without the exporter's time."""

    def copy(module: Any, example: Any, path: Path, **_: Any) -> Converted:
        shutil.copyfile(good[path.stem][0], path)
        return good[path.stem][1]

    for module in (writing, extractors):
        monkeypatch.setattr(module, "convert", copy)


def weight(model: onnx.ModelProto, which: Callable[[Any], bool]) -> tuple[Any, Any]:
    """The first initial value of that kind and a copy of its numbers."""
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if which(value):
            return tensor, value.copy()
    raise AssertionError("the graph holds no such value")


def edit(which: Callable[[Any], bool], how: Callable[[Any], Any]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor, value = weight(model, which)
        edited = np.ascontiguousarray(how(value)).astype(value.dtype)
        tensor.CopyFrom(numpy_helper.from_array(edited, tensor.name))

    return change


def kind(old: str, new: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        nodes = [node for node in model.graph.node if node.op_type == old]
        assert nodes
        nodes[-1].op_type = new

    return change


def is_scale(value: Any) -> bool:
    return bool(value.ndim == 0 and value == 255)


def shaped(*shape: int) -> Callable[[Any], bool]:
    return lambda value: value.shape == shape


def nan(value: Any) -> Any:
    value.flat[0] = np.nan
    return value


def one_weight(value: Any) -> Any:
    value.flat[0] += 0.05
    return value


CONV = shaped(16, CHANNELS, 3, 3)
HEAD = shaped(CLASSES, LATENT)
BIAS = shaped(CLASSES)
LAST = shaped(CHANNELS, 16, 3, 3)


def test_the_right_graphs_pass(tmp_path: Path, quick_convert: None) -> None:
    done = writer(tmp_path)
    with torch.no_grad():
        logits = ClassifierGraph(MODEL)(torch.from_numpy(IMAGES)).numpy()
    expected = float((logits.argmax(1) == LABELS).mean())
    done.classifier(MODEL, expected)
    done.synthesizer(DECODER)
    done.anchor(anchor_files(tmp_path), None)
    assert done.accuracy["classifier"] == done.accuracy["classifier_run"] == expected
    assert done.accuracy["images"] == TEST
    assert done.parity["classifier"]["random"]["samples"] == 256
    assert done.parity["classifier"]["evaluation"]["samples"] == TEST
    assert done.parity["synthesizer"]["samples"] == SYNTHESISED
    assert set(done.parity) == set(done.graphs) == {"classifier", "synthesizer", "anchor"}
    assert done.files == [f"{name}.onnx" for name in done.graphs]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(done.files)
    assert done.graphs["synthesizer"].inputs["labels"].range == f"0 to {CLASSES - 1}"


def test_without_evaluation_images_painted_ones_are_compared(
    tmp_path: Path, quick_convert: None
) -> None:
    done = writer(tmp_path, images=IMAGES[:0], labels=LABELS[:0])
    done.synthesise(DECODER)
    done.classifier(MODEL, None)
    done.synthesizer(DECODER)
    done.anchor(anchor_files(tmp_path), None)
    assert set(done.parity["classifier"]) == set(done.parity["anchor"]) == {"random", "painted"}
    assert done.parity["classifier"]["painted"]["samples"] == SYNTHESISED
    nothing = dict.fromkeys(("classifier", "classifier_run", "calibrated", "calibrated_run"))
    assert done.accuracy == {"images": 0, **nothing}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(edit(is_scale, lambda v: v * 2), "relative error", id="scale"),
        pytest.param(edit(CONV, one_weight), "relative error", id="a weight"),
        pytest.param(edit(CONV, lambda v: v[:, ::-1]), "relative error", id="swapped channels"),
        pytest.param(edit(CONV, lambda v: v[..., ::-1]), "relative error", id="mirrored"),
        pytest.param(edit(BIAS, lambda v: v + 1e-3), "relative error", id="a bias"),
        pytest.param(edit(BIAS, lambda v: v[::-1]), "relative error", id="other classes"),
        pytest.param(edit(BIAS, nan), "not finite", id="NaN"),
        pytest.param(kind("Relu", "Abs"), "relative error", id="an activation"),
    ],
)
def test_a_classifier_that_computes_something_else(
    tmp_path: Path, changed: Callable[[Change], None], change: Change, message: str
) -> None:
    changed(change)
    with pytest.raises(ParityError, match=f"classifier.onnx, random images: .*{message}") as no:
        writer(tmp_path).classifier(MODEL, None)
    assert no.value.exit_code == 1


def test_a_graph_that_cannot_be_loaded(tmp_path: Path, changed: Callable[[Change], None]) -> None:
    changed(kind("MaxPool", "Relu"))  # which has no kernel_shape
    with pytest.raises(ParityError, match=r"cannot load classifier\.onnx"):
        writer(tmp_path).classifier(MODEL, None)


def test_255_and_not_256(tmp_path: Path, changed: Callable[[Change], None]) -> None:
    """A network without normalisation of its input's scale feels it."""
    model = build("mlp", SHAPE, latent=LATENT, classes=CLASSES, seed=2)
    path = tmp_path / "wrong.onnx"
    example = {"images": torch.from_numpy(IMAGES[:2])}
    written = convert(ClassifierGraph(model), example, path, output="logits")
    wrong = onnx.load(path)
    edit(is_scale, lambda v: v + 1)(wrong)

    def convert_wrongly(_: Any, __: Any, target: Path, **___: Any) -> Converted:
        target.write_bytes(wrong.SerializeToString())
        return written

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writing, "convert", convert_wrongly)
        with pytest.raises(ParityError, match="relative error"):
            writer(tmp_path).classifier(model, None)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(kind("Round", "Floor"), id="floor"),
        pytest.param(kind("Round", "Ceil"), id="ceiling"),
        pytest.param(edit(is_scale, lambda v: v + 1), id="256"),
        pytest.param(edit(LAST, lambda v: v[::-1]), id="swapped channels"),
        pytest.param(edit(LAST, lambda v: v[..., ::-1]), id="mirrored"),
        pytest.param(edit(shaped(CHANNELS), nan), id="NaN"),
        pytest.param(edit(LAST, one_weight), id="a weight"),
        pytest.param(kind("Sigmoid", "HardSigmoid"), id="an activation"),
    ],
)
def test_a_synthesiser_that_paints_something_else(
    tmp_path: Path, changed: Callable[[Change], None], change: Change
) -> None:
    changed.only = "synthesizer"  # type: ignore[attr-defined]
    changed(change)
    with pytest.raises(ParityError, match=r"synthesizer.onnx: .*\d+ of \d+ pixels differ"):
        writer(tmp_path).synthesizer(DECODER)


def test_a_synthesiser_whose_pixels_are_no_numbers(tmp_path: Path, quick_convert: None) -> None:
    """Both sides would paint black and agree."""
    broken = vtc.build(SHAPE, latent=LATENT, seed=2)
    with torch.no_grad():
        broken.spread.weight.mul_(1e38)
    with pytest.raises(ParityError, match="not finite"):
        writer(tmp_path).synthesizer(broken)


def test_an_anchor_that_computes_something_else(
    tmp_path: Path, changed: Callable[[Change], None]
) -> None:
    changed.only = "anchor"  # type: ignore[attr-defined]
    changed(edit(lambda v: v.ndim == 4, lambda v: v[:, ::-1]))
    with pytest.raises(ParityError, match=r"anchor\.onnx, random images"):
        writer(tmp_path).anchor(anchor_files(tmp_path), None)


def test_real_images_are_compared_too(
    tmp_path: Path, quick_convert: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph may be right on noise and wrong on pictures."""
    plain = writing._run

    def wrong_on_real(session: Any, images: Any) -> Any:
        return plain(session, images) + (0.01 if len(images) == TEST else 0)

    monkeypatch.setattr(writing, "_run", wrong_on_real)
    with pytest.raises(ParityError, match="evaluation images"):
        writer(tmp_path).classifier(MODEL, None)


@pytest.mark.usefixtures("quick_convert")
@pytest.mark.parametrize(("count", "off", "passes"), [(40, 1, True), (40, 2, False)])
def test_one_image_may_differ_from_the_run(
    tmp_path: Path, count: int, off: int, passes: bool
) -> None:
    probe = writer(tmp_path)
    probe.classifier(MODEL, None)
    for sign in (1, -1):
        claimed = probe.accuracy["classifier"] + sign * off / count
        fresh = writer(tmp_path)
        if passes:
            fresh.classifier(MODEL, claimed)
            assert fresh.accuracy["classifier_run"] == claimed
        else:
            with pytest.raises(ParityError, match="the run's summary says") as refused:
                fresh.classifier(MODEL, claimed)
            assert "run it again" in refused.value.hint
    assert ACCURACY_SLACK == 0.001


@pytest.mark.usefixtures("quick_convert")
def test_the_calibrated_accuracy_is_checked_too(tmp_path: Path) -> None:
    probe = writer(tmp_path)
    probe.classifier(MODEL, None)
    probe.anchor(anchor_files(tmp_path), None)
    fresh = writer(tmp_path)
    fresh.classifier(MODEL, None)
    with pytest.raises(ParityError, match=r"calibrated: .* the run's summary says"):
        fresh.anchor(anchor_files(tmp_path), probe.accuracy["calibrated"] - 0.2)


# int8.


@pytest.mark.usefixtures("quick_convert")
def test_int8_sees_painted_images_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: dict[str, list[Any]] = {}
    real = writing.quantize

    def watch(source: Path, target: Path, calibration: Any) -> Converted:
        fed[source.stem] = list(calibration)
        return real(source, target, calibration)

    monkeypatch.setattr(writing, "quantize", watch)
    done = writer(tmp_path)
    done.classifier(MODEL, None)
    done.synthesizer(DECODER)
    done.quantized()

    latents = fed["synthesizer"]
    assert all(set(part) == {"labels", "means", "stds", "noise"} for part in latents)
    labels, noise = (np.concatenate([part[key] for part in latents]) for key in ("labels", "noise"))
    assert len(labels) == CALIBRATION_IMAGES
    assert set(labels.tolist()) == {0, 2}, "nobody painted class 1"
    with torch.no_grad():
        means, stds = torch.from_numpy(CODES.mean), torch.from_numpy(CODES.std)
        graph = SynthesizerGraph(DECODER)
        painted = graph(torch.from_numpy(labels), means, stds, torch.from_numpy(noise)).numpy()
    images = np.concatenate([part["images"] for part in fed["classifier"]])
    assert all(list(part) == ["images"] for part in fed["classifier"])
    # Equal but for rounding ties: the painter's output, and not one image of the data set.
    assert np.abs(images.astype(int) - painted).max() <= 1
    assert (images != painted).mean() < 1e-3
    real_ones = {image.tobytes() for image in IMAGES}
    assert not real_ones & {image.tobytes() for image in images}

    assert done.files == [
        f"{n}{v}.onnx" for v in ("", ".int8") for n in ("classifier", "synthesizer")
    ]
    for name in ("classifier", "synthesizer"):
        whole, small = (tmp_path / f"{name}{v}.onnx" for v in ("", ".int8"))
        assert small.stat().st_size < whole.stat().st_size
        assert done.graphs[name].variants == {"fp32": whole.name, "int8": small.name}
    assert 0 <= done.accuracy["classifier_int8"] <= 1
    assert done.int8["classifier"]["agreement_images"] == SYNTHESISED
    assert done.int8["classifier"]["agreement"] > 0.8
    assert done.int8["synthesizer"]["psnr_db"] > 25
    assert 0 < done.int8["synthesizer"]["largest_difference"] < 100


@pytest.mark.usefixtures("quick_convert")
def test_the_data_set_has_no_say_in_int8(tmp_path: Path) -> None:
    bytes_ = []
    for name, images in (("a", IMAGES), ("b", 255 - IMAGES[:7])):
        folder = tmp_path / name
        folder.mkdir()
        done = writer(folder, images=images, labels=LABELS[: len(images)])
        done.classifier(MODEL, None)
        done.synthesizer(DECODER)
        done.quantized()
        bytes_.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert bytes_[0] == bytes_[1]
