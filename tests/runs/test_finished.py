"""A finished run read back: whole, or refused by name; a run directory may come from anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fedvtc_edge import run
from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ConfigError, RunError
from fedvtc_edge.models import ImageShape
from fedvtc_edge.plugins import ARCHITECTURES
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.runs.directory import RunDirectory, as_toml
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.workflows.run import RunResult

Tiny = Callable[..., Config]
SHAPE, CLASSES = ImageShape(8, 1), 10


@pytest.fixture(scope="module")
def result(
    tiny: Tiny,
    tmp_path_factory: pytest.TempPathFactory,
    quickly: Callable[[], AbstractContextManager[None]],
) -> RunResult:
    with quickly():
        return run(tiny(), out=tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def folder(result: RunResult, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    assert result.directory is not None
    return Path(shutil.copytree(result.directory, tmp_path / "run"))


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps(change(document) or document))


def refuses(call: Callable[[], object], message: str, hint: str) -> None:
    with pytest.raises(RunError) as refused:
        call()
    assert message in str(refused.value)
    assert hint in refused.value.hint
    assert refused.value.exit_code == 2


def test_what_was_trained_is_read_back(folder: Path, result: RunResult, tiny: Tiny) -> None:
    finished = FinishedRun.open(folder)
    assert finished.config == tiny()
    assert finished.summary.document() == result.summary
    assert finished.clients == ("client-00", "client-01", "client-02")
    data = load_dataset(finished.config.data)
    images = torch.from_numpy(data.x_test).permute(0, 3, 1, 2) / 255
    for record in result.summary["clients"]:
        client = record["id"]
        assert finished.record(client).document() == record
        model = finished.classifier(client, SHAPE, CLASSES)
        assert not model.training
        with torch.no_grad():
            chosen = model(images).argmax(1).numpy()
        assert float((chosen == data.y_test).mean()) == record["accuracy"]
        decoder = finished.decoder(client, SHAPE)
        assert decoder is not None
        stored = load_file(folder / "clients" / client / "decoder.safetensors")
        assert all(torch.equal(value, stored[key]) for key, value in decoder.state_dict().items())
    with np.load(folder / "samples.npz") as samples, torch.no_grad():
        assert decoder(torch.zeros(1, 8)).shape == (1, 1, 8, 8)
        assert samples["painted"].shape[0] == 3
    anchor, published = finished.anchor(SHAPE), finished.published()
    assert anchor is not None
    assert published is not None
    assert published.mean.shape == (CLASSES, anchor.width) == (10, 12)
    refuses(lambda: finished.record("client-03"), "no client 'client-03'", "client-00 to client-02")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("method", "decoder", "anchor", "published"),
    [
        ({"share": "features"}, True, False, True),
        ({"name": "fedproto"}, False, False, True),
        ({"name": "local"}, False, False, False),
    ],
)
def test_what_a_method_does_not_have(
    tiny: Tiny,
    tmp_path: Path,
    method: dict[str, str],
    decoder: bool,
    anchor: bool,
    published: bool,
) -> None:
    run(tiny(method={**method, "rounds": 1}), out=tmp_path / "run")
    finished = FinishedRun.open(tmp_path / "run")
    assert (finished.decoder("client-00", SHAPE) is not None) == decoder
    assert (finished.anchor(SHAPE) is not None) == anchor
    assert (finished.published() is not None) == published


@pytest.mark.usefixtures("quick")
def test_a_digest_tells_settings_apart_and_not_repetitions(
    result: RunResult, tiny: Tiny, tmp_path: Path
) -> None:
    assert result.directory is not None
    first = FinishedRun.open(result.directory)
    moved = Path(shutil.copytree(result.directory, tmp_path / "elsewhere"))
    assert FinishedRun.open(moved).digest == first.digest
    run(tiny(seed=1, method={"rounds": 1}), out=tmp_path / "other")
    assert FinishedRun.open(tmp_path / "other").digest != first.digest


# Not a run, not one of ours, not finished.


def test_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        refuses(lambda path=path: FinishedRun.open(path), "holds no run", "run --out")


@pytest.mark.usefixtures("quick")
def test_an_unfinished_run(tiny: Tiny, tmp_path: Path) -> None:
    class Stop(SilentProgress):
        def advance(self, note: str = "") -> None:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(tiny(), out=tmp_path / "run", progress=Stop())
    refuses(lambda: FinishedRun.open(tmp_path / "run"), "is not finished", "--resume")


def test_a_run_of_another_version(folder: Path) -> None:
    rewrite(folder / "run.json", lambda made: made | {"version": "9.9"})
    refuses(lambda: FinishedRun.open(folder), "made by fedvtc-edge 9.9", "fedvtc-edge==9.9")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 0", "seed = 1", "was changed since the run"),
        ("seed = 0", "seed = -1", "seed = -1"),
        ("seed = 0", "seed = ", "is not TOML"),
        ("latent = 8", "latent = 16", "was changed since the run"),
        ("seed = 0", "sed = 0", "unknown key sed"),
    ],
)
def test_edited_settings(folder: Path, old: str, new: str, message: str) -> None:
    path = folder / "config.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    refuses(lambda: FinishedRun.open(folder), message, "")


# A damaged or a forged summary.

BAD_IDS = ["../x", "a/b", "..", ".", "", ".hidden", "-x", "a b", "a\n", "x" * 65, "ü", "a\0", 3]
BAD_IDS += [None, ["a"], "client-01"]


@pytest.mark.parametrize("name", BAD_IDS, ids=repr)
def test_ids_that_could_be_paths(folder: Path, name: Any) -> None:
    rewrite(folder / "summary.json", lambda s: s["clients"][0].update(id=name))
    message = "its clients have no proper ids" if isinstance(name, str) else "clients.0.id is"
    refuses(lambda: FinishedRun.open(folder), message, "run it again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("schema"), "schema None, expected 1"),
        (lambda s: s.update(schema=2), "schema 2, expected 1"),
        (lambda s: s.pop("clients"), "clients is"),
        (lambda s: s.update(clients=[]), "no proper ids"),
        (lambda s: s.update(clients=None), "damaged"),
        (lambda s: s.update(clients={"id": "a"}), "damaged"),
        (lambda s: s.update(clients=["a"]), "damaged"),
        (lambda s: [s], "damaged"),
        (lambda s: "summary", "damaged"),
        (lambda s: 3, "damaged"),
        (lambda s: s.update(epsilon="4"), "epsilon is '4'"),
        (lambda s: s.update(privacy_unit=1), "privacy_unit is 1"),
        (lambda s: s.update(share=["anchored"]), "share is ['anchored']"),
        (lambda s: s["clients"][1].pop("architecture"), "no architecture"),
        (lambda s: s["clients"][1].update(architecture=None), "no architecture"),
        (lambda s: s["clients"][1].update(architecture=["mlp"]), "architecture is ['mlp']"),
        (lambda s: s["clients"][1].update(accuracy="0.5"), "clients.1.accuracy is '0.5'"),
        (lambda s: s["clients"][1].update(accuracy=True), "clients.1.accuracy is True"),
        (lambda s: s["clients"][1].update(accuracy=float("nan")), "NaN is not JSON"),
        (lambda s: s["clients"][1].update(accuracy_calibrated=1e999), "Infinity is not JSON"),
        (lambda s: s["clients"][1].update(accuracy=10**400), "an integer of 1329 bits"),
        (lambda s: s["clients"][1].update(device=4), "clients.1.device is 4"),
        (lambda s: s["clients"][1].update(class_counts={"0": 1}), "clients.1.class_counts is"),
        (lambda s: s["clients"][1].update(class_counts=["3"] * 10), "counts.0 is '3'"),
        (lambda s: s["clients"][1].update(class_counts=[-1] * 10), "counts.0 is -1"),
        (lambda s: s["clients"][1].update(class_counts=[[1]] * 10), "counts.0 is [1]"),
    ],
)
def test_a_summary_that_no_run_wrote(
    folder: Path, change: Callable[[Any], Any], message: str
) -> None:
    def changed(document: Any) -> Any:
        other = change(document)
        return other if other in ("summary", 3) or other == [document] else document

    rewrite(folder / "summary.json", changed)
    refuses(lambda: FinishedRun.open(folder), message, "run it again")
    refuses(lambda: FinishedRun.open(folder), f"{folder / 'summary.json'} is damaged: ", "")


# A served run, and the homes of its clients.


def served(folder: Path) -> FinishedRun:
    """The run as if its clients had been elsewhere, and had told nothing."""
    config = load_config(folder / "config.toml").replace(engine={"name": "flower"})
    (folder / "config.toml").write_bytes(as_toml(config))
    RunDirectory(folder, config).label()
    shutil.rmtree(folder / "clients")
    silent = [
        client.document() | {"class_counts": None}
        for client in FinishedRun.open(folder).summary.clients
    ]
    rewrite(folder / "summary.json", lambda s: s.update(engine="flower", clients=silent))
    return FinishedRun.open(folder)


def test_a_served_run_says_where_its_networks_are(folder: Path) -> None:
    finished = FinishedRun.open(folder)
    assert not finished.is_served
    finished.need_networks()
    finished = served(folder)
    assert finished.is_served
    refuses(finished.need_networks, "networks stayed with the clients", "export HOME")
    name = finished.clients[0]
    refuses(lambda: finished.classifier(name, SHAPE, CLASSES), "stayed with the clients", "HOME")
    refuses(lambda: finished.decoder(name, SHAPE), "stayed with the clients", "HOME")
    assert finished.published() is not None


def test_a_home_is_not_taken_for_a_served_run(folder: Path) -> None:
    served(folder)
    rewrite(folder / "summary.json", lambda s: s.update(home=True))
    finished = FinishedRun.open(folder)
    assert finished.is_home
    assert not finished.is_served


def test_a_home_whose_run_goes_on_is_not_ready(folder: Path) -> None:
    (folder / "home.json").write_text("{}")
    FinishedRun.open(folder)
    (folder / "summary.json").unlink()
    refuses(lambda: FinishedRun.open(folder), "whose run is not over", "fedvtc-edge join")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b"null", b'{"schema": 1}']
)
def test_a_summary_that_is_no_document(folder: Path, text: bytes) -> None:
    (folder / "summary.json").write_bytes(text)
    refuses(lambda: FinishedRun.open(folder), "summary.json is damaged", "run it again")


def test_a_summary_too_large_to_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedvtc_edge.runs.records._LARGEST", 100)
    refuses(lambda: FinishedRun.open(folder), "too large", "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def own(result: RunResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert result.directory is not None
    return Path(shutil.copytree(result.directory, tmp_path_factory.mktemp("fuzzed") / "run"))


@given(st.data(), json_values)
def test_any_value_anywhere_is_read_or_refused(
    own: Path, result: RunResult, data: st.DataObject, value: Any
) -> None:
    document = json.loads(json.dumps(result.summary))
    record = document["clients"][data.draw(st.integers(0, 2))]
    table = data.draw(st.sampled_from([document, record]))
    table[data.draw(st.sampled_from(sorted(table)))] = value
    (own / "summary.json").write_text(json.dumps(document))
    try:
        finished = FinishedRun.open(own)
    except RunError:
        return
    assert all(isinstance(name, str) and "/" not in name for name in finished.clients)
    for client in finished.clients:
        accuracy = finished.record(client).accuracy
        assert accuracy is None or abs(accuracy) < float("inf")


# Weights and statistics.


def save(path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, path)


def change(how: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        weights = {name: value.clone() for name, value in load_file(path).items()}
        how(weights)
        save_file(weights, path)

    return damage


def key(weights: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(weights) if name.endswith("weight"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "not safetensors": lambda path: path.write_bytes(b"x" * 500),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04\x95" + b"\0" * 90),
    "NaN": change(lambda w: w[key(w)].view(-1)[:1].fill_(torch.nan)),
    "infinite": change(lambda w: w[key(w)].view(-1)[:1].fill_(torch.inf)),
    "another shape": change(lambda w: w.update({key(w): torch.zeros(3, 3)})),
    "one too few": change(lambda w: w.pop(key(w))),
    "one too many": change(lambda w: w.update(more=torch.zeros(1))),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["classifier", "decoder"])
def test_damaged_weights(folder: Path, name: str, damage: Callable[[Path], object]) -> None:
    path = folder / "clients" / "client-01" / f"{name}.safetensors"
    damage(path)
    finished = FinishedRun.open(folder)
    read: dict[str, Callable[[str], object]] = {
        "classifier": lambda client: finished.classifier(client, SHAPE, CLASSES),
        "decoder": lambda client: finished.decoder(client, SHAPE),
    }
    message = f"{path} does not hold this client's {name}"
    refuses(lambda: read[name]("client-01"), message, "run it again")
    read[name]("client-00")


@pytest.mark.parametrize("shape", [ImageShape(12, 1), ImageShape(8, 3)])
def test_weights_of_other_images(folder: Path, shape: ImageShape) -> None:
    finished = FinishedRun.open(folder)
    refuses(lambda: finished.classifier("client-00", shape, CLASSES), "does not hold", "run it")
    refuses(lambda: finished.classifier("client-00", SHAPE, 7), "does not hold", "run it again")


@pytest.mark.parametrize("damage", [*list(DAMAGES)[:6], "another shape", "a folder"])
def test_damaged_statistics(folder: Path, damage: str) -> None:
    path = folder / "statistics.safetensors"
    keys = {"NaN": "mean", "another shape": "mean"}
    if damage in keys:
        weights = load_file(path)
        name = next(name for name in sorted(weights) if "mean" in name)
        value = weights[name].clone()
        value.view(-1)[0] = torch.nan
        weights[name] = value if damage == "NaN" else torch.zeros(3)
        save_file(weights, path)
    else:
        DAMAGES[damage](path)
    refuses(FinishedRun.open(folder).published, str(path), "run it again")


def test_an_architecture_that_is_not_registered_here(folder: Path) -> None:
    finished = FinishedRun.open(folder)
    name = finished.record("client-00").architecture
    with pytest.MonkeyPatch.context() as patched:
        patched.delitem(ARCHITECTURES._known, name)
        with pytest.raises(ConfigError, match=f"unknown architecture '{name}'"):
            finished.classifier("client-00", SHAPE, CLASSES)
