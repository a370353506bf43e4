"""One client's bundle of every kind of run: what is in it, and that it is the run's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file as load_arrays

from fedvtc_edge import run, wire
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import BundleError, RunError
from fedvtc_edge.export import Bundle
from fedvtc_edge.export.exporting import Builder
from fedvtc_edge.export.manifest import Manifest, write_manifest
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.training.compute import deterministic
from fedvtc_edge.training.knowledge import CODE_STD, class_codes

Tiny = Callable[..., Config]
Quickly = Callable[[], AbstractContextManager[None]]

MODES: dict[str, dict[str, Any]] = {
    "features": {"share": "features"},
    "features+decoder": {"share": "features+decoder", "moments": "diagonal"},
    "anchored-diagonal": {"moments": "diagonal"},
    "fedproto": {"name": "fedproto"},
    "local": {"name": "local"},
}


@pytest.fixture(scope="module", params=MODES)
def built(
    request: pytest.FixtureRequest,
    tiny: Tiny,
    tmp_path_factory: pytest.TempPathFactory,
    quickly: Quickly,
) -> tuple[str, FinishedRun, Bundle]:
    """A run of each mode and the bundle of its second client."""
    folder = tmp_path_factory.mktemp("mode")
    with quickly():
        run(tiny(data={"partition": "shards"}, method=MODES[request.param]), out=folder / "run")
    return request.param, *bundled(folder)


def builder_of(
    finished: FinishedRun, folder: Path, *, int8: bool, with_prior: bool = False
) -> Builder:
    shared = folder / "shared"
    shared.mkdir(exist_ok=True)
    data = load_dataset(finished.config.data)
    return Builder(finished, data, int8=int8, shared=shared, with_prior=with_prior)


def bundled(folder: Path, *, int8: bool = False) -> tuple[FinishedRun, Bundle]:
    finished, target = FinishedRun.open(folder / "run"), folder / "bundle"
    target.mkdir()
    builder = builder_of(finished, folder, int8=int8)
    with deterministic():
        manifest = builder.build(finished.clients[-1], target)
    write_manifest(target, manifest, None)
    assert builder.would_be(manifest, finished.clients[-1])
    return finished, Bundle.open(target)


def accuracy(finished: FinishedRun, bundle: Bundle, **options: bool) -> float:
    data = load_dataset(finished.config.data)
    chosen = bundle.classify(data.x_test, **options).argmax(1)
    return float((chosen == data.y_test).mean())


def test_its_accuracy_is_the_runs(built: tuple[str, FinishedRun, Bundle]) -> None:
    _, finished, bundle = built
    record, told = finished.record(finished.clients[-1]), bundle.manifest.accuracy
    assert told["classifier"] == told["classifier_run"] == record.accuracy
    assert accuracy(finished, bundle) == record.accuracy
    assert told["images"] == 60


def test_its_files_are_those_of_the_method(built: tuple[str, FinishedRun, Bundle]) -> None:
    mode, _, bundle = built
    expected = {"classifier.onnx"}
    if mode != "local":
        expected |= {"statistics.safetensors"}
    if mode not in ("local", "fedproto"):
        expected |= {"synthesizer.onnx"}
    if mode == "anchored-diagonal":
        expected |= {"anchor.onnx"}
    assert set(bundle.manifest.files) == expected
    assert bundle.manifest.method == MODES[mode].get("name", "fedvtc")


def test_its_codes_are_those_of_the_run(
    built: tuple[str, FinishedRun, Bundle],
) -> None:
    mode, finished, bundle = built
    if mode == "local":
        with pytest.raises(BundleError, match="'local' published no statistics"):
            _ = bundle.codes
        return
    codes, published = bundle.codes, finished.published()
    assert published is not None
    if mode == "anchored-diagonal":
        constant = class_codes(10, 8).astype(np.float32)
        assert np.array_equal(codes.mean, constant)
        assert (codes.std == CODE_STD).all()
        assert codes.knowledge is not None
        assert codes.knowledge.covariance is None
        assert np.array_equal(codes.knowledge.mean, published.mean.astype(np.float32))
    else:
        stored = wire.published((finished.path / "statistics.safetensors").read_bytes())
        assert np.array_equal(codes.mean, stored.mean.astype(np.float32))
        assert np.array_equal(codes.std, stored.std.astype(np.float32))
        assert codes.knowledge is None
    assert codes.known.tolist() == published.present.tolist()


def test_it_synthesises_where_the_method_does(built: tuple[str, FinishedRun, Bundle]) -> None:
    mode, _, bundle = built
    labels = list(range(10))
    if mode in ("local", "fedproto"):
        with pytest.raises(BundleError, match=f"no synthesiser: the method '{mode}' has none"):
            bundle.synthesize(labels, 0)
        assert bundle.manifest.noise is None
        return
    images = bundle.synthesize(labels, 0)
    assert images.shape == (10, 8, 8, 1)
    changed = bundle.decode(labels, bundle.noise(10, 1))
    assert (images != changed).any()


def test_it_calibrates_where_the_run_is_anchored(built: tuple[str, FinishedRun, Bundle]) -> None:
    mode, finished, bundle = built
    record = finished.record(finished.clients[-1])
    if mode == "anchored-diagonal":
        expected = record.accuracy_calibrated
        assert accuracy(finished, bundle, calibrated=True) == expected
        assert bundle.manifest.accuracy["calibrated"] == expected
    else:
        assert "calibrated" not in bundle.manifest.accuracy
        with pytest.raises(BundleError, match="no anchor"):
            accuracy(finished, bundle, calibrated=True)


def test_int8_needs_synthesised_images(
    built: tuple[str, FinishedRun, Bundle], tmp_path: Path
) -> None:
    mode, finished, _ = built
    if MODES[mode].get("name") is None:
        builder_of(finished, tmp_path, int8=True)
        return
    with pytest.raises(RunError, match=f"'{mode}' synthesises none") as refused:
        builder_of(finished, tmp_path, int8=True)
    assert refused.value.exit_code == 2
    assert "leave out --int8" in refused.value.hint


# Odd classes and images.


@pytest.mark.usefixtures("quick")
def test_a_class_that_nobody_has(
    tiny: Tiny, archive: Callable[..., str], tmp_path: Path, strict_json: Callable[[str], Any]
) -> None:
    labels = np.arange(60) % 4
    path = archive(np.where(labels == 2, 1, labels), channels=3, classes=4)
    config = tiny(
        data={"name": path, "partition": "iid"},
        clients={"count": 2, "architectures": ["mlp"]},
        method={"rounds": 1, "latent": 4, "anchor": 6},
        training={"finetune_from": 1},
    )
    run(config, out=tmp_path / "run")
    finished, bundle = bundled(tmp_path, int8=True)
    assert bundle.codes.known.tolist() == [True, True, False, True]
    with pytest.raises(BundleError, match=r"label 2 \(class 2\): no client had a sample"):
        bundle.synthesize([0, 2], 0)
    assert bundle.synthesize([0, 1, 3], 0).shape == (3, 8, 8, 3)
    scores = bundle.classify(load_dataset(config.data).x_test, calibrated=True)
    assert scores.shape == (8, 4)
    assert np.isfinite(scores).all()
    record = finished.record(finished.clients[-1])
    assert accuracy(finished, bundle, calibrated=True) == record.accuracy_calibrated
    manifest = bundle.manifest
    assert (manifest.image.channels, manifest.image.colour) == (3, "rgb")
    assert manifest.classes == tuple(f"class {label}" for label in range(4))
    strict_json((tmp_path / "bundle" / "manifest.json").read_text())


@pytest.mark.usefixtures("quick")
def test_two_classes_in_two_dimensions(
    tiny: Tiny, archive: Callable[..., str], tmp_path: Path
) -> None:
    """No axis but the first may be taken for the batch."""
    config = tiny(
        data={"name": archive(np.arange(40) % 2)},
        clients={"count": 2, "architectures": ["lenet"]},
        method={"rounds": 1, "latent": 2, "anchor": 2},
        training={"finetune_from": 1},
    )
    run(config, out=tmp_path / "run")
    finished, bundle = bundled(tmp_path)
    images = load_dataset(config.data).x_test
    for count in (1, 2, 3, 33):
        batch = np.resize(images, (count, *images.shape[1:]))
        assert bundle.classify(batch).shape == (count, 2)
        assert bundle.classify(batch, calibrated=True).shape == (count, 2)
        assert bundle.synthesize(np.arange(count) % 2, 3).shape == (count, 8, 8, 1)
    one = np.concatenate([bundle.decode([y], bundle.noise(2, 3)[y : y + 1]) for y in (0, 1)])
    assert np.abs(one.astype(int) - bundle.synthesize([0, 1], 3)).max() <= 1
    record = finished.record(finished.clients[-1])
    assert accuracy(finished, bundle) == record.accuracy


# What the manifest says of the run.


def test_the_manifest_is_the_runs(tiny_run: Path, exported: Path) -> None:
    finished = FinishedRun.open(tiny_run)
    for client in finished.clients:
        manifest = Manifest.from_bytes((exported / client / "manifest.json").read_bytes())
        record = finished.record(client)
        assert (manifest.client, manifest.architecture) == (client, record.architecture)
        assert (manifest.run, manifest.revision) == (finished.digest, 0)
        assert (manifest.method, manifest.share) == ("fedvtc", "anchored")
        assert (manifest.latent, manifest.anchor, len(manifest.classes)) == (8, 12, 10)
        assert (manifest.image.size, manifest.image.channels) == (8, 1)
        assert manifest.privacy.document() == {
            "mode": "none",
            "epsilon": None,
            "delta": None,
            "unit": None,
            "relation": None,
            "covers": None,
            "covers_models": None,
        }
        assert {graph.opset for graph in manifest.graphs.values()} == {20}
        tools = set(manifest.tools)
        assert tools == {"fedvtc-edge", "torch", "onnx", "onnxscript", "onnxruntime", "numpy"}
        stored = load_arrays(exported / client / "statistics.safetensors")
        assert stored["own"].all(), "which classes it had is told"


def test_a_reference_needs_an_extractor(
    built: tuple[str, FinishedRun, Bundle], tmp_path: Path
) -> None:
    _, finished, bundle = built
    data = load_dataset(finished.config.data)
    if bundle.manifest.anchor is None:
        with pytest.raises(RunError, match="no frozen extractor"):
            Builder(finished, data, int8=False, shared=tmp_path, by_reference=True)
        return
    builder = Builder(finished, data, int8=False, shared=tmp_path, by_reference=True)
    assert not builder.would_be(bundle.manifest, bundle.manifest.client)


def test_what_would_not_be_written_again(tiny_run: Path, exported: Path, tmp_path: Path) -> None:
    finished = FinishedRun.open(tiny_run)
    builder, plain = (builder_of(finished, tmp_path, int8=int8) for int8 in (True, False))
    manifest = Manifest.from_bytes((exported / "client-01" / "manifest.json").read_bytes())
    assert builder.would_be(manifest, "client-01")
    assert not builder.would_be(manifest, "client-00")
    assert not plain.would_be(manifest, "client-01")
    for change in (
        {"run": "0" * 64},
        {"revision": 1},
        {"int8": {}},
        {"source": manifest.source | {"classifier.safetensors": "0" * 64}},
        {"tools": manifest.tools | {"torch": "1.0"}},
    ):
        assert not builder.would_be(replace(manifest, **change), "client-01"), change


# Runs that are not whole.


@pytest.fixture
def damaged(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def build_first(folder: Path, *, with_prior: bool = False) -> None:
    finished, target = FinishedRun.open(folder), folder.parent / "bundle"
    target.mkdir()
    builder = builder_of(finished, folder.parent, int8=False, with_prior=with_prior)
    builder.build(finished.clients[0], target)


def refused(folder: Path, message: str, *, with_prior: bool = False) -> None:
    with pytest.raises(RunError, match=message) as error:
        build_first(folder, with_prior=with_prior)
    assert "run it again" in error.value.hint


@pytest.mark.usefixtures("quick")
def test_statistics_of_another_width(damaged: Path, tiny: Tiny, tmp_path: Path) -> None:
    run(tiny(method={"rounds": 1, "anchor": 13}), out=tmp_path / "other")
    name = "statistics.safetensors"
    shutil.copyfile(tmp_path / "other" / name, damaged / name)
    refused(damaged, r"statistics of shape \(10, 13\) do not fit 10 classes of 12 features")


@pytest.mark.parametrize(
    "name", ["statistics.safetensors", "clients/client-00/decoder.safetensors"]
)
def test_what_a_synthesising_run_cannot_lack(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    refused(damaged, Path(name).name)


@pytest.mark.parametrize("counts", ["[]", "[1, 2]", "null"])
def test_counts_of_other_classes(damaged: Path, counts: str) -> None:
    path = damaged / "summary.json"
    document = path.read_text()
    start = document.index("[", document.index('"class_counts"'))
    end = document.index("]", start) + 1
    path.write_text(document[:start] + counts + document[end:])
    refused(damaged, r"client-00(\.class_counts are no| lacks) counts", with_prior=True)
