"""A client's class prior: in a bundle only when asked for, checked, used, kept and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedvtc_edge.attacks.bundle.reading import pieces_of, read_files
from fedvtc_edge.attacks.bundle.scan import Leak, scan_pieces
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import BundleError, ParityError, RunError, VerificationError
from fedvtc_edge.export import Bundle, verify
from fedvtc_edge.export.exporting import Builder, export
from fedvtc_edge.export.manifest import Manifest
from fedvtc_edge.export.refreshing import refresh
from fedvtc_edge.export.task import task_of
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.statistics.class_prior import accuracy_on, class_prior, log_prior, recalls

Make = Callable[..., dict[str, Any]]
Call = Callable[..., Any]
CLIENT = "client-01"


@pytest.fixture(scope="module")
def with_prior(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One client's bundle with its prior; read it only."""
    out = tmp_path_factory.mktemp("prior") / "out"
    export(tiny_run, out, clients=[CLIENT], with_prior=True)
    return out / CLIENT


def parsed(document: dict[str, Any]) -> Manifest:
    return Manifest.from_bytes(json.dumps(document).encode())


def test_what_the_manifest_holds_is_the_smoothed_share_of_each_class(
    tiny_run: Path, with_prior: Path
) -> None:
    finished = FinishedRun.open(tiny_run)
    counts = finished.record(CLIENT).class_counts
    assert counts is not None
    written = json.loads((with_prior / "manifest.json").read_text())["prior"]
    assert written == class_prior(counts).tolist()
    assert verify(with_prior).manifest.prior == tuple(written)


def test_it_is_in_no_bundle_that_nobody_asked_it_for(bundle_folder: Path) -> None:
    assert "prior" not in json.loads((bundle_folder / "manifest.json").read_text())
    with pytest.raises(BundleError, match="does not hold its client's prior") as caught:
        Bundle.open(bundle_folder).classify(np.zeros((1, 8, 8, 1), np.uint8), prior="own")
    assert "--with-prior" in caught.value.hint


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_device_at_home_is_the_run_at_home(
    tiny_run: Path, with_prior: Path, calibrated: bool
) -> None:
    finished = FinishedRun.open(tiny_run)
    task, record = task_of(finished), finished.record(CLIENT)
    assert record.class_counts is not None
    opened = Bundle.open(with_prior, variant="fp32")
    uniform = opened.classify(task.x_test, calibrated=calibrated)
    home = opened.classify(task.x_test, calibrated=calibrated, prior="own")
    np.testing.assert_array_equal(home, uniform + log_prior(record.class_counts))
    found = accuracy_on(record.class_counts, recalls(home.argmax(1), task.y_test, task.classes))
    expected = record.accuracy_home_calibrated if calibrated else record.accuracy_home
    assert found == pytest.approx(expected, abs=0.02)
    accuracy = opened.manifest.accuracy
    what = "calibrated_home" if calibrated else "classifier_home"
    assert (accuracy[what], accuracy[f"{what}_run"]) == (pytest.approx(found), expected)


def test_an_accuracy_at_home_that_is_not_the_runs_ends_the_export(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedvtc_edge.export.writing.recalls", lambda *_: np.full(10, 0.0))
    with pytest.raises(ParityError, match="classifier_home: 0"):
        export(tiny_run, tmp_path / "out", clients=[CLIENT], with_prior=True)
    assert not list((tmp_path / "out").iterdir())


def test_unknown_priors_are_refused(with_prior: Path) -> None:
    wrong: Any = "mine"
    with pytest.raises(BundleError, match="prior 'mine'"):
        Bundle.open(with_prior).classify(np.zeros((1, 8, 8, 1), np.uint8), prior=wrong)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ([0.5, 0.5], "2 classes, expected 3"),
        ([0.5, 0.3, 0.1], "adds up to 0.9"),
        ([0.5, 0.5, 0.0], "above 0 and below 1"),
        ([1.5, 0.2, -0.7], "prior"),
        ([0.5, 0.3, "0.2"], "prior"),
        (0.5, "prior"),
        ({"0": 1.0}, "prior"),
        ([0.25] * 20_000, "prior"),
    ],
)
def test_impossible_priors_are_not_believed(document: Make, prior: Any, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        parsed(document(prior=prior))


def test_a_sound_one_is_read_and_written_as_it_was(document: Make) -> None:
    made = document(prior=[0.5, 0.25, 0.25])
    assert json.loads(parsed(made).to_bytes())["prior"] == [0.5, 0.25, 0.25]
    assert "prior" not in json.loads(parsed(document(prior=None)).to_bytes())


def test_a_changed_prior_is_a_changed_bundle(
    with_prior: Path, tiny_run: Path, tmp_path: Path
) -> None:
    """The signature covers it, and an export with other options does not pass for this one."""
    finished = FinishedRun.open(tiny_run)
    data = load_dataset(finished.config.data)
    asked, plain = (
        Builder(finished, data, int8=False, shared=tmp_path, with_prior=w) for w in (True, False)
    )
    manifest = verify(with_prior).manifest
    assert asked.would_be(manifest, CLIENT)
    assert not plain.would_be(manifest, CLIENT)
    assert not asked.would_be(replace(manifest, prior=(0.1,) * 10), CLIENT)


def test_a_refresh_keeps_it_and_forgets_what_was_measured_of_older_statistics(
    with_prior: Path, tiny_run: Path, tmp_path: Path
) -> None:

    folder = Path(shutil.copytree(with_prior, tmp_path / CLIENT))
    before = verify(folder).manifest
    (published,) = tiny_run.rglob("statistics.safetensors")
    refresh(folder, published)
    after = verify(folder).manifest
    assert after.prior == before.prior
    assert {key for key in before.accuracy if key not in after.accuracy} == {
        "calibrated",
        "calibrated_run",
        "calibrated_home",
        "calibrated_home_run",
    }


def test_an_audit_names_it(with_prior: Path, bundle_folder: Path) -> None:
    what = "how many examples of which class the client had (export --with-prior)"
    leak = Leak("manifest.json", "prior", "statistics", what, by_design=True)

    def scanned(folder: Path) -> list[Leak]:
        return scan_pieces(pieces_of(read_files(folder)), names=[])

    assert leak in scanned(with_prior)
    assert leak not in scanned(bundle_folder)


def test_under_a_guarantee_for_bundles_it_is_refused(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = FinishedRun.open(tiny_run)
    data = load_dataset(finished.config.data)
    covered = type("Covered", (), {"protects_models": True})
    monkeypatch.setattr("fedvtc_edge.export.exporting.mechanism_of", lambda _: covered)
    Builder(finished, data, int8=False, shared=tmp_path)
    with pytest.raises(RunError, match="covers the bundle") as caught:
        Builder(finished, data, int8=False, shared=tmp_path, with_prior=True)
    assert "--with-prior" in caught.value.hint


def test_on_the_command_line(
    call: Call, with_prior: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    words = ("--top", "10", "--variant", "fp32", "--json")
    shares = {}
    for prior in ("uniform", "own"):
        answer = call("classify", with_prior, "a.png", *words, "--prior", prior)
        assert answer.code == 0
        document = json.loads(answer.out)
        assert document["prior"] == prior
        top = document["results"][0]["top"]
        shares[prior] = np.array([e["probability"] for e in sorted(top, key=lambda e: e["label"])])
    moved = shares["uniform"] * np.array(verify(with_prior).manifest.prior)
    np.testing.assert_allclose(shares["own"], moved / moved.sum(), rtol=1e-4)
    call("classify", bundle_folder, "a.png", "--prior", "own").refuses(
        "does not hold its client's prior", "--with-prior"
    )
    call("classify", with_prior, "a.png", "--prior", "mine").refuses("'mine'", "classify --help")
