"""What a bundle says of itself: the same bytes for ever, and nothing impossible believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.errors import VerificationError
from fedvtc_edge.export.manifest import MANIFEST, Manifest, ports

Document = dict[str, Any]
Make = Callable[..., Document]

HASH = "0" * 64
NOISE = {
    "algorithm": "numpy Generator(Philox(key=seed)).standard_normal([N, p], float32)",
    "golden": {"seed": 1, "count": 2, "sha256": HASH},
}


def parsed(document: Document) -> Manifest:
    return Manifest.from_bytes(json.dumps(document).encode())


# ---------------------------------------------------------------- bytes


def test_golden_manifest(document: Make) -> None:
    """The byte format: changing it ends every signature in the field."""
    data = parsed(document()).to_bytes()
    assert data == (json.dumps(document(), indent=2) + "\n").encode("ascii")
    digest = "4db19b34cc72ef44741695becd6aadf4b4bef7d09f3e8ea4752b70701a0640cc"
    assert (len(data), hashlib.sha256(data).hexdigest()) == (2125, digest)


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    words=st.lists(
        st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=2, max_size=5
    ),
    accuracy=st.dictionaries(
        st.text(st.characters(exclude_categories=["C", "Z"])), st.floats(0, 1)
    ),
    epsilon=st.none() | st.floats(0, 1e6),
    revision=st.integers(0, 10**9),
)
def test_parsing_what_was_written_changes_nothing(document: Make, **drawn: Any) -> None:
    made = document(
        client=drawn["name"],
        classes=drawn["words"],
        accuracy=drawn["accuracy"],
        privacy={"mode": "local", "epsilon": drawn["epsilon"], "delta": None, "unit": "image"},
        revision=drawn["revision"],
    )
    manifest = parsed(made)
    again = Manifest.from_bytes(manifest.to_bytes())
    assert again == manifest
    assert again.to_bytes() == manifest.to_bytes()
    assert json.loads(manifest.to_bytes()) == made


def test_an_exported_manifest_parses_to_itself(bundle_folder: Any) -> None:
    data = (bundle_folder / MANIFEST).read_bytes()
    assert Manifest.from_bytes(data).to_bytes() == data


@pytest.mark.parametrize("text", ["\x1b[2J", "evil\u202egnp", "two\nlines", "x" * 1001])
@pytest.mark.parametrize("place", ["architecture", "device", "later", "share"])
def test_no_text_that_a_terminal_should_not_show(document: Make, place: str, text: str) -> None:
    for value in (text, {text: 1}, [[text]]):
        made = document()
        if place == "later":
            made["later"] = value
        elif isinstance(value, str):
            made[place] = value
        else:
            made["accuracy"] = {"of": value}
        with pytest.raises(VerificationError, match=r"no text that can be shown|architecture") as e:
            parsed(made)
        assert str(e.value).isprintable()


def test_claims_of_older_bundles_are_kept_as_they_are(document: Make) -> None:
    made = document()
    assert set(made["privacy"]) == {"mode", "epsilon", "delta", "unit"}
    manifest = parsed(made)
    assert manifest.privacy.covers_models is None
    assert manifest.privacy.warning is not None
    assert json.loads(manifest.to_bytes()) == made
    newer = {**made["privacy"], "relation": "add/remove", "covers": "all", "covers_models": True}
    manifest = parsed(document(privacy=newer))
    assert manifest.privacy.warning is None
    assert json.loads(manifest.to_bytes())["privacy"] == newer


def test_a_later_version_may_add_keys(document: Make) -> None:
    made = document(later={"what": "ever"})
    made["image"]["later"] = 1
    later = parsed(made)
    assert {**json.loads(later.to_bytes())} == {**document(), "later": {"what": "ever"}}


def test_a_graph_must_have_the_inputs_that_follow(document: Make) -> None:
    made = document()
    made["graphs"]["classifier"]["inputs"]["images"]["shape"] = ["N", 1, 8, 8]
    with pytest.raises(VerificationError, match="classifier has other inputs or outputs"):
        parsed(made)


def test_defaults_are_those_of_an_export(document: Make) -> None:
    """Keys that may be left out; to_bytes writes them all."""
    made = document()
    for key in ("device", "revision"):
        del made[key]
    for key in ("dtype", "layout", "scale"):
        del made["image"][key]
    assert parsed(made) == parsed(document())


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "fedvtc-edge run"}, "not one of a fedvtc-edge bundle"),
        ({"kind": None}, "not one of a fedvtc-edge bundle"),
        ({"schema": 2}, "schema 2, expected 1"),
        ({"schema": 0}, "schema 0, expected 1"),
        ({"schema": None}, "schema None, expected 1"),
        ({"schema": "1"}, "schema 1, expected 1"),
        ({"schema": 1.0}, "schema 1.0, expected 1"),
        ({"schema": True}, "schema True, expected 1"),
        ({"schema": ["x" * 10_000]}, r"schema \['x{38}, expected 1"),
        ({"client": "../client-00"}, "client: "),
        ({"client": ".hidden"}, "client: "),
        ({"client": "a\nb"}, "client: "),
        ({"client": "a\n"}, "client: "),
        ({"client": ""}, "client: "),
        ({"client": "x" * 65}, "client: "),
        ({"run": "5A" * 32}, "run: "),
        ({"run": HASH + "\n"}, "run: "),
        ({"revision": -1}, "revision: "),
        ({"revision": 1.0}, "revision: "),
        ({"revision": True}, "revision: "),
        ({"classes": ["one"]}, "classes: "),
        ({"classes": "ab"}, "classes: "),
        ({"classes": ["a", ""]}, "classes.1: "),
        ({"classes": ["a", "x" * 201]}, "classes.1: "),
        ({"classes": ["a", "\x1b[2J"]}, "is no class name"),
        ({"classes": ["a", "evil\u202egnp"]}, "is no class name"),
        ({"classes": ["a", 3]}, "classes.1: "),
        ({"classes": ["a"] * 10_001}, "classes: "),
        ({"latent": 0}, "latent: "),
        ({"latent": 2.0}, "latent: "),
        ({"latent": "2"}, "latent: "),
        ({"latent": 2**20}, "latent: "),
        ({"anchor": 0}, "anchor: "),
        ({"noise": {"algorithm": "numpy.random.rand"}}, "noise.algorithm: "),
        ({"privacy": {"mode": "none", "epsilon": "1"}}, "privacy.epsilon: "),
        ({"int8": {"classifier": 5}}, "int8.classifier: "),
        ({"int8": {"classifier": {"agreement": "all"}}}, "int8.classifier.agreement"),
        ({"tools": {"numpy": 2}}, "tools.numpy: "),
        ({"files": []}, "files: "),
        ({"files": {}}, "graphs: classifier fp32"),
        ({"graphs": {}}, "no classifier"),
        ({"graphs": {"decoder": {}}}, "graphs.decoder"),
    ],
)
def test_impossible_values_are_refused_by_name(
    document: Make, change: Document, reason: str
) -> None:
    with pytest.raises(VerificationError, match=reason) as error:
        parsed(document() | change)
    assert str(error.value).startswith(MANIFEST)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("key", ["client", "run", "classes", "image", "files", "graphs", "privacy"])
def test_a_missing_key_is_named(document: Make, key: str) -> None:
    made = document()
    del made[key]
    with pytest.raises(VerificationError, match=f"{MANIFEST}: {key}: "):
        parsed(made)


@pytest.mark.parametrize(
    "name",
    [
        "../classifier.onnx",
        "..",
        ".",
        "",
        "/etc/passwd",
        "sub/classifier.onnx",
        "sub\\classifier.onnx",
        "C:classifier.onnx",
        ".classifier.onnx",
        "classifier.onnx\n",
        "classifier.onnx.data.data",
        "Classifier.onnx",
        "classifier.int4.onnx",
        "classifierxonnx",
        "manifest.json",
        "manifest.sig",
        "statistics.safetensors/",
        "model.pt",
        "x" * 5000,
    ],
)
def test_no_other_file_can_be_listed(document: Make, name: str) -> None:
    made = document()
    made["files"][name] = {"sha256": HASH, "size": 1}
    with pytest.raises(VerificationError, match="is no file of a bundle") as error:
        parsed(made)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "entry",
    [
        {"sha256": HASH},
        {"size": 1},
        {"sha256": HASH[1:], "size": 1},
        {"sha256": "A" * 64, "size": 1},
        {"sha256": HASH + "\n", "size": 1},
        {"sha256": HASH, "size": -1},
        {"sha256": HASH, "size": 1.0},
        {"sha256": HASH, "size": True},
        {"sha256": HASH, "size": 2**33 + 1},
        None,
    ],
)
def test_a_hash_and_a_size_have_one_form(document: Make, entry: Any) -> None:
    made = document()
    made["files"]["classifier.onnx"] = entry
    with pytest.raises(VerificationError, match=r"files\.classifier\.onnx"):
        parsed(made)


@pytest.mark.parametrize(
    ("variants", "reason"),
    [
        ({"int8": "classifier.int8.onnx"}, "no fp32 variant"),
        ({"fp32": "classifier.int8.onnx"}, "expected a file"),
        ({"fp32": "statistics.safetensors"}, "expected a file"),
        ({"fp32": "../classifier.onnx"}, "expected a file"),
        ({"fp32": "classifier.onnx", "fp16": "classifier.onnx"}, "variants.fp16"),
    ],
)
def test_a_variant_is_the_file_of_its_name(
    document: Make, variants: dict[str, str], reason: str
) -> None:
    made = document()
    made["graphs"]["classifier"]["variants"] = variants
    with pytest.raises(VerificationError, match=reason):
        parsed(made)


@pytest.mark.parametrize("size", ["8", True, 8.0, None, "M"])
def test_a_shape_is_of_numbers_and_the_batch(document: Make, size: Any) -> None:
    made = document()
    made["graphs"]["classifier"]["inputs"]["images"]["shape"][1] = size
    with pytest.raises(VerificationError, match=r"images\.shape\.1"):
        parsed(made)


@pytest.mark.parametrize(
    ("graph", "change", "reason"),
    [
        ("synthesizer", {"noise": None}, "noise is missing"),
        ("anchor", {"anchor": None}, "its width is missing"),
        ("synthesizer", {"files": {}}, "statistics.safetensors is missing"),
        ("anchor", {"files": {}}, "statistics.safetensors is missing"),
    ],
)
def test_a_graph_needs_its_inputs(
    document: Make, graph: str, change: Document, reason: str
) -> None:
    names = ("classifier.onnx", "classifier.int8.onnx", f"{graph}.onnx", "statistics.safetensors")
    made = document(dict.fromkeys(names, b""), noise=NOISE)
    other = {"variants": {"fp32": f"{graph}.onnx"}, "opset": 20, "ir": 10}
    inputs, outputs = ports(
        graph, parsed(made).image, classes=len(made["classes"]), latent=made["latent"], anchor=4
    )
    made["anchor"] = 4
    made["graphs"][graph] = other | {
        "inputs": {name: port.document() for name, port in inputs.items()},
        "outputs": {name: port.document() for name, port in outputs.items()},
    }
    assert graph in parsed(made).graphs
    if "files" in change:
        del made["files"]["statistics.safetensors"]
        change = {}
    with pytest.raises(VerificationError, match=reason):
        parsed(made | change)


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a": NaN}', "not JSON: NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "too large"),
        (b'{"kind": 1, "kind": 1}', "twice"),
        (b'{"files": {"a": 1, "b": 2, "a": 1}}', "twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (nested(100_000), "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not one of"),
        (b"null", "not one of"),
        (b"{}", "not one of"),
        (b'"fedvtc-edge bundle"', "not one of"),
        (b"{} {}", "not JSON"),
    ],
)
def test_what_is_not_one_json_object_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(VerificationError, match=reason):
        Manifest.from_bytes(data)


@pytest.mark.parametrize("key", ["accuracy", "parity"])
@pytest.mark.parametrize("depth", [300, 900])
def test_what_is_too_deep_to_be_written_again_is_refused(
    document: Make, key: str, depth: int
) -> None:
    text = json.dumps(document(**{key: "HERE"})).encode()
    with pytest.raises(VerificationError, match=f"{MANIFEST}|depth|recursion"):
        Manifest.from_bytes(text.replace(b'"HERE"', nested(depth)))


@hypothesis_settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_value_anywhere_is_believed_or_refused(document: Make, data: st.DataObject) -> None:
    """Never another error than VerificationError; what is believed can be written."""
    made = document()
    place = made
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    place[key] = data.draw(
        plain | st.lists(plain, max_size=3) | st.dictionaries(st.text(max_size=9), plain)
    )
    try:
        manifest = parsed(made)
    except VerificationError:
        return
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
