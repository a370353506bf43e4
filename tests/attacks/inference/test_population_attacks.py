"""Risk of records, properties of classes, eigenvectors, and a second run on the same data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from fedvtc_edge.attacks.adversary import trials
from fedvtc_edge.attacks.adversary.staging import UploadStager
from fedvtc_edge.attacks.adversary.subjects import Settings
from fedvtc_edge.attacks.adversary.trials import AuditedRun
from fedvtc_edge.attacks.adversary.view import Case, View, populations
from fedvtc_edge.attacks.answers import answers_of
from fedvtc_edge.attacks.dp import game
from fedvtc_edge.attacks.dp.releases import ExampleRelease, claim_of_spec
from fedvtc_edge.attacks.inference.averaging import Averaging
from fedvtc_edge.attacks.inference.eigenvectors import Eigenvectors
from fedvtc_edge.attacks.inference.membership import Membership
from fedvtc_edge.attacks.inference.property_inference import property_inference
from fedvtc_edge.attacks.inference.risk import risk_findings, risk_map, risks_of
from fedvtc_edge.attacks.scoring.findings import Policy
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_data
from fedvtc_edge.models.extractor import in_chunks, one_by_one

Lab = Callable[..., AuditedRun]


@pytest.fixture
def lab(tiny: Callable[..., Config]) -> Lab:
    """Settings with data and no run: uploads can be staged."""

    def make(**changes: Any) -> AuditedRun:
        config = tiny(**{"data": {"limit": 600, "test_limit": 300}, **changes})
        data = load_data(config)
        return AuditedRun(Settings(config, classes=data.classes), data)

    return make


PRIVATE = {"mode": "anchored", "epsilon": 4.0, "population": 600}


# ---------------------------------------------------------------- risk


def test_risk_is_a_mahalanobis_distance(lab: Lab) -> None:
    audited = lab(method={"moments": "diagonal", "anchor": 12})
    stage, client = UploadStager(audited), "client-00"
    where = audited.holdings[client]
    seen = stage.upload(where, stage.anchor, client=client, who="server")
    risks = risk_map(audited, seen)
    assert sorted(risk.record for risk in risks) == sorted(where.tolist())
    assert [risk.found for risk in risks] == sorted((r.found for r in risks), reverse=True)
    known = in_chunks(stage.anchor, audited.public).double().numpy()
    people = populations(known, audited.public_labels, audited.classes)
    for risk in risks[:3] + risks[-3:]:
        own = people[risk.label]
        features = in_chunks(stage.anchor, audited.images[[risk.record]]).double().numpy()[0]
        off = features - own.mean
        squared = off @ np.linalg.solve(own.covariance, off)
        assert risk.distance == pytest.approx((squared / len(off)) ** 0.5, rel=1e-3)
        n = risk.count
        if n > 1:
            delta = (squared / (n - 1)) ** 0.5
            expected = NormalDist().cdf(NormalDist().inv_cdf(0.01) + delta)
            assert risk.found == pytest.approx(expected, rel=1e-2)
        else:
            assert risk.found == pytest.approx(1.0)


def test_who_is_most_at_risk_is_named_and_noise_lowers_it(lab: Lab) -> None:
    values = []
    for privacy in ({"mode": "none"}, PRIVATE):
        audited = lab(privacy=privacy)
        stage = UploadStager(audited)
        seen = [
            stage.upload(audited.holdings[client], stage.anchor, client=client, who="server")
            for client in audited.sample
        ]
        risks = risks_of(audited, seen)
        assert {risk.client for risk in risks} == set(audited.sample)
        worst, median = risk_findings(audited, risks)
        assert f"training image {risks[0].record}," in worst.note
        assert (worst.group, median.group) == ("worst record", "median record")
        assert worst.threshold is None
        assert "training image" in worst.note
        assert "client-0" in worst.note
        assert (worst.value or 0) >= (median.value or 0) >= 0.01
        values.append(median.value or 0)
    assert values[1] < values[0]


def test_the_record_that_the_risk_map_names_is_the_canary_of_the_noise_audit(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of no other records do the two worlds differ; with none named, it is the first."""
    audited = lab(privacy=PRIVATE)
    stage, played = UploadStager(audited), list[ExampleRelease]()
    assert audited.spec is not None
    seen = [
        stage.upload(audited.holdings[client], stage.anchor, client=client, who="server")
        for client in audited.sample
    ]
    riskiest = risks_of(audited, seen)[0]
    last = replace(riskiest, client="client-01", record=int(audited.holdings["client-01"][-1]))
    monkeypatch.setattr(game, "_MOST_RECORDS", 20)
    monkeypatch.setattr(game, "AFFORDABLE", 20_000)

    def pairs(mechanism: ExampleRelease, numbers: int) -> object:
        played.append(mechanism)
        return _pairs(mechanism, numbers)

    _pairs = game._pairs
    monkeypatch.setattr(game, "_pairs", pairs)
    for named in (riskiest, last, None):
        played.clear()
        result = game.audit_claim(audited, claim_of_spec(audited.spec), quick=False, riskiest=named)
        assert result is not None
        client = "client-00" if named is None else named.client
        record = audited.holdings[client][0] if named is None else named.record
        (without, _), (features, labels) = played[-1].worlds
        assert len(features) == len(without) + 1 == 20
        own = one_by_one(stage.anchor, audited.images[[record]]).double().numpy()[0]
        np.testing.assert_array_equal(features[0], own)
        np.testing.assert_array_equal(features[1:], without)
        assert labels[0] == audited.labels[record]
        name = result["mechanisms"][-1]["name"]
        if named is None:
            assert name == "a record of client-00"
        else:
            assert name == f"the record most at risk: training image {record} of {client}"


def test_where_no_upload_is_seen_nobody_is_named(lab: Lab) -> None:
    audited = lab(privacy=PRIVATE)
    assert risks_of(audited, []) == []
    assert risk_findings(audited, []) == []


# ---------------------------------------------------------------- properties


def test_a_share_within_a_class_is_told_by_its_mean(lab: Lab) -> None:
    [found] = property_inference(lab(), 40)
    assert (found.low or 0) > 0.6
    assert 0.2 < (found.null or 0) < 0.8
    assert found.threshold is None
    assert (found.trials, found.staged) >= (40, True)


def test_without_enough_records_or_an_anchor_there_is_no_such_finding(
    tiny: Callable[..., Config],
) -> None:
    config = tiny()  # 20 records a class
    data = load_data(config)
    assert property_inference(AuditedRun(Settings(config, classes=10), data), 10) == []


# ---------------------------------------------------------------- eigenvectors


def test_the_record_that_bends_the_covariance_ranks_first() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(40):
        records = rng.normal(size=(6, 30))
        mean = records.mean(0)
        off = records - mean
        candidates = rng.normal(size=(50, 30))
        candidates[7] = records[0]
        view = View(
            who="server", label=0, count=6.0, mean=mean, std=None, scatter=off.T @ off,
            freedom=5.0, public=torch.zeros(1), everyday=torch.zeros(1), extract=lambda x: x,
        )  # fmt: skip
        guess = Eigenvectors().answer(Case(view, torch.from_numpy(candidates)))
        assert guess is not None
        hits += int(guess.scores.argmax() == 7)
    assert hits == 40


def test_without_second_moments_there_are_no_eigenvectors(lab: Lab) -> None:
    made = UploadStager(lab(method={"moments": "diagonal"})).trials(5, 10, repetitions=0)
    assert set(Eigenvectors().guess([t.case for t in made], torch.Generator())) == {None}


# ---------------------------------------------------------------- two runs


def test_a_second_run_on_the_same_data_adds(lab: Lab) -> None:
    """With an average of two draws the members are better found; nothing hangs on it."""
    audited = lab(privacy=PRIVATE)
    made = UploadStager(audited).trials(1, 200, repetitions=0)
    cases = [trial.case for trial in made]
    values = {}
    for attack in (Membership(), Averaging()):
        guesses = attack.guess(cases, torch.Generator())
        stream = torch.Generator().manual_seed(0)
        answers = answers_of(attack.name, made, guesses, "n = 1, staged", stream)
        assert answers is not None
        answers.uncovered = getattr(attack, "uncovered", "")
        found = {one.metric: one for one in answers.findings(Policy(), 0.95)}
        values[attack.name] = found["auc"].value or 0
        limits = {one.threshold for one in found.values()}
        assert limits == ({None} if attack.name == "averaging" else {None, 0.1, 0.05})
    assert values["averaging"] > values["membership"] > 0.5
    assert "does not cover" in found["identification"].note


def test_exact_uploads_are_not_averaged(lab: Lab) -> None:
    made = UploadStager(lab()).trials(1, 10)
    assert set(Averaging().guess([t.case for t in made], torch.Generator())) == {None}


# ---------------------------------------------------------------- many clients


def test_of_many_clients_a_sample_is_attacked_that_has_each_size(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "MOST_CLIENTS", 4)
    changes = {"clients": {"count": 30}, "data": {"limit": 600, "min_samples": 2}}
    audited = lab(**changes)
    assert 4 <= len(audited.sample) <= 4 + len(trials.SIZES)
    assert set(audited.sample) < set(audited.config.client_ids)

    def sizes(clients: Any) -> set[tuple[int, int]]:
        cells = [audited.labels[audited.holdings[client]] for client in clients]
        counts = (np.unique(own, return_counts=True)[1] for own in cells)
        return {trials.size_of(int(count)) for own in counts for count in own}

    assert sizes(audited.sample) == sizes(audited.config.client_ids)
    assert audited.sample == lab(**changes).sample
