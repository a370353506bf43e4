"""Uploads of own features are attacked with the extractor as it was at the upload."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.attacks import auditing
from fedvtc_edge.attacks.adversary.staging import UploadStager
from fedvtc_edge.attacks.adversary.trials import AuditedRun
from fedvtc_edge.attacks.auditing import audit
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import RunError
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.workflows.run import run

Make = Callable[..., Path]

CASES: dict[str, dict[str, Any]] = {
    "few records": {"data": {"limit": 120, "min_samples": 2, "test_limit": 200}},
    "four clients, two rounds": {
        "data": {"limit": 160, "min_samples": 2, "test_limit": 200},
        "clients": {"count": 4},
        "method": {"rounds": 2},
    },
    "decoder too": {
        "data": {"limit": 160, "min_samples": 2, "test_limit": 200},
        "method": {"share": "features+decoder"},
    },
}


@pytest.fixture(scope="module")
def made(
    tiny: Callable[..., Config],
    quickly: Callable[[], AbstractContextManager[None]],
    once: Callable[..., Path],
) -> Make:
    def make(name: str) -> Path:
        changes = {key: dict(value) for key, value in CASES[name].items()}
        method = {"share": "features", "rounds": 1, **changes.pop("method", {})}
        # Enough fine-tuning to move g away from what it was at the upload.
        training = {"epochs": 2, "finetune_steps": 30, "finetune_from": 1, "finetune_last": 60}
        config = tiny(method=method, training=training, **changes)

        def finished(folder: Path) -> None:
            with quickly():
                run(config, out=folder)

        return once(f"own-features-{name.replace(' ', '-')}", finished)

    return make


def lab(path: Path) -> AuditedRun:
    finished = FinishedRun.open(path)
    return AuditedRun(finished, load_dataset(finished.config.data))


@pytest.mark.parametrize("name", CASES)
def test_single_records_are_exact_recovery(
    made: Make, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "STAGED", (1, 2))
    document = audit(made(name), attacks=["exact"], trials=20).document
    assert (document["verdict"], document["exit_code"]) == ("leak", 1)
    told = {
        (f["group"], f["staged"]): f
        for f in document["findings"]
        if f["metric"] == "recovered_exactly" and f["view"] == "server+device"
    }
    for key in (("n = 1", False), ("n = 1, staged", True)):
        assert told[key]["value"] == 1.0
        assert told[key]["passed"] is False
        assert "exact recovery" in told[key]["note"]
    assert any(
        "n = 1" in reason and "recovered_exactly" in reason for reason in document["reasons"]
    )


def test_the_extractor_that_was_kept_made_the_upload(made: Make) -> None:
    """And the one that the device holds in the end did not: an audit with that saw nothing."""
    audited = lab(made("four clients, two rounds"))
    assert isinstance(audited.run, FinishedRun)
    for seen in audited.observed():
        if seen.who != "server":
            continue
        last = audited.run.classifier(seen.client, audited.shape, audited.classes)
        present = seen.count > 0
        errors = []
        for extract in (audited.uploaded(seen.client), last.features):
            exact = audited.sums(extract, audited.holdings[seen.client], pooled=False)
            errors.append(np.abs(seen.mean - exact.mean)[present].max())
        assert errors[0] < 1e-4 < 0.02 < errors[1]


def test_one_two_and_five_records_are_staged(made: Make) -> None:
    stage = UploadStager(lab(made("four clients, two rounds")))
    clients = set()
    for count in (1, 2, 5):
        trials = stage.trials(count, 12)
        assert {trial.count for trial in trials} == {count}
        for trial in trials:
            view = trial.case.view
            clients.add(trial.client)
            assert (view.who, view.after, view.again) == ("server+device", None, ())
            assert view.std is not None
    assert clients <= {"client-00", "client-01", "client-02", "client-03"}
    assert len(clients) > 1


def test_an_extractor_that_made_no_such_upload_is_refused(made: Make, tmp_path: Path) -> None:
    path = Path(shutil.copytree(made("few records"), tmp_path / "run"))
    kept = path / "clients" / "client-00" / "uploaded.safetensors"
    shutil.copy(path / "clients" / "client-00" / "classifier.safetensors", kept)
    with pytest.raises(RunError, match="not what its kept extractor computes"):
        lab(path).observed()
    kept.unlink()
    with pytest.raises(RunError, match="client's uploaded"):
        lab(path).observed()


def test_a_run_grows_by_one_classifier_per_client(made: Make) -> None:
    """One classifier per client, of the last upload alone: a run grows by no more."""
    path = made("four clients, two rounds")
    sizes = {file.name: file.stat().st_size for file in (path / "clients/client-00").iterdir()}
    assert sizes["uploaded.safetensors"] == sizes["classifier.safetensors"]
