"""Audit of bundles: what was planted is a leak, what is honest is not, and ignorance is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from planted_bundles import AMONG_WEIGHTS, IN_THE_OPEN, changed, plant, rewritten

from fedvtc_edge.attacks.advice import judge
from fedvtc_edge.attacks.bundle import auditing
from fedvtc_edge.attacks.bundle.auditing import BundleAudit, audit_bundle
from fedvtc_edge.attacks.bundle.records import Records
from fedvtc_edge.attacks.bundle.reference import Reference, of_architecture, of_run
from fedvtc_edge.config import Config
from fedvtc_edge.errors import RunError, UsageError, VerificationError
from fedvtc_edge.export.exporting import export
from fedvtc_edge.export.manifest import Manifest
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.workflows.run import run

CLIENT = "client-01"
Fresh = Callable[..., Path]


@pytest.fixture(scope="module")
def manifest(exported: Path) -> Manifest:
    return Manifest.from_bytes((exported / CLIENT / "manifest.json").read_bytes())


@pytest.fixture(scope="module")
def references(tiny_run: Path, manifest: Manifest) -> dict[str, Reference]:
    """Both references of the one honest bundle: each takes seconds, and plants do not change it."""
    run = FinishedRun.open(tiny_run)
    return {"run": of_run(run, manifest), "architecture": of_architecture(manifest)}


@pytest.fixture(scope="module")
def records(tiny_run: Path) -> Records:
    return Records.of_run(FinishedRun.open(tiny_run), CLIENT)


@pytest.fixture
def remembered(
    references: dict[str, Reference], records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "of_run", lambda run, manifest: references["run"])
    monkeypatch.setattr(auditing, "of_architecture", lambda manifest: references["architecture"])
    monkeypatch.setattr(auditing.Records, "of_run", lambda run, client: records)


@pytest.fixture
def fresh(exported: Path, tmp_path: Path) -> Fresh:
    """A copy of the honest bundle."""

    def copy(name: str = CLIENT) -> Path:
        return Path(shutil.copytree(exported / name, tmp_path / name))

    return copy


@pytest.fixture
def own(records: Records, tmp_path: Path) -> Path:
    """The client's images where it keeps them."""
    path = tmp_path / "mine.npz"
    np.savez(path, x=records.images, y=records.labels)
    return path


def verdict(audited: BundleAudit) -> str:
    return judge(audited.findings, invalid=audited.invalid)[0]


def leaks(audited: BundleAudit) -> set[str]:
    return {finding.metric for finding in audited.findings if finding.passed is False}


# ---------------------------------------------------------------- honest


def test_an_honest_bundle_passes_for_who_knows_the_run(fresh: Fresh, tiny_run: Path) -> None:
    audited = audit_bundle(fresh(), run=tiny_run)
    assert leaks(audited) == set()
    assert verdict(audited) == "pass"
    metrics = {finding.metric: finding for finding in audited.findings}
    assert metrics["images"].value == 0
    assert metrics["images"].trials == 39
    assert "39 of 39 images" in metrics["images"].note


def test_an_honest_bundle_passes_for_who_knows_the_data_but_for_what_is_published(
    remembered: None, fresh: Fresh, own: Path
) -> None:
    """Which client alone has a class, and so its published mean, the data do not say."""
    audited = audit_bundle(fresh(), data=own)
    assert leaks(audited) == set()
    for finding in audited.findings:
        assert finding.passed or finding.threshold is None or finding.decides_by == "--run RUN"


def test_names_and_structure_alone_pass_nothing(fresh: Fresh) -> None:
    audited = audit_bundle(fresh())
    word, reasons = judge(audited.findings)
    assert word == "inconclusive"
    assert all("only names and structure were checked" in reason for reason in reasons)
    assert all("--run RUN or --data PATH" in reason for reason in reasons)
    assert leaks(audited) == set()


OTHERS: dict[str, dict[str, Any]] = {
    "own features": {"method": {"share": "features"}},
    "prototypes": {"method": {"name": "fedproto"}},
    "one head for all": {"method": {"name": "statistics"}},
    "normalisations": {"clients": {"count": 2, "architectures": ["lenet", "resnet8"]}},
    "noise": {
        "method": {"anchor": 48, "rounds": 1},
        "privacy": {"mode": "anchored", "epsilon": 2.0, "population": 200},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_honest_bundles_of_other_methods_pass(
    tiny: Callable[..., Config], quick: None, tmp_path: Path, kind: str
) -> None:
    run(tiny(**OTHERS[kind]), out=tmp_path / "run")
    int8 = METHODS.find(OTHERS[kind].get("method", {}).get("name", "fedvtc")).has_decoder
    export(tmp_path / "run", tmp_path / "out", clients=[CLIENT], int8=int8)
    folder = tmp_path / "out" / CLIENT
    audited = audit_bundle(folder, run=tmp_path / "run")
    assert (verdict(audited), leaks(audited)) == ("pass", set())
    audited = audit_bundle(folder)
    assert (verdict(audited), leaks(audited)) == ("inconclusive", set())
    assert (audited.claim is not None) == (kind == "noise")


# ---------------------------------------------------------------- planted


@pytest.mark.parametrize("kind", IN_THE_OPEN)
def test_what_stands_in_the_open_is_a_leak_for_anybody(
    remembered: None, fresh: Fresh, records: Records, tiny_run: Path, own: Path, kind: str
) -> None:
    folder = plant(kind, fresh(), records.images, records.labels)
    for known in ({}, {"data": own}, {"run": tiny_run}):
        audited = audit_bundle(folder, **known)
        assert verdict(audited) == "leak", known
        assert "structure" in leaks(audited)
    if kind != "class histogram":  # shares of so few classes could be anything
        assert ("statistics" if "counts" in kind else "images") in leaks(audited)


@pytest.mark.parametrize("kind", AMONG_WEIGHTS)
def test_what_stands_among_the_weights_is_found_by_who_knows_the_data(
    remembered: None, fresh: Fresh, records: Records, tiny_run: Path, own: Path, kind: str
) -> None:
    folder = plant(kind, fresh(), records.images, records.labels)
    assert verdict(audit_bundle(folder)) == "inconclusive"
    wanted = "images" if kind == "used initialiser" else "statistics"
    for known in ({"run": tiny_run}, {"data": own}):
        audited = audit_bundle(folder, **known)
        assert verdict(audited) == "leak"
        assert wanted in leaks(audited)


def test_low_bits_of_weights_are_seen_by_who_has_the_run_alone(
    remembered: None, fresh: Fresh, records: Records, tiny_run: Path, own: Path
) -> None:
    """Whoever has the data alone cannot know what the last bits would be: docs/audit.md says so."""
    folder = plant("low bits", fresh(), records.images, records.labels)
    audited = audit_bundle(folder, run=tiny_run)
    word, reasons = judge(audited.findings)
    assert word == "inconclusive"
    assert any("last bits" in reason for reason in reasons)
    assert leaks(audit_bundle(folder, data=own)) == set()


def test_weights_of_another_network_are_not_the_runs(
    remembered: None, fresh: Fresh, tiny_run: Path
) -> None:
    def double(model: onnx.ModelProto) -> None:
        tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        weights = 2 * numpy_helper.to_array(tensor)
        tensor.raw_data = weights.tobytes()

    audited = audit_bundle(changed(fresh(), double), run=tiny_run)
    assert leaks(audited) == {"structure"}
    (said,) = (f.note for f in audited.findings if f.passed is False and f.group != "all")
    assert "weights that differ by" in said


Change = Callable[[onnx.ModelProto], object]


def _other_axis(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Transpose")
    node.attribute[0].ints[:] = [0, 3, 2, 1]


def _constant(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT64)
    values = numpy_helper.to_array(tensor) + 1
    tensor.raw_data = values.tobytes()


def _renamed(model: onnx.ModelProto) -> None:
    old = model.graph.initializer[0].name
    model.graph.initializer[0].name = "aGVsbG8"
    for node in model.graph.node:
        node.input[:] = ["aGVsbG8" if name == old else name for name in node.input]


CHANGES: dict[str, Change] = {
    "a node's name": lambda model: setattr(model.graph.node[0], "name", "x" * 30),
    "a node's text": lambda model: setattr(model.graph.node[0], "doc_string", "x"),
    "an attribute's text": lambda m: setattr(m.graph.node[-1].attribute.add(), "name", "x"),
    "a tensor's text": lambda model: setattr(model.graph.initializer[0], "doc_string", "x"),
    "a tensor's other field": lambda model: model.graph.initializer[0].float_data.append(1.0),
    "a port's text": lambda model: setattr(model.graph.input[0], "doc_string", "x"),
    "the graph's name": lambda model: setattr(model.graph, "name", "x"),
    "the producer": lambda model: setattr(model, "producer_version", "1"),
    "the version": lambda model: setattr(model, "model_version", 2**60),
    "a domain": lambda model: model.opset_import.add(domain="x", version=1),
    "shapes": lambda m: m.graph.value_info.append(helper.make_empty_tensor_value_info("x")),
    "an attribute": _other_axis,
    "a constant": _constant,
    "an initialiser's name": _renamed,
    "one node less": lambda model: model.graph.node.pop(),
    "one node more": lambda m: m.graph.node.append(helper.make_node("Relu", ["logits"], ["z"])),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_every_change_of_a_graph_is_seen(remembered: None, fresh: Fresh, kind: str) -> None:
    audited = audit_bundle(changed(fresh(), CHANGES[kind]))
    assert verdict(audited) == "leak"
    assert leaks(audited) == {"structure"}


def test_bytes_that_protobuf_reads_over_are_seen(remembered: None, fresh: Fresh) -> None:
    """A field that stands there twice is read once: the last one counts."""
    folder = fresh()
    path = folder / "classifier.onnx"
    path.write_bytes(b"\x12\x05hello" + path.read_bytes())  # producer_name
    audited = audit_bundle(rewritten(folder))
    assert "structure" in leaks(audited)
    assert any("no reader reads" in finding.note for finding in audited.findings)


# ---------------------------------------------------------------- manifests and files


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"architecture": "mlp"}, "classifier.onnx"),
        ({"architecture": "aGVsbG8gd29ybGQ"}, "architecture"),
        ({"device": "aGVsbG8gd29ybGQ="}, "device"),
        ({"tools": {"torch": "x" * 50}}, "tools.torch"),
        ({"tools": {"pixels": "1"}}, "tools.pixels"),
        ({"accuracy": {"images": 3, "pixel": 4}}, "accuracy.pixel"),
        ({"accuracy": {"images": [3, 4]}}, "accuracy.images.0"),
        ({"parity": {"classifier": {"random": {"samples": "x"}}}}, "parity.classifier"),
        ({"source": {"classifier.safetensors": "x"}}, "source.classifier.safetensors"),
        ({"method": "none of ours"}, "method"),
    ],
)
def test_keys_and_texts_of_a_manifest_are_those_of_export(
    fresh: Fresh,
    references: dict[str, Reference],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    where: str,
) -> None:
    if changes != {"architecture": "mlp"}:
        known = references["architecture"]
        monkeypatch.setattr(auditing, "of_architecture", lambda manifest: known)
    audited = audit_bundle(rewritten(fresh(), **changes))
    assert verdict(audited) == "leak"
    assert any(f.passed is False and where in f"{f.group} {f.note}" for f in audited.findings)


def test_spaces_in_a_manifest_hide_nothing(remembered: None, fresh: Fresh) -> None:
    folder = fresh()
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("\n", " \n", 20))
    assert leaks(audit_bundle(folder)) == {"structure"}


def test_statistics_have_no_room_beside_their_numbers(remembered: None, fresh: Fresh) -> None:
    from safetensors.numpy import load_file, save_file

    folder = fresh()
    path = folder / "statistics.safetensors"
    arrays = load_file(path)
    for name, values in (("known", arrays["known"] * 77), ("mean", arrays["mean"] + 1)):
        save_file({**arrays, name: values.astype(arrays[name].dtype)}, path)
        assert "structure" in leaks(audit_bundle(rewritten(folder)))
    save_file(arrays, path, metadata={"x": "y"})
    assert "structure" in leaks(audit_bundle(rewritten(folder)))


def test_files_that_are_not_listed_or_not_what_is_listed(remembered: None, fresh: Fresh) -> None:
    folder = fresh()
    (folder / "notes.txt").write_text("hello")
    (folder / "anchor.onnx").write_bytes((folder / "anchor.onnx").read_bytes() + b"\x12\x01x")
    audited = audit_bundle(folder)
    notes = [finding.note for finding in audited.findings if finding.passed is False]
    assert any("notes.txt: a file that the manifest does not list" in note for note in notes)
    assert any("anchor.onnx: not the file that the manifest lists" in note for note in notes)
    (folder / "anchor.onnx").unlink()
    notes = [f.note for f in audit_bundle(folder).findings if f.passed is False]
    assert any("anchor.onnx: a file that the manifest lists, and that is not" in n for n in notes)


def test_other_tools_make_graphs_undecided_and_texts_no_less_a_leak(
    remembered: None, fresh: Fresh, records: Records
) -> None:
    """Whoever forges the versions gets no pass for it."""
    folder = changed(fresh(), CHANGES["a node's name"])
    tools = json.loads((folder / "manifest.json").read_text())["tools"] | {"torch": "1.0"}
    audited = audit_bundle(rewritten(folder, tools=tools))
    word, reasons = judge(audited.findings)
    assert word == "inconclusive"
    assert any("torch 1.0" in reason for reason in reasons)
    plant("unused initialiser", folder, records.images, records.labels)
    assert verdict(audit_bundle(rewritten(folder, tools=tools))) == "leak"


# ---------------------------------------------------------------- claims


CLAIM = {
    "mode": "anchored",
    "epsilon": 2.0,
    "delta": 1e-5,
    "unit": "one training example of one client, added or removed",
}


def test_a_claim_that_is_not_the_runs_is_invalid(
    remembered: None, fresh: Fresh, tiny_run: Path
) -> None:
    folder = rewritten(fresh(), privacy=CLAIM)
    audited = audit_bundle(folder, run=tiny_run)
    assert audited.claim is not None
    assert audited.claim.epsilon == 2.0
    assert verdict(audited) == "claim invalid"
    assert any("mode" in reason for reason in audited.invalid)


@pytest.mark.parametrize("missing", ["delta", "unit"])
def test_a_claim_without_its_parts_is_invalid(remembered: None, fresh: Fresh, missing: str) -> None:
    audited = audit_bundle(rewritten(fresh(), privacy={**CLAIM, missing: None}))
    assert verdict(audited) == "claim invalid"
    assert missing in audited.invalid[0]


# ---------------------------------------------------------------- refused


def test_two_sources_of_knowledge_are_refused(fresh: Fresh, tiny_run: Path, own: Path) -> None:
    with pytest.raises(UsageError, match="--run and --data"):
        audit_bundle(fresh(), run=tiny_run, data=own)


def test_a_bundle_of_another_run_is_refused(remembered: None, fresh: Fresh, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        audit_bundle(fresh(), run=tmp_path)


def test_a_client_that_the_run_has_not(fresh: Fresh, tiny_run: Path) -> None:
    with pytest.raises(RunError, match="has no client 'nobody'"):
        audit_bundle(rewritten(fresh(), client="nobody"), run=tiny_run)


def test_a_manifest_that_is_none(fresh: Fresh) -> None:
    folder = fresh()
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(VerificationError, match="not one of a fedvtc-edge bundle"):
        audit_bundle(folder)


def test_whole_images_are_found_as_bytes_at_any_place(records: Records) -> None:
    images: Sequence[Any] = records.images
    for shift in range(9):
        data = b"\x01" * shift + images[7].tobytes() + b"\x02" * 5
        assert 7 in auditing.whole_in(data, records)
    assert auditing.whole_in(bytes(1000), records) == []


@pytest.mark.usefixtures("remembered")
def test_a_search_for_some_images_alone_does_not_pass(
    fresh: Fresh, own: Path, tiny_run: Path, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, some = Records.wanted, max(len(records.images) // 2, 1)
    monkeypatch.setattr(Records, "wanted", lambda self, most: wanted(self, some))
    bundle = fresh()
    assert verdict(audit_bundle(bundle, data=own)) == "inconclusive"
    assert verdict(audit_bundle(bundle, run=tiny_run)) == "pass"
