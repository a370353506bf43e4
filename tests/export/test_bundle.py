"""A device's work: synthesis and classification, from verified bytes and checked input."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.errors import BundleError, VerificationError
from fedvtc_edge.export import Bundle
from fedvtc_edge.export import bundle as module
from fedvtc_edge.export.bundle import CHUNK
from fedvtc_edge.export.codes import Codes, StatisticsClassifier, combined, log_softmax
from fedvtc_edge.export.manifest import INT8_AGREEMENT
from fedvtc_edge.export.runtime import Session, is_faster

Rewrite = Callable[..., Path]

LABELS = np.arange(70) % 10
"""More than two chunks, the last of them not full."""


@pytest.fixture(scope="module")
def opened(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder, variant="fp32")


def manifest_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return document


def pictures(count: int, *, seed: int = 0) -> Any:
    draw = np.random.Generator(np.random.Philox(key=seed))
    return draw.integers(0, 256, (count, 8, 8, 1), np.uint8)


def direct(folder: Path, name: str, **arrays: Any) -> Any:
    """The whole batch at once, by onnxruntime itself."""
    return onnxruntime.InferenceSession(folder / name).run(None, arrays)[0]


# ---------------------------------------------------------------- synthesising


def test_images_are_the_graphs_and_labels_choose_them(opened: Bundle, bundle_folder: Path) -> None:
    images = opened.synthesize(LABELS, 5)
    assert (images.dtype, images.shape) == (np.uint8, (70, 8, 8, 1))
    noise = np.random.Generator(np.random.Philox(key=5)).standard_normal((70, 8), np.float32)
    codes = opened.codes
    expected = direct(
        bundle_folder,
        "synthesizer.onnx",
        labels=LABELS,
        means=codes.mean,
        stds=codes.std,
        noise=noise,
    )
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(opened.synthesize(list(LABELS), np.int32(5)), images)
    others = opened.synthesize((LABELS + 1) % 10, 5)
    assert (images != others).any(axis=(1, 2, 3)).all()
    assert images.std() > 1  # neither black nor white


def test_noise_is_literally_numpys(opened: Bundle) -> None:
    expected = np.random.Generator(np.random.Philox(key=3)).standard_normal((6, 8), np.float32)
    for count in (1, 6, np.int64(6)):
        assert opened.noise(count, 3).tobytes() == expected[:count].tobytes()


@hypothesis_settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**63 - 1),
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=2 * CHUNK + 3),
    data=st.data(),
)
def test_any_split_into_batches_gives_the_same_images(
    opened: Bundle, seed: int, labels: list[int], data: st.DataObject
) -> None:
    whole, noise = opened.synthesize(labels, seed), opened.noise(len(labels), seed)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(labels)), max_size=4)) | {len(labels)})
    parts, start = [], 0
    for end in cuts:
        parts.append(opened.decode(labels[start:end], noise[start:end]))
        start = end
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(opened.synthesize(labels[: cuts[0]], seed), whole[: cuts[0]])


def test_seeds_differ(opened: Bundle) -> None:
    images = [opened.synthesize(LABELS[:10], seed) for seed in (0, 1, 2**63 - 1)]
    for one, other in pairwise(images):
        assert (one != other).any(axis=(1, 2, 3)).all()


PAINT = """
import hashlib, sys
import numpy as np
from fedvtc_edge.export import Bundle
images = Bundle.open(sys.argv[1], variant="fp32").synthesize(np.arange(70) % 10, 2**40 + 1)
print(hashlib.sha256(images.tobytes()).hexdigest())
"""


def test_another_process_synthesises_the_same(opened: Bundle, bundle_folder: Path) -> None:
    images = opened.synthesize(LABELS, 2**40 + 1)
    done = subprocess.run(
        [sys.executable, "-c", PAINT, bundle_folder], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(images.tobytes()).hexdigest()


def test_a_numpy_that_draws_otherwise_synthesises_nothing(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Bundle.open(bundle_folder)
    monkeypatch.setattr(np.random, "Philox", lambda key: np.random.PCG64(key))
    for work in (lambda: fresh.synthesize([0], 0), lambda: fresh.noise(1, 0)):
        with pytest.raises(BundleError, match="draws other noise"):
            work()


# ---------------------------------------------------------------- classifying


def test_scores_are_the_graphs(opened: Bundle, bundle_folder: Path) -> None:
    images = pictures(70)
    logits = opened.classify(images)
    assert (logits.dtype, logits.shape) == (np.float32, (70, 10))
    expected = direct(bundle_folder, "classifier.onnx", images=images)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_calibrated_scores_use_the_published_statistics(
    opened: Bundle, bundle_folder: Path
) -> None:
    images = pictures(70)
    got = opened.classify(images, calibrated=True)
    features = direct(bundle_folder, "anchor.onnx", images=images)
    knowledge = opened.codes.knowledge
    assert knowledge is not None
    own = log_softmax(opened.classify(images))
    expected = combined(own, StatisticsClassifier(knowledge)(features))
    assert (got.dtype, got.shape) == (np.float32, (70, 10))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(np.exp(got.astype(np.float64)).sum(1), 1, rtol=1e-3)
    assert np.abs(got - own).max() > 0.1


def test_all_of_a_run_can_be_used(exported: Path) -> None:
    folders = sorted(exported.iterdir())
    assert len(folders) == 3
    for folder in folders:
        bundle = Bundle.open(folder)
        assert bundle.manifest.client == folder.name
        assert bundle.classes == tuple("0123456789")
        assert bundle.classify(bundle.synthesize(range(10), 1)).shape == (10, 10)


# ---------------------------------------------------------------- input


@pytest.fixture
def idle(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    """A bundle of which no graph is ever loaded or run."""

    def never(*_: Any, **__: Any) -> None:
        pytest.fail("a graph was loaded or run")

    monkeypatch.setattr(onnxruntime, "InferenceSession", never)
    monkeypatch.setattr(Session, "__call__", never)
    return Bundle.open(bundle_folder, variant="fp32")


NOISE = np.zeros((2, 8), np.float32)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([-1], "label -1"),
        ([10], "label 10, expected 0 to 9"),
        (np.array([2**64 - 1], np.uint64), "label 18446744073709551615"),
        ([0.0], "float64"),
        (np.array([True]), "bool"),
        ([], r"shape \[0\]"),
        ([[0]], r"shape \[1, 1\]"),
        (["zero"], "labels: "),
    ],
)
def test_labels_are_checked_before_a_graph_runs(idle: Bundle, labels: Any, reason: str) -> None:
    for work in (
        lambda: idle.synthesize(labels, 0),
        lambda: idle.decode(labels, np.zeros((1, 8), np.float32)),
    ):
        with pytest.raises(BundleError, match=reason):
            work()


def test_a_class_that_nobody_had_is_not_synthesised(
    bundle: Path, rewrite: Rewrite, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = Bundle.open(bundle).codes
    codes.known[7] = False
    (bundle / "statistics.safetensors").write_bytes(codes.to_bytes())
    changed = Bundle.open(rewrite(bundle), variant="fp32")
    assert len(changed.synthesize([6, 8], 0)) == 2
    monkeypatch.setattr(Session, "__call__", lambda *_: pytest.fail("run"))
    with pytest.raises(BundleError, match=r"label 7 \(7\): no client had a sample"):
        changed.synthesize([6, 7], 0)


@pytest.mark.parametrize(
    "seed", [True, np.True_, -1, 2**63, 2**70, 1.0, np.float64(1), "1", None, [1]]
)
def test_seeds_are_checked_before_a_graph_runs(idle: Bundle, seed: Any) -> None:
    for work in (lambda: idle.synthesize([0], seed), lambda: idle.noise(1, seed)):
        with pytest.raises(BundleError, match="seed"):
            work()


@pytest.mark.parametrize("count", [0, -1, True, 1.0, "1", None])
def test_counts_are_checked(idle: Bundle, count: Any) -> None:
    with pytest.raises(BundleError, match="count"):
        idle.noise(count, 0)


@pytest.mark.parametrize(
    ("noise", "reason"),
    [
        (NOISE.astype(np.float64), "float64"),
        (NOISE * np.nan, "NaN or infinity"),
        (NOISE - np.inf, "NaN or infinity"),
        (NOISE[:, :7], r"\[2, 7\], expected \[2, 8\]"),
        (NOISE[:1], r"\[1, 8\], expected \[2, 8\]"),
        (NOISE[:0], r"\[0, 8\], expected \[2, 8\]"),
        (np.zeros((3, 8), np.float32), r"\[3, 8\], expected \[2, 8\]"),
        (NOISE.ravel(), r"\[16\], expected"),
        (NOISE.tolist(), "list"),
    ],
)
def test_noise_is_checked_before_a_graph_runs(idle: Bundle, noise: Any, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        idle.decode([0, 1], noise)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (pictures(2).astype(np.float32), "float32, expected uint8"),
        (pictures(2) / 255, "float64"),
        (pictures(2)[:0], r"\[0, 8, 8, 1\]"),
        (pictures(2)[0], r"\[8, 8, 1\]"),
        (pictures(2)[:, :7], r"\[2, 7, 8, 1\]"),
        (pictures(2).repeat(3, 3), r"\[2, 8, 8, 3\]"),
        (pictures(2).transpose(0, 3, 1, 2), r"\[2, 1, 8, 8\]"),
        (pictures(2).tolist(), "list"),
    ],
)
def test_images_are_checked_before_a_graph_runs(
    idle: Bundle, images: Any, reason: str, both: bool
) -> None:
    with pytest.raises(BundleError, match=reason):
        idle.classify(images, calibrated=both)


@pytest.mark.parametrize("variant", ["fp16", "", None, "INT8"])
def test_variants_are_three(bundle_folder: Path, variant: Any) -> None:
    with pytest.raises(BundleError, match="variant"):
        Bundle.open(bundle_folder, variant=variant)


@pytest.mark.parametrize("threads", [0, -1, 1025, True, 1.0, "2", None])
def test_threads_are_counted(bundle_folder: Path, threads: Any) -> None:
    with pytest.raises(BundleError, match="threads"):
        Bundle.open(bundle_folder, threads=threads)


def test_more_threads_synthesise_the_same(bundle_folder: Path, opened: Bundle) -> None:
    two = Bundle.open(bundle_folder, variant="fp32", threads=2)
    np.testing.assert_array_equal(two.synthesize(LABELS, 1), opened.synthesize(LABELS, 1))


# ---------------------------------------------------------------- variants


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that were loaded."""
    names: list[str] = []

    class Noted(Session):
        def __init__(self, model: bytes, *, name: str, **keys: Any) -> None:
            names.append(name)
            super().__init__(model, name=name, **keys)

    monkeypatch.setattr(module, "Session", Noted)
    return names


@pytest.mark.parametrize(
    ("agreement", "faster", "chosen"),
    [
        (1.0, True, "int8"),
        (INT8_AGREEMENT, True, "int8"),
        (1.0, False, "fp32"),
        (INT8_AGREEMENT - 1e-6, True, "fp32"),
        (None, True, "fp32"),
        ("none", True, "fp32"),
    ],
)
def test_auto_takes_int8_if_it_agrees_and_is_faster(
    bundle: Path,
    rewrite: Rewrite,
    loaded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    agreement: Any,
    faster: bool,
    chosen: str,
) -> None:
    raced: list[Any] = []
    monkeypatch.setattr(module, "is_faster", lambda *racers: raced.append(racers) or faster)
    report = {} if agreement == "none" else {"classifier": {"agreement": agreement}}
    auto = Bundle.open(rewrite(bundle, int8=report))
    assert auto.classifier_variant == chosen
    assert len(raced) == (agreement in (1.0, INT8_AGREEMENT))
    images = pictures(3)
    names = {"fp32": "classifier.onnx", "int8": "classifier.int8.onnx"}
    expected = direct(bundle, names[chosen], images=images)
    np.testing.assert_allclose(auto.classify(images), expected, atol=1e-5)
    assert len(raced) <= 1  # measured once
    auto.synthesize([0], 0)
    assert "synthesizer.int8.onnx" not in loaded


def test_auto_without_int8_measures_nothing(
    bundle: Path, rewrite: Rewrite, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_faster", lambda *_: pytest.fail("measured"))
    folder = without_int8(bundle, rewrite)
    auto = Bundle.open(folder)
    assert auto.classifier_variant == "fp32"
    auto.classify(pictures(1))
    auto.synthesize([0], 0)
    assert loaded == ["classifier.onnx", "synthesizer.onnx"]


def without_int8(folder: Path, rewrite: Rewrite) -> Path:
    graphs = manifest_of(folder)["graphs"]
    for graph in graphs.values():
        if "int8" in graph["variants"]:
            (folder / graph["variants"].pop("int8")).unlink()
    return rewrite(folder, graphs=graphs, int8={})


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_an_explicit_variant_is_used_for_all_and_not_measured(
    bundle: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch, variant: Any
) -> None:
    monkeypatch.setattr(module, "is_faster", lambda *_: pytest.fail("measured"))
    explicit = Bundle.open(bundle, variant=variant)
    assert explicit.classifier_variant == variant
    explicit.classify(pictures(1))
    explicit.synthesize([0], 0)
    infix = ".int8" if variant == "int8" else ""
    assert loaded == [f"classifier{infix}.onnx", f"synthesizer{infix}.onnx"]


def test_int8_where_there_is_none_is_refused(bundle: Path, rewrite: Rewrite) -> None:
    folder = without_int8(bundle, rewrite)
    with pytest.raises(BundleError, match="no int8 variant") as error:
        Bundle.open(folder, variant="int8")
    assert "--int8" in error.value.hint


@pytest.mark.parametrize(
    ("fast", "slow", "expected"), [(0.89, 1.0, True), (0.91, 1.0, False), (2.0, 1.0, False)]
)
def test_faster_means_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, fast: float, slow: float, expected: bool
) -> None:
    """By medians: outliers and the first runs do not count."""
    now, calls = [0.0], {"fast": 0, "slow": 0}
    monkeypatch.setattr("fedvtc_edge.export.runtime.time.perf_counter", lambda: now[0])

    def taking(name: str, seconds: float) -> Any:
        def run(arrays: Any) -> None:
            calls[name] += 1
            odd = calls[name] in (1, 2, 7, 9)
            now[0] += 100.0 if odd and name == "fast" else seconds

        return run

    assert is_faster(taking("fast", fast), taking("slow", slow), {}) == expected
    assert calls == {"fast": 17, "slow": 17}


# ---------------------------------------------------------------- what a bundle does not hold


@pytest.fixture
def bare(bundle: Path, rewrite: Rewrite) -> Path:
    """As of a method that publishes nothing and synthesises nothing."""
    for name in os.listdir(bundle):
        if not name.startswith(("classifier", "manifest")):
            (bundle / name).unlink()
    graphs = {"classifier": manifest_of(bundle)["graphs"]["classifier"]}
    return rewrite(bundle, graphs=graphs, noise=None, anchor=None, method="fedavg", int8={})


def test_a_classifier_alone_classifies(bare: Path) -> None:
    alone = Bundle.open(bare)
    assert alone.classify(pictures(2)).shape == (2, 10)
    for work in (
        lambda: alone.synthesize([0], 0),
        lambda: alone.decode([0], NOISE[:1]),
        lambda: alone.noise(1, 0),
    ):
        with pytest.raises(BundleError, match="no synthesiser: the method 'fedavg'"):
            work()
    with pytest.raises(BundleError, match="no anchor statistics"):
        alone.classify(pictures(2), calibrated=True)
    with pytest.raises(BundleError, match="'fedavg' published no statistics"):
        _ = alone.codes


def test_without_an_anchor_there_is_nothing_to_calibrate_with(
    bundle: Path, rewrite: Rewrite
) -> None:
    codes = Bundle.open(bundle).codes
    plain = Codes(codes.mean, codes.std, codes.known, None)
    (bundle / "statistics.safetensors").write_bytes(plain.to_bytes())
    (bundle / "anchor.onnx").unlink()
    graphs = manifest_of(bundle)["graphs"]
    del graphs["anchor"]
    changed = Bundle.open(rewrite(bundle, graphs=graphs, anchor=None, share="features"))
    assert changed.synthesize([0], 0).shape == (1, 8, 8, 1)
    with pytest.raises(BundleError, match="no anchor statistics"):
        changed.classify(pictures(1), calibrated=True)


# ---------------------------------------------------------------- graphs that do not fit


def test_opening_loads_no_graph(bundle_folder: Path, loaded: list[str]) -> None:
    lazy = Bundle.open(bundle_folder, variant="fp32")
    _ = lazy.classes, lazy.codes, lazy.signer, lazy.manifest, lazy.noise(1, 0)
    assert loaded == []
    for _ in range(2):
        lazy.classify(pictures(1), calibrated=True)
        lazy.synthesize([0], 0)
    assert loaded == ["classifier.onnx", "anchor.onnx", "synthesizer.onnx"]  # once each


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"no graph"])
def test_what_is_no_graph_is_refused(bundle: Path, rewrite: Rewrite, data: bytes) -> None:
    (bundle / "classifier.onnx").write_bytes(data)
    broken = Bundle.open(rewrite(bundle), variant="fp32")
    with pytest.raises(VerificationError, match=r"classifier\.onnx is refused: no ") as error:
        broken.classify(pictures(1))
    assert "\n" not in str(error.value)


def test_what_onnxruntime_cannot_load_is_named(bundle: Path, rewrite: Rewrite) -> None:
    import onnx

    model = onnx.load(bundle / "classifier.onnx")
    model.graph.node.append(onnx.helper.make_node("Relu", ["nowhere"], ["z"]))
    (bundle / "classifier.onnx").write_bytes(model.SerializeToString())
    broken = Bundle.open(rewrite(bundle), variant="fp32")
    with pytest.raises(BundleError, match=r"onnxruntime .* cannot load classifier\.onnx") as error:
        broken.classify(pictures(1))
    assert "\n" not in str(error.value)


def test_a_graph_that_fails_is_named(bundle: Path, rewrite: Rewrite) -> None:
    """Of a bundle that nobody signed: it looks a row up that its table does not have."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(bundle / "classifier.onnx")
    constants = {
        "axes": np.array([1, 2, 3], np.int64),
        "far": np.array(1000, np.int64),
        "table": np.zeros((2, 10), np.float32),
    }
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["images"], ["wide"], to=onnx.TensorProto.INT64),
            helper.make_node("ReduceMax", ["wide", "axes"], ["brightest"], keepdims=0),
            helper.make_node("Add", ["brightest", "far"], ["row"]),
            helper.make_node("Gather", ["table", "row"], ["logits"]),
        ]
    )
    (bundle / "classifier.onnx").write_bytes(model.SerializeToString())
    odd = Bundle.open(rewrite(bundle), variant="fp32")
    with pytest.raises(BundleError, match=r"onnxruntime .* cannot run classifier\.onnx: "):
        odd.classify(pictures(1))


@pytest.mark.parametrize(
    ("name", "other"), [("classifier", "synthesizer"), ("synthesizer", "anchor")]
)
def test_another_graph_than_promised_is_refused(
    bundle: Path, rewrite: Rewrite, name: str, other: str
) -> None:
    (bundle / f"{name}.onnx").write_bytes((bundle / f"{other}.onnx").read_bytes())
    swapped = Bundle.open(rewrite(bundle), variant="fp32")
    work = {
        "classifier": lambda: swapped.classify(pictures(1)),
        "synthesizer": lambda: swapped.synthesize([0], 0),
    }
    with pytest.raises(VerificationError, match=f"^{name}.onnx: inputs and outputs"):
        work[name]()


@pytest.mark.parametrize(
    ("port", "change"),
    [
        ("images", {"dtype": "float32"}),
        ("images", {"shape": ["N", 1, 8, 8]}),
        ("images", {"shape": [1, 8, 8, 1]}),
        ("logits", {"dtype": "uint8"}),
        ("logits", {"shape": ["N", 9]}),
        ("extra", {}),
    ],
)
def test_other_inputs_or_outputs_than_promised_are_refused(
    bundle: Path, rewrite: Rewrite, port: str, change: dict[str, Any]
) -> None:
    graphs = manifest_of(bundle)["graphs"]
    side = graphs["classifier"]["outputs" if port == "logits" else "inputs"]
    side[port] = next(iter(side.values())) | change
    with pytest.raises(VerificationError, match="classifier has other inputs or outputs"):
        Bundle.open(rewrite(bundle, graphs=graphs))


@pytest.mark.parametrize("name", ["classifier.onnx", "synthesizer.onnx", "statistics.safetensors"])
def test_what_changes_between_opening_and_first_use_is_refused(bundle: Path, name: str) -> None:
    early = Bundle.open(bundle, variant="fp32")
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(VerificationError, match=f"^{name}: SHA-256"):
        early.classify(pictures(1)) if name[0] == "c" else early.synthesize([0], 0)


@pytest.fixture
def external(bundle: Path, rewrite: Rewrite) -> Path:
    """The classifier's weights in a file beside it, as of a large model."""
    import onnx

    path = bundle / "classifier.onnx"
    model = onnx.load(path)
    path.unlink()
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        location="classifier.onnx.data",
        size_threshold=1024,
    )
    return rewrite(bundle)


def test_weights_in_a_file_beside_the_graph_are_used(external: Path, opened: Bundle) -> None:
    large = Bundle.open(external, variant="fp32")
    assert "classifier.onnx.data" in large.manifest.files
    images = pictures(5)
    np.testing.assert_allclose(large.classify(images), opened.classify(images), atol=1e-5)


def test_weights_that_change_between_opening_and_first_use_are_refused(external: Path) -> None:
    early, path = Bundle.open(external, variant="fp32"), external / "classifier.onnx.data"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError, match=r"^classifier\.onnx\.data: SHA-256"):
        early.classify(pictures(1))


@pytest.mark.parametrize("location", ["manifest.json", "../w.data", "anchor.onnx.data"])
def test_weights_lie_in_the_graphs_own_file_and_in_no_other(
    bundle: Path, rewrite: Rewrite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    """Without a listed file onnxruntime would look in the working directory."""
    import onnx

    monkeypatch.chdir(tmp_path)
    model = onnx.load(bundle / "classifier.onnx")
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    for path in (tmp_path / "w.data", tmp_path / "anchor.onnx.data"):
        path.write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (bundle / "classifier.onnx").write_bytes(model.SerializeToString())
    opened = Bundle.open(rewrite(bundle), variant="fp32")
    with pytest.raises(
        VerificationError, match=r"^classifier\.onnx is refused: weights in another"
    ):
        opened.classify(pictures(1))


def test_a_graph_with_a_loop_is_refused(bundle: Path, rewrite: Rewrite) -> None:
    import onnx

    model = onnx.load(bundle / "classifier.onnx")
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("Loop", [], ["z"], body=body))
    (bundle / "classifier.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="refused: operator 'Loop'") as caught:
        Bundle.open(rewrite(bundle), variant="fp32").classify(pictures(1))
    assert "do not use this one" in caught.value.hint


# ---------------------------------------------------------------- a device's installation

DEVICE = """
import sys

BARRED = {"torch", "torchvision", "onnx", "onnxscript", "matplotlib", "jinja2", "sklearn",
          "tqdm", "opacus", "tomli_w", "flwr", "scipy", "pydantic"}

class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BARRED:
            raise ModuleNotFoundError(f"no {name} on this device", name=name)

sys.meta_path.insert(0, Bar())
from fedvtc_edge.export import Bundle, verify

path, key = sys.argv[1:]
assert verify(path, key).signer
bundle = Bundle.open(path, key)
images = bundle.synthesize(list(range(10)) * 4, 1)
assert bundle.classify(images).shape == (40, 10)
assert bundle.classify(images, calibrated=True).shape == (40, 10)
assert not BARRED & {name.partition(".")[0] for name in sys.modules}
"""


def test_a_device_needs_no_training_package(signed: Path, signer: Any) -> None:
    from fedvtc_edge.sealing import signing

    key = signed.parent / "key.pub"
    key.write_bytes(signing.public_pem(signer.public_key()))
    done = subprocess.run(
        [sys.executable, "-c", DEVICE, signed, key], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


PLAIN = """
import sys
import onnxruntime
import numpy as np
session = onnxruntime.InferenceSession(sys.argv[1] + "/classifier.onnx")
session.run(None, {"images": np.zeros((1, 8, 8, 1), np.uint8)})
"""
SILENT = """
import sys
from fedvtc_edge.export import Bundle
bundle = Bundle.open(sys.argv[1])
bundle.classify(bundle.synthesize([0, 1], 0), calibrated=True)
"""


def left_behind(program: str, folder: Path, home: Path) -> list[str]:
    """Files that a program leaves in an empty home, as it would outside CI."""
    home.mkdir()
    # Bare but for what a process needs to start: above all no CI and no ORT_DISABLE_TELEMETRY.
    keep = {"PATH", "LANG", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}
    bare = {name: value for name, value in os.environ.items() if name.upper() in keep}
    homes = dict.fromkeys(
        ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"), str(home)
    )
    subprocess.run(
        [sys.executable, "-c", program, folder],
        env=bare | homes | {"TMPDIR": str(home), "USERPROFILE": str(home)},
        cwd=home,
        capture_output=True,
        check=True,
    )
    return sorted(path.relative_to(home).as_posix() for path in home.rglob("*"))


def test_a_device_leaves_nothing_behind(bundle_folder: Path, tmp_path: Path) -> None:
    """onnxruntime from 1.29 on sends telemetry and keeps an id, unless it is told in time."""
    assert left_behind(SILENT, bundle_folder, tmp_path / "home") == []


def test_onnxruntime_by_itself_leaves_something(bundle_folder: Path, tmp_path: Path) -> None:
    """Else the test above proves nothing."""
    if not left_behind(PLAIN, bundle_folder, tmp_path / "home"):
        pytest.skip(f"onnxruntime {onnxruntime.__version__} has no telemetry here")
