"""A run's own bytes: noise that is not there, too little, or used twice is found in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from released_runs import FAULTS, ReleasedRun, digest_of, half_noise, no_noise

from fedvtc_edge import wire
from fedvtc_edge.attacks import auditing
from fedvtc_edge.attacks.adversary.trials import AuditedRun
from fedvtc_edge.attacks.auditing import audit
from fedvtc_edge.attacks.dp.own_bytes import OwnBytes, findings_of_bytes, own_bytes
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_data
from fedvtc_edge.models.extractor import one_by_one
from fedvtc_edge.privacy.ledger import Ledger
from fedvtc_edge.privacy.release import bounded_sums
from fedvtc_edge.privacy.sampler import discrete_gaussian
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.workflows.run import run

Integers = NDArray[np.int64]
Runs = Callable[..., Path]

SHORT: dict[str, dict[str, Any]] = {
    "data": {"limit": 300, "test_limit": 60},
    "clients": {"count": 4, "architectures": ["mlp"]},
    "method": {"name": "statistics", "anchor": 32, "rounds": 1},
    "privacy": {"mode": "anchored", "epsilon": 4.0, "population": 300},
}
MASKS = {"transport": {"masking": True}}
CLIENT = {"privacy": {"mode": "client", "epsilon": 8.0, "delta": 1e-3}}
FEATURES = {"method": {"name": "fedvtc", "share": "features", "rounds": 2}}
EXAMPLE: dict[str, Any] = {
    # Every client has records of every class, so that nothing is known without the extractor.
    "data": {"partition": "iid"},
    "privacy": {"mode": "example", "epsilon": 8.0},
    "training": {"batch": 25},
    "method": {"name": "fedvtc", "share": "features", "rounds": 1},
}


@pytest.fixture(scope="session")
def runs(
    tiny: Callable[..., Config],
    quickly: Callable[[], AbstractContextManager[None]],
    once: Callable[..., Path],
) -> Runs:
    """``runs("name", privacy={...})``: a finished private run, made once; read it only."""

    def make(name: str, **changes: dict[str, Any]) -> Path:
        settings = {key: dict(value) for key, value in SHORT.items()}
        for section, values in changes.items():
            settings.setdefault(section, {}).update(values)

        def finished(folder: Path) -> None:
            with quickly():
                run(tiny(**settings), out=folder)

        return once(f"own-bytes-{name}", finished)

    return make


def of_run(path: Path) -> OwnBytes:
    finished = FinishedRun.open(path)
    found = own_bytes(AuditedRun(finished, load_data(finished.config)))
    assert found is not None
    return found


def noted(found: OwnBytes, metric: str = "refused") -> str:
    return next(f.note for f in findings_of_bytes(found, "server") if f.metric == metric)


def seeded(seed: int) -> Callable[[Any, int], Integers]:
    """Gaussian noise with a seed, rounded; at these scales no test tells it from discrete."""
    stream = np.random.default_rng(seed)

    def draw(share: Any, size: int) -> Integers:
        return np.rint(stream.normal(0, float(share), size)).astype(np.int64)

    return draw


MODES: dict[str, dict[str, Any]] = {
    "anchored": {},
    "anchored, masked": MASKS,
    "client": CLIENT,
    "client, masked": CLIENT | MASKS,
    "client, own features": CLIENT | FEATURES,
}


@pytest.mark.parametrize("mode", MODES)
def test_honest_bytes_are_what_they_claim(mode: str, runs: Runs) -> None:
    found = of_run(runs(mode, **MODES[mode]))
    assert not found.reused
    releases = found.releases
    assert {release.sender for release in releases} == {
        "anchored": {"client-00", "client-01", "client-02", "client-03"},
        "anchored, masked": {"client-00", "client-01", "client-02", "client-03", "sum"},
        "client": {"server"},
        "client, masked": {"client-00", "client-01", "client-02", "client-03", "sum"},
        "client, own features": {"server"},
    }[mode]
    for release in releases:
        assert (release.refused, release.reason) == ((), "")
        assert release.low is not None
        assert release.high is not None
        assert 0.5 < release.low < 1 < release.high < 1.6
    metrics = [finding.metric for finding in findings_of_bytes(found, "server")]
    assert metrics == ["refused", "noise_missing"]
    json.dumps(found.plain(), allow_nan=False)


@pytest.mark.parametrize("mode", ["anchored", "anchored, masked", "client, masked"])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(mode: str, fault: str, runs: Runs, tmp_path: Path) -> None:
    copy = ReleasedRun.copied(runs(mode, **MODES[mode]), tmp_path / "run")
    copy.release(FAULTS[fault](copy.drawn(seeded(0))))
    found, everybody = of_run(copy.path), set(copy.exact) | ({"sum"} if copy.masked else set())
    refused = {release.sender for release in found.releases if release.refused}
    assert bool(found.reused) == (fault == "reused noise")
    said = noted(found)
    if fault == "no noise":
        assert refused == everybody
        assert said.startswith("the run's own bytes carry no noise: client-00")
    elif fault == "half noise":
        assert refused == everybody
        assert "% of the claimed noise: client-00" in said
    elif fault == "one silent client":
        assert "client-01" in refused
        assert "carry no noise: client-01" in said
    else:
        assert found.reused == [("client-00", "client-02")]
        assert "noise was used twice: client-00 and client-02" in said


def test_a_trusted_server_without_noise_is_found(runs: Runs, tmp_path: Path) -> None:
    """What it released is the very sum of the clipped uploads; also one that is beyond the clip."""
    copy = ReleasedRun.copied(runs("client", **CLIENT), tmp_path / "run")
    folder = copy.path / "server" / "round-0000"
    upload = folder / "server.anchor.upload"
    context = wire.context_of(upload.read_bytes())
    total: Integers = np.sum(list(copy.exact.values()), axis=0)
    upload.write_bytes(wire.encode_release(total, context=context))
    assert "the run's own bytes carry no noise: server" in noted(of_run(copy.path))
    one = folder / "client-00.anchor.upload"
    large = copy.exact["client-00"] * 100
    one.write_bytes(wire.encode_release(large, context=wire.context_of(one.read_bytes())))
    assert "client-00: an upload of norm" in noted(of_run(copy.path))


def test_noise_of_the_wrong_grid_or_used_in_every_class_is_found(
    runs: Runs, tmp_path: Path
) -> None:
    copy = ReleasedRun.copied(runs("anchored"), tmp_path / "run")
    honest = copy.drawn(seeded(3))
    coarse = {**honest, "client-00": honest["client-00"] // 64 * 64}
    copy.release(coarse)
    assert "client-00: noise: grid" in noted(of_run(copy.path))
    tiled = {**honest, "client-03": np.resize(honest["client-03"][:33], 330)}
    copy.release(tiled)
    assert "client-03: noise: coordinates" in noted(of_run(copy.path))
    biased = {**honest, "client-02": honest["client-02"] + int(2e6)}
    copy.release(biased)
    assert "mean" in noted(of_run(copy.path))


def test_own_features_before_the_last_are_tested_in_the_classes_that_a_client_lacks(
    runs: Runs,
) -> None:
    """Masks of clients: each keeps its release, with noise of its own, and its last extractor."""
    path = runs("own features, masked", **CLIENT | FEATURES | MASKS)
    found = of_run(path)
    assert not any(release.refused for release in found.releases)
    spec = AuditedRun(FinishedRun.open(path), load_data(FinishedRun.open(path).config)).spec
    assert spec is not None
    last = [release for release in found.releases if release.round == 2]
    assert {release.sender for release in last} >= {"client-00", "sum"}
    for release in last:
        assert release.sample is not None
        assert len(release.sample.noise) == spec.size
    before = [release for release in found.releases if release.round == 1]
    tested = [release.sample for release in before if release.sample is not None]
    assert tested
    for sample in tested:
        assert len(sample.noise) % 9 == 0  # whole classes: a count and eight features
        assert len(sample.noise) < spec.size
    rest = [release for release in before if release.sample is None]
    assert {release.sender for release in rest} >= {"sum"}
    assert all("kept" in release.reason for release in rest)
    assert "untested" in [f.metric for f in findings_of_bytes(found, "server")]


def planted_last(path: Path, client: str) -> None:
    """The last upload of own features is replaced by its exact sums, in the ledger too."""
    finished = FinishedRun.open(path)
    audited = AuditedRun(finished, load_data(finished.config))
    assert audited.spec is not None
    number = finished.config.method.rounds
    upload = path / "server" / f"round-{number:04d}" / f"{client}.features.upload"
    where = audited.holdings[client]
    features = one_by_one(audited.uploaded(client), audited.images[where]).numpy()
    exact = bounded_sums(
        audited.spec, features, audited.labels[where], np.zeros(audited.spec.width)
    )
    data = wire.encode_release(exact, context=wire.context_of(upload.read_bytes()))
    assert len(data) == upload.stat().st_size
    digest, ledger = digest_of(upload), Ledger(path / "ledger.json")
    entries = ledger.entries
    assert [entry["sha256"] for entry in entries].count(digest) == 1
    upload.write_bytes(data)
    ledger.begin()
    ledger._append([json.dumps(entry).replace(digest, digest_of(upload)) for entry in entries])


def test_a_silent_client_among_own_features_is_found_by_the_network_that_was_kept(
    runs: Runs, tmp_path: Path
) -> None:
    path = runs("example, own features", **EXAMPLE)
    found = of_run(path)
    assert len(found.releases) == 4
    for release in found.releases:
        assert (release.refused, release.reason) == ((), "")
        assert release.low is not None
        assert 0.5 < release.low < 1
    assert all(finding.passed for finding in findings_of_bytes(found, "server"))
    copy = ReleasedRun.copied(path, tmp_path / "run")
    planted_last(copy.path, "client-01")
    found = of_run(copy.path)
    assert [release.sender for release in found.releases if release.refused] == ["client-01"]
    assert noted(found) == "the run's own bytes carry no noise: client-01, round 1"


def test_without_the_network_own_features_stay_undecided(runs: Runs, tmp_path: Path) -> None:
    copy = ReleasedRun.copied(runs("example, own features", **EXAMPLE), tmp_path / "run")
    (copy.path / "clients" / "client-02" / "uploaded.safetensors").unlink()
    found = of_run(copy.path)
    [untested] = [release for release in found.releases if release.sample is None]
    assert untested.sender == "client-02"
    assert "is not kept" in untested.reason
    [finding] = [f for f in findings_of_bytes(found, "server") if f.metric == "untested"]
    assert finding.undecided
    kept = copy.path / "clients" / "client-03" / "uploaded.safetensors"
    kept.write_bytes(kept.read_bytes()[:-9])
    assert {r.sender for r in of_run(copy.path).releases if r.sample is None} == {
        "client-02",
        "client-03",
    }


def test_what_is_missing_or_torn_is_not_called_tested(runs: Runs, tmp_path: Path) -> None:
    copy = ReleasedRun.copied(runs("anchored"), tmp_path / "run")
    copy.file("client-00").unlink()
    torn = copy.file("client-01")
    torn.write_bytes(torn.read_bytes()[:-8])
    torn = copy.file("client-02")
    torn.write_bytes(torn.read_bytes().replace(b"client-02", b"client-03", 1))
    reasons = {r.sender: r.reason for r in of_run(copy.path).releases}
    assert "cannot be read" in reasons["client-00"]
    assert "bytes, expected" in reasons["client-01"]
    assert "says that it is" in reasons["client-02"]
    assert reasons["client-03"] == ""
    assert "client-00, client-01, client-02" in noted(of_run(copy.path), "untested")


def test_bytes_that_the_ledger_does_not_have_are_found(runs: Runs, tmp_path: Path) -> None:
    """A second draw of honest noise looks like the first; that it was another is in the ledger."""
    copy = ReleasedRun.copied(runs("anchored"), tmp_path / "run")
    ledger = (copy.path / "ledger.json").read_bytes()
    copy.release(copy.drawn(seeded(5)))
    (copy.path / "ledger.json").write_bytes(ledger)
    assert "client-00: the ledger has other bytes" in noted(of_run(copy.path))
    Ledger(copy.path / "ledger.json").begin()
    assert "client-00: it is not in the ledger" in noted(of_run(copy.path))


def test_a_sum_that_was_not_published_is_not_called_tested(runs: Runs, tmp_path: Path) -> None:
    copy = ReleasedRun.copied(runs("anchored, masked", **MASKS), tmp_path / "run")
    published = (copy.path / "statistics.safetensors").read_bytes()
    copy.release(copy.drawn(seeded(7)))
    (copy.path / "statistics.safetensors").write_bytes(published)
    assert "what was published is not made of the releases" in noted(of_run(copy.path), "untested")


def test_a_run_that_claims_nothing_has_no_noise_to_test(tiny_run: Path) -> None:
    finished = FinishedRun.open(tiny_run)
    assert own_bytes(AuditedRun(finished, load_data(finished.config))) is None


# ---------------------------------------------------------------- all of it


def test_a_finished_run_whose_uploads_were_replaced_is_a_leak(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact sums with the right header and length: no attack that has the claim's room sees it."""
    monkeypatch.setattr(auditing, "STAGED", ())
    monkeypatch.setattr(auditing, "curve", lambda audited, number: ())
    copy = ReleasedRun.copied(runs("anchored"), tmp_path / "run")
    copy.release(no_noise(copy.drawn(seeded(0))))
    document = audit(copy.path, quick=True, trials=20).document
    assert (document["verdict"], document["exit_code"]) == ("leak", 1)
    assert any("the run's own bytes carry no noise" in reason for reason in document["reasons"])
    assert document["own_bytes"]["releases"][0]["noise"] == 0.0
    copy.release(half_noise(copy.drawn(seeded(0))))
    document = audit(copy.path, quick=True, trials=20).document
    assert document["verdict"] == "leak"
    assert any("of the claimed noise" in reason for reason in document["reasons"])


@cache
def _rebuilt(path: Path) -> ReleasedRun:
    return ReleasedRun(path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["anchored", "anchored, masked"])
@pytest.mark.parametrize("epsilon", [1.0, 4.0, 8.0])
def test_a_hundred_seeds_of_each_fault_and_of_none(
    mode: str, epsilon: float, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Honest noise is the package's own, drawn anew by each client in each of a hundred runs."""
    from fedvtc_edge.attacks.dp import own_bytes as module

    settings = {**MODES[mode], "privacy": {"epsilon": epsilon}}
    copy = ReleasedRun.copied(runs(f"{mode}, {epsilon}", **settings), tmp_path / "run")
    # The sums before noise are the same in all seeds, and are made once.
    monkeypatch.setattr(
        module._Reader, "_exact", lambda reader, release: copy.exact[release.sender]
    )
    caught = dict.fromkeys(FAULTS, 0)
    passed = 0
    for _ in range(100):
        honest = copy.drawn(discrete_gaussian)
        for fault, plant in FAULTS.items():
            copy.release(plant(honest))
            found = own_bytes(copy.audited)
            assert found is not None
            caught[fault] += findings_of_bytes(found, "server")[0].value != 0
        copy.release(honest)
        found = own_bytes(copy.audited)
        assert found is not None
        passed += all(f.passed for f in findings_of_bytes(found, "server"))
    print(mode, epsilon, caught, passed)
    assert min(caught.values()) >= 99
    assert passed >= 99
