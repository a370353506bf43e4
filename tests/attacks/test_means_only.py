"""Audit of uploads without second moments: an adversary has means, and nothing is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.attacks.adversary.staging import UploadStager
from fedvtc_edge.attacks.adversary.trials import AuditedRun
from fedvtc_edge.attacks.advice import recommendations, threat_model
from fedvtc_edge.attacks.scoring.findings import Policy
from fedvtc_edge.config import load_config
from fedvtc_edge.data import load_data
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.workflows.run import run

SMALL: dict[str, Any] = {
    "data": {"limit": 200, "test_limit": 100},
    "clients": {"count": 3, "architectures": ["mlp"]},
    "method": {"name": "fedcof", "anchor": 16, "rounds": 1},
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> AuditedRun:
    folder: Path = tmp_path_factory.mktemp("means") / "run"
    run(load_config(SMALL), out=folder)
    finished = FinishedRun.open(folder)
    return AuditedRun(finished, load_data(finished.config))


def test_all_adversaries_see_counts_and_means_alone(audited: AuditedRun) -> None:
    seen = audited.observed()
    assert {one.who for one in seen} == {"server", "device", "colluders"}
    assert all(one.std is None and one.scatter is None for one in seen)
    for one in seen:
        if one.who == "device":
            continue
        assert audited.anchor is not None
        exact = audited.sums(audited.anchor, audited.holdings[one.client], pooled=False)
        held = exact.count > 0
        np.testing.assert_array_equal(np.round(one.count), exact.count)
        np.testing.assert_allclose(one.mean[held], exact.mean[held], atol=1e-3)


def test_staged_uploads_are_read_alike(audited: AuditedRun) -> None:
    stager = UploadStager(audited)
    assert audited.anchor is not None
    one = stager.upload(np.arange(40), audited.anchor, client="staged", who="server")
    exact = audited.sums(audited.anchor, np.arange(40), pooled=False)
    assert one.std is None
    assert one.scatter is None
    np.testing.assert_allclose(one.mean, exact.mean, atol=1e-4)


def test_words_and_advice_know_that_no_second_moment_travels() -> None:
    settings = load_config(SMALL)
    assert "second moments" not in str(threat_model(settings))
    setting = {entry["setting"] for entry in recommendations(settings, [], [], Policy())}
    assert 'method.name = "statistics", transport.masking = true' in setting
    other = load_config({**SMALL, "method": {"name": "statistics"}})
    assert "second moments" in str(threat_model(other))
    setting = {entry["setting"] for entry in recommendations(other, [], [], Policy())}
    assert "transport.masking = true" in setting
