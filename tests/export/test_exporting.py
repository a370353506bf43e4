"""From a run to bundles: all or nothing per client, the same bytes, and safe to cut off."""

from __future__ import annotations

import errno
import getpass
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from fedvtc_edge import run
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ConfigError, DataError, ParityError, RunError
from fedvtc_edge.export import Bundle, exporting, verify
from fedvtc_edge.export.exporting import Builder, export
from fedvtc_edge.export.manifest import Manifest
from fedvtc_edge.models import register
from fedvtc_edge.plugins import ARCHITECTURES
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.sealing import signing

Tiny = Callable[..., Config]
IDS = ["client-00", "client-01", "client-02"]


def digests(folder: Path) -> dict[str, str]:
    """Every name and byte below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in folder.rglob("*")
    }


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def quick_build(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles are copied from an earlier export instead of made."""

    def build(self: Builder, client: str, folder: Path) -> Manifest:
        manifest = Manifest.from_bytes((exported / client / "manifest.json").read_bytes())
        for name in manifest.files:
            shutil.copyfile(exported / client / name, folder / name)
        return manifest

    monkeypatch.setattr(Builder, "build", build)


# What comes out.


def test_one_bundle_per_client(
    tiny_run: Path, exported: Path, export_document: dict[str, Any], all_finite: Any
) -> None:
    finished = FinishedRun.open(tiny_run)
    data = load_dataset(finished.config.data)
    assert sorted(path.name for path in exported.iterdir()) == IDS == list(finished.clients)
    assert [entry["client"] for entry in export_document["bundles"]] == IDS
    for entry in export_document["bundles"]:
        folder, record = exported / entry["client"], finished.record(entry["client"])
        assert entry["bundle"] == str(folder)
        assert {path.name for path in folder.iterdir()} == {
            "manifest.json",
            "statistics.safetensors",
            *(f"{name}.onnx" for name in ("classifier", "synthesizer", "anchor")),
            *(f"{name}.int8.onnx" for name in ("classifier", "synthesizer")),
        }
        manifest = verify(folder).manifest
        for key in ("accuracy", "parity", "int8"):
            assert entry[key] == getattr(manifest, key)
        sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
        assert entry["size_bytes"] == {
            name.removesuffix(".onnx"): size for name, size in sizes.items() if ".onnx" in name
        }
        assert entry["total_bytes"] == sum(sizes.values()) - sizes["manifest.json"]

        # The accuracy is the run's to the last image, and what the bundle really reaches.
        bundle = Bundle.open(folder, variant="fp32")
        for key, calibrated in (("classifier", False), ("calibrated", True)):
            chosen = bundle.classify(data.x_test, calibrated=calibrated).argmax(1)
            reached = float((chosen == data.y_test).mean())
            expected = record.accuracy_calibrated if calibrated else record.accuracy
            assert entry["accuracy"][key] == entry["accuracy"][f"{key}_run"] == expected == reached
        small = Bundle.open(folder, variant="int8").classify(data.x_test).argmax(1)
        assert entry["accuracy"]["classifier_int8"] == float((small == data.y_test).mean())
        assert entry["int8"]["classifier"]["agreement"] > 0.9
        assert entry["int8"]["synthesizer"]["psnr_db"] > 30
    assert export_document["evaluated_on"] == "test"
    assert export_document["signed_by"] is None
    assert all_finite(export_document)
    json.dumps(export_document, allow_nan=False)


def test_no_file_tells_where_it_was_made(tiny_run: Path, exported: Path) -> None:
    words = [str(tiny_run), str(exported), tiny_run.parent.name, exported.parent.name, "pytest-of"]
    words += [str(Path.home()) + "/", sys.prefix, "site-packages", "Traceback", "fedvtc_edge."]
    words += [f"/{getpass.getuser()}", "stack_trace", "namespace"]
    for path in exported.rglob("*.*"):
        data = path.read_bytes()
        assert not [word for word in words if word.encode() in data], path.name
        assert not re.findall(rb"\w{3,}\.py\b", data), path.name


def test_bundles_that_are_there_are_kept(
    tiny_run: Path,
    exported: Path,
    export_document: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made_again(*_: Any) -> None:
        raise AssertionError("a bundle was made again")

    seen: list[str] = []

    class Watch(SilentProgress):
        def start(self, total: int, what: str) -> None:
            seen.append(f"{total} {what}")

        def advance(self, note: str = "") -> None:
            seen.append(note)

        def close(self) -> None:
            seen.append("closed")

    monkeypatch.setattr(Builder, "build", made_again)
    before = stamps(exported)
    assert export(tiny_run, exported, int8=True, progress=Watch()) == export_document
    assert seen == ["3 export", *IDS, "closed"]
    two = export(tiny_run, exported, int8=True, clients=["client-02", "client-00", "client-02"])
    assert [entry["client"] for entry in two["bundles"]] == ["client-02", "client-00"]
    assert stamps(exported) == before


@pytest.mark.slow
def test_killed_and_given_again_it_comes_to_the_same_bytes(
    tiny_run: Path, exported: Path, tmp_path: Path
) -> None:
    """The first bundle is of another process: two processes write the same bytes."""
    out = tmp_path / "out"
    words = [sys.executable, "-m", "fedvtc_edge", "export", str(tiny_run), "--out", str(out)]
    environment = os.environ | {"PYTHONHASHSEED": "7", "TMPDIR": str(tmp_path)}
    child = subprocess.Popen(
        [*words, "--int8", "--quiet"], env=environment, stdout=subprocess.DEVNULL, cwd=tmp_path
    )
    try:
        until = time.monotonic() + 300
        scratch: list[Path] = []
        while not (out / "client-00").exists() or not scratch:
            assert child.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
            scratch = list(out.glob(".client-01.new-*"))
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (out / "client-01").exists()
    assert scratch[0].exists(), "what a kill leaves"
    before = stamps(out / "client-00")
    export(tiny_run, out, int8=True, clients=IDS[:2])
    assert stamps(out / "client-00") == before
    assert sorted(os.listdir(out)) == IDS[:2]
    for client in IDS[:2]:
        assert digests(out / client) == digests(exported / client)


@pytest.mark.usefixtures("quick_build")
def test_signed(tiny_run: Path, tmp_path: Path) -> None:
    key, other = signing.generate(), signing.generate()
    document = export(tiny_run, tmp_path / "out", clients=IDS[:1], int8=True, signing_key=key)
    assert document["signed_by"] == signing.fingerprint(key.public_key())
    bundle = tmp_path / "out" / "client-00"
    assert verify(bundle, key.public_key()).signer == document["signed_by"]
    before = stamps(bundle)
    export(tiny_run, tmp_path / "out", clients=IDS[:1], int8=True, signing_key=key)
    for stranger in (None, other):
        with pytest.raises(RunError, match="client-00 is "):
            export(tiny_run, tmp_path / "out", clients=IDS[:1], int8=True, signing_key=stranger)
    assert stamps(bundle) == before


# Where it may not write.


def other_bundle(out: Path) -> None:
    path = out / "client-02" / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"run": "0" * 64}))


CONTENTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (lambda out: (out / "letter").write_text("dear"), "is not empty: it holds letter"),
    "a hidden file": (lambda out: (out / ".git").mkdir(), "it holds .git"),
    "a stranger": (lambda out: (out / "client-03").mkdir(), "it holds client-03"),
    "another run": (other_bundle, "client-02 is a bundle of another run, client or set"),
    "swapped": (
        lambda out: shutil.copytree(out / "client-01", out / "client-02", dirs_exist_ok=True),
        "client-02 is a bundle of another run, client or set",
    ),
    "a changed bundle": (
        lambda out: (out / "client-02" / "anchor.onnx").write_bytes(b"x"),
        "client-02 is not a bundle of this export: anchor.onnx: 1 bytes",
    ),
    "half a bundle": (
        lambda out: (out / "client-02" / "manifest.json").unlink(),
        "client-02 is not a bundle of this export",
    ),
    "a file of that name": (
        lambda out: (shutil.rmtree(out / "client-02"), (out / "client-02").touch()),
        "client-02 is not a bundle of this export",
    ),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_a_folder_that_holds_something_else(
    tiny_run: Path, exported: Path, tmp_path: Path, what: str
) -> None:
    out = Path(shutil.copytree(exported, tmp_path / "out"))
    shutil.rmtree(out / "client-00")  # there is something to do before the refusal
    spoil, message = CONTENTS[what]
    spoil(out)
    before, times = digests(out), stamps(out)
    with pytest.raises(RunError, match=re.escape(message)) as refused:
        export(tiny_run, out, int8=True)
    assert "new folder for --out" in refused.value.hint
    assert (digests(out), stamps(out)) == (before, times)


def test_another_set_of_options(tiny_run: Path, exported: Path) -> None:
    before = stamps(exported)
    with pytest.raises(RunError, match="client-00 is a bundle of another run, client or set of"):
        export(tiny_run, exported)
    assert stamps(exported) == before


def test_the_run_itself_is_no_place_for_bundles(tiny_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = digests(folder)
    for out in (folder, folder / "clients", folder / "server"):
        with pytest.raises(RunError):
            export(folder, out)
    assert digests(folder) == before


def test_a_place_that_cannot_be_written(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file is a file"):
        export(tiny_run, tmp_path / "file")
    with pytest.raises(RunError, match=r"cannot write .*below: Not a directory") as refused:
        export(tiny_run, tmp_path / "file" / "below")
    assert "another --out" in refused.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_client_that_does_not_exist(tiny_run: Path, tmp_path: Path) -> None:
    for client in ("client-09", "../clients", ""):
        with pytest.raises(RunError, match="has no client") as refused:
            export(tiny_run, tmp_path / "out", clients=["client-00", client])
        assert "client-00 to client-02" in refused.value.hint
    assert not (tmp_path / "out").exists()


# Whatever goes wrong, no half bundle.


@pytest.fixture
def spoilt(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_an_accuracy_that_is_not_the_runs(spoilt: Path, tmp_path: Path) -> None:
    path = spoilt / "summary.json"
    summary = json.loads(path.read_text())
    summary["clients"][0]["accuracy"] += 0.05
    path.write_text(json.dumps(summary))
    with pytest.raises(ParityError, match=r"classifier: .* the run's summary says") as refused:
        export(spoilt, tmp_path / "out")
    assert refused.value.exit_code == 1
    assert digests(tmp_path / "out") == {}


@pytest.mark.usefixtures("quick")
def test_a_data_set_that_is_no_longer_the_runs(
    tiny: Tiny, archive: Callable[..., str], tmp_path: Path
) -> None:
    path = Path(archive(np.arange(60) % 4))
    config = tiny(
        data={"name": str(path)},
        clients={"count": 2, "architectures": ["mlp"]},
        method={"rounds": 1, "latent": 4, "anchor": 6},
    )
    run(config, out=tmp_path / "run")
    with np.load(path) as arrays:
        stored = dict(arrays)
    out = tmp_path / "out"

    np.savez(path, **stored | {"y_test": (stored["y_test"] + 1) % 4})
    with pytest.raises(ParityError, match="on the evaluation images, the run's summary says"):
        export(tmp_path / "run", out)
    assert digests(out) == {}

    names = np.array([f"class {label}" for label in range(5)])
    np.savez(path, **stored | {"class_names": names})
    with pytest.raises(RunError, match=r"shape \(4, 6\) do not fit 5 classes of 6 features"):
        export(tmp_path / "run", out)

    large = {key: value.repeat(2, 1).repeat(2, 2) for key, value in stored.items() if "x_" in key}
    np.savez(path, **stored | large)
    with pytest.raises(RunError, match="does not hold this client's classifier"):
        export(tmp_path / "run", out)

    path.unlink()
    with pytest.raises(DataError, match="made-8-1"):
        export(tmp_path / "run", out)
    assert digests(out) == {}


PROGRAMS = {
    "kill -SEGV $$": "exit code -11",
    "exit 3": "exit code 3",
    "echo first >&2; echo BundleError: no >&2; exit 1": "BundleError: no",
    "exec sleep 60": "it was not done after 0.5 s",
}


@pytest.mark.usefixtures("quick_build")
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_fresh_process_that_fails(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{program}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setattr(exporting, "_PATIENCE_S", 0.5 if "sleep" in program else 60)
    with pytest.raises(ParityError, match="could not use the bundle") as refused:
        export(tiny_run, tmp_path / "out", int8=True)
    assert str(refused.value).endswith(PROGRAMS[program])
    assert refused.value.exit_code == 1
    assert digests(tmp_path / "out") == {}


@pytest.mark.usefixtures("quick_build")
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()]
)
def test_cut_off_in_the_second_bundle(
    tiny_run: Path,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    real, out = exporting.write_manifest, tmp_path / "out"

    def fail_in_the_second(folder: Path, manifest: Manifest, key: Any) -> None:
        if manifest.client == "client-01":
            raise error
        real(folder, manifest, key)

    with monkeypatch.context() as patched:
        patched.setattr(exporting, "write_manifest", fail_in_the_second)
        with pytest.raises(type(error)):
            export(tiny_run, out, int8=True)
    assert [path.name for path in out.iterdir()] == ["client-00"]
    (out / ".client-01.new-abc").mkdir()  # as kill -9 leaves it
    (out / ".client-01.new-abc" / "classifier.onnx").write_bytes(b"half")
    export(tiny_run, out, int8=True)
    assert digests(out) == digests(exported)


def test_a_graph_that_differs_leaves_nothing(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedvtc_edge.export import writing

    plain = writing._run
    monkeypatch.setattr(writing, "_run", lambda *given: plain(*given) * np.float32(1.001))
    with pytest.raises(ParityError, match=r"classifier\.onnx, random images: .* relative error"):
        export(tiny_run, tmp_path / "out", clients=["client-01"])
    assert digests(tmp_path / "out") == {}


# A user's own architecture, with weights that lie beside the graph.


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_an_architecture_of_ones_own(
    tiny: Tiny, archive: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ARCHITECTURES, "_known", dict(ARCHITECTURES._known))
        register("wide")(
            lambda shape: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(32))
        )
        config = tiny(
            data={"name": archive(np.arange(40) % 4, size=64, channels=3)},
            clients={"count": 2, "architectures": ["wide"]},
            method={"rounds": 1, "latent": 4, "anchor": 6},
            training={"finetune_from": 1},
        )
        run(config, out=tmp_path / "run")
        document = export(tmp_path / "run", tmp_path / "out", clients=["client-01"], int8=True)
    (entry,) = document["bundles"]
    folder = tmp_path / "out" / "client-01"
    assert entry["architecture"] == "wide"
    assert "classifier.onnx.data" in {path.name for path in folder.iterdir()}
    assert entry["size_bytes"]["classifier"] > 4 * 64 * 64 * 3 * 32
    assert entry["size_bytes"]["classifier.int8"] < entry["size_bytes"]["classifier"] / 3
    bundle, images = Bundle.open(folder), load_dataset(config.data).x_test
    assert bundle.classify(images).shape == (8, 4)
    assert bundle.synthesize([0, 3], 1).shape == (2, 64, 64, 3)
    with pytest.raises(ConfigError, match="unknown architecture 'wide'"):
        export(tmp_path / "run", tmp_path / "elsewhere")
    assert digests(tmp_path / "elsewhere") == {}


@pytest.mark.parametrize("moments", ["covariance", "diagonal"])
def test_a_private_run_is_exported_with_its_claim(
    tmp_path: Path, tiny: Any, quick: None, moments: str, call: Any
) -> None:
    """The release may be narrower than method.anchor: the anchor must be as wide."""
    config = tiny(
        method={"anchor": 48, "rounds": 1, "moments": moments},
        privacy={"mode": "anchored", "epsilon": 2.0, "population": 200},
    )
    summary = run(config, out=tmp_path / "run").summary
    answer = call("export", "run", "--out", "out", "--client", "client-01", "--quiet")
    assert answer.err == (
        "fedvtc-edge: warning: epsilon 2 covers each client's upload, not the models that stay "
        "with it; classifier and decoder were trained without noise: treat bundles as the "
        "clients' data\n"
    )
    bundle = Bundle.open(tmp_path / "out" / "client-01")
    assert bundle.manifest.privacy.epsilon == summary["epsilon"] == 2.0
    assert bundle.manifest.privacy.unit == summary["privacy_unit"]
    assert bundle.manifest.privacy.relation == "add/remove"
    assert bundle.manifest.privacy.covers == summary["privacy_covers"]
    assert bundle.manifest.privacy.covers_models is False
    assert bundle.manifest.anchor == 32
    assert bundle.manifest.accuracy["calibrated"] == summary["clients"][1]["accuracy_calibrated"]
