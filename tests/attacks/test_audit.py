"""A whole audit of tiny runs, and the parts that only a run can show."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedvtc_edge import wire
from fedvtc_edge.attacks import auditing
from fedvtc_edge.attacks.adversary.observations import EVERYONE, sums_of, uploads
from fedvtc_edge.attacks.adversary.staging import ReleasePath, UploadStager, noise_of
from fedvtc_edge.attacks.adversary.trials import AuditedRun, Trial
from fedvtc_edge.attacks.adversary.view import Case, Guess
from fedvtc_edge.attacks.advice import beyond, judge, policy_of
from fedvtc_edge.attacks.answers import answers_of
from fedvtc_edge.attacks.attempts import Group, attempt, groups_of
from fedvtc_edge.attacks.auditing import audit
from fedvtc_edge.attacks.curve import curve
from fedvtc_edge.attacks.direct_disclosures import histogram, recovered, recovery_error, traffic
from fedvtc_edge.attacks.dp import game
from fedvtc_edge.attacks.dp.claims import Thresholds
from fedvtc_edge.attacks.inference import reconstruction
from fedvtc_edge.attacks.inference.exact_recovery import ExactRecovery
from fedvtc_edge.attacks.inference.membership import Membership, ridge
from fedvtc_edge.attacks.inference.reconstruction import ClassMean, Decode, Inversion, invert
from fedvtc_edge.attacks.inference.risk import Risk
from fedvtc_edge.attacks.registry import parse_attacks
from fedvtc_edge.attacks.scoring.findings import Finding, Policy, credit, rates_of
from fedvtc_edge.attacks.scoring.metrics import proportion_interval
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ConfigError, RunError, UsageError
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.workflows.run import run

Tiny = Callable[..., Config]
STREAM = torch.Generator().manual_seed(0)
SHORT = {"data": {"limit": 600, "test_limit": 300}, "method": {"rounds": 1, "anchor": 32}}


@pytest.fixture(scope="session")
def made(
    tiny: Tiny,
    quickly: Callable[[], AbstractContextManager[None]],
    once: Callable[..., Path],
) -> Callable[..., Path]:
    """A finished tiny run with some settings changed, made once."""

    def make(**changes: Any) -> Path:
        merged = {k: {**SHORT.get(k, {}), **changes.get(k, {})} for k in {*SHORT, *changes}}
        config = tiny(**merged)

        def finished(folder: Path) -> None:
            with quickly():
                run(config, out=folder)

        digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()
        return once(f"audited-{digest[:12]}", finished)

    return make


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and short inversions, and a curve without noise; it has a test of its own."""

    def short(lab: AuditedRun, number: int) -> Any:
        return curve(lab, number, epsilons=(None,))

    monkeypatch.setattr(auditing, "curve", short)
    monkeypatch.setattr(reconstruction, "STEPS", 30)
    monkeypatch.setattr(reconstruction, "MOST", 22)


def audited(path: Path) -> AuditedRun:
    finished = FinishedRun.open(path)
    return AuditedRun(finished, load_dataset(finished.config.data))


def read_off(trials: list[Trial]) -> Finding:
    """The finding on what is read off staged uploads of one or two records."""
    errors = [error for trial in trials if (error := recovery_error(trial)) is not None]
    words = (trials[0].case.view.who, trials[0].count, "n, staged", Policy(), 0.99)
    return recovered(errors, *words, staged=True)


def group(name: str, trials: list[Trial]) -> Group:
    return Group(name, trials[0].case.view.who, trials[0].count, trials)


# ---------------------------------------------------------------- what is seen


def test_data_are_dealt_out_as_the_run_did(made: Callable[..., Path]) -> None:
    lab = audited(made())
    assert isinstance(lab.run, FinishedRun)
    counts = {record.id: record.class_counts for record in lab.run.summary.clients}
    for client, expected in counts.items():
        where = lab.holdings[client]
        assert np.bincount(lab.labels[where], minlength=10).tolist() == expected


@pytest.mark.parametrize("moments", ["covariance", "diagonal"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_was_seen_is_what_the_data_are(
    made: Callable[..., Path], moments: str, precision: str
) -> None:
    lab = audited(
        made(method={"moments": moments, "anchor": 32}, transport={"precision": precision})
    )
    assert lab.anchor is not None
    seen = lab.observed()
    servers = [one for one in seen if one.who == "server"]
    assert {one.client for one in servers} == set(lab.holdings) - {EVERYONE}
    rough = 1e-5 if precision == "float32" else 3e-3
    for one in seen:
        exact = lab.sums(lab.anchor, lab.holdings[one.client], pooled=moments == "covariance")
        np.testing.assert_array_equal(np.rint(one.count), exact.count)
        present = exact.count > 0
        far = 1000 if one.who == "colluders" else 10
        scale = np.abs(exact.mean).max()
        worst = np.abs(one.mean[present] - exact.mean[present]).max()
        assert worst < rough * scale * far
        if one.std is not None and one.who == "server":
            assert np.abs(one.std[present] - exact.std[present]).max() < 30 * rough * scale
    assert {one.who for one in seen} == {"server", "device", "colluders"}


def test_published_statistics_are_sums_again() -> None:
    features = np.random.default_rng(0).normal(size=(40, 6))
    for pooled in (True, False):
        sums = ClassStatistics.of(features, np.arange(40) % 3, classes=4, pooled=pooled)
        again = sums_of(GlobalStatistics.from_sum(sums))
        np.testing.assert_allclose(again.total, sums.total, atol=1e-9)
        np.testing.assert_allclose(again.square, sums.square, atol=1e-9)


def test_under_masks_the_server_sees_nobody(made: Callable[..., Path]) -> None:
    lab = audited(made(transport={"masking": True}, privacy={"collusion": 0.0}))
    assert {one.who for one in lab.observed()} == {"device", "colluders"}


def test_own_features_are_seen_of_the_last_round_only(made: Callable[..., Path]) -> None:
    lab = audited(made(method={"share": "features", "rounds": 2}))
    seen = lab.observed()
    assert {one.round for one in seen if one.who == "server"} == {2}
    assert {one.who for one in seen} == {"server", "server+device", "device"}
    blind = lab.view(next(one for one in seen if one.who == "server"), 0, None)
    assert blind.pairs is not None
    assert blind.pairs.hidden.shape == (50, 8)
    extract = lab.extractor(next(one for one in seen if one.who == "server+device"))
    assert extract is not None
    assert lab.extractor(next(one for one in seen if one.who == "server")) is None


def test_uploads_of_another_name_are_refused(made: Callable[..., Path], tmp_path: Path) -> None:
    lab = audited(made())
    folder = tmp_path / "server" / "round-0000"
    folder.mkdir(parents=True)
    context, data = next(uploads(lab.run.path, lab.config))
    (folder / f"{context.sender}.anchor.upload").write_bytes(data)
    assert [c for c, _ in uploads(tmp_path, lab.config)] == [context]
    (folder / "client-77.anchor.upload").write_bytes(data)
    with pytest.raises(RunError, match="says that it is"):
        list(uploads(tmp_path, lab.config))
    (folder / "client-77.anchor.upload").write_bytes(b"bogus")
    with pytest.raises(RunError, match="no upload"):
        list(uploads(tmp_path, lab.config))


# ---------------------------------------------------------------- trials


def test_a_trial_has_one_member_among_strangers(made: Callable[..., Path]) -> None:
    lab = audited(made())
    assert lab.anchor is not None
    for seen in lab.observed():
        if seen.who != "server":
            continue
        trials = lab.trials(seen, 30, lab.anchor)
        own = lab.images[lab.holdings[seen.client]].flatten(1)
        for trial in trials:
            candidates = trial.case.candidates.flatten(1)
            inside = (candidates[:, None] == own[None]).all(2).any(1)
            assert inside.nonzero().flatten().tolist() == [trial.target]
            assert len(candidates) >= 10
            public = trial.case.view.everyday.flatten(1)
            assert not (public[:, None] == own[None]).all(2).any()


@pytest.mark.parametrize("moments", ["covariance", "diagonal"])
def test_staged_uploads_are_of_the_records_they_say(
    made: Callable[..., Path], moments: str
) -> None:
    lab = audited(made(method={"moments": moments, "anchor": 32}))
    for count in (1, 2, 5):
        trials = UploadStager(lab).trials(count, 20)
        assert len(trials) == 20
        for trial in trials:
            view, features = trial.case.view, trial.case.features()
            assert view.count == trial.count == count
            assert view.after is not None
            left = count * view.mean - (count - 1) * view.after.mean
            np.testing.assert_allclose(left, features[trial.target], atol=1e-3)
            assert len(view.again) == 3
            assert (view.std is None) == (moments == "covariance")
    assert UploadStager(lab).trials(10_000, 20) == []


def test_exact_recovery_of_one_and_two_records(made: Callable[..., Path]) -> None:
    """The report says so in words, and no number in it is NaN."""
    lab = audited(made(method={"moments": "diagonal", "anchor": 32}))
    found = [read_off(UploadStager(lab).trials(n, 30)) for n in (1, 2)]
    assert [(f.value, f.passed) for f in found] == [(1.0, False), (1.0, False)]
    assert all("exact recovery" in finding.note for finding in found)
    assert "order and the sign" in found[1].note
    json.dumps([finding.plain() for finding in found], allow_nan=False)


def test_noise_hides_single_records_and_differences(made: Callable[..., Path]) -> None:
    lab = audited(made(privacy={"mode": "anchored", "epsilon": 4.0}))
    attacks = parse_attacks(["membership", "differencing", "decode"])
    groups = [group("n = 20", UploadStager(lab).trials(20, 60, repetitions=0))]
    found, _ = attempt(attacks, groups, Policy(), seed=0, progress=SilentProgress())
    for finding in found:
        if finding.metric == "identification":
            most = proportion_interval(round((finding.null or 0) * 60), 60, 0.99)[1]
            assert (finding.value or 0) <= most
    stage = UploadStager(lab)
    few = read_off(stage.trials(1, 20, repetitions=0))
    assert (few.value, few.undecided) == (0.0, True)
    assert "about 64 trials" in few.decides_by
    assert "not recovered" in few.note
    assert read_off(stage.trials(1, 80, repetitions=0)).passed


def test_all_noise_is_in_a_staged_sum(made: Callable[..., Path]) -> None:
    lab = audited(made(privacy={"mode": "anchored", "epsilon": 1.0}))
    assert lab.spec is not None
    whole = np.concatenate([noise_of(lab.spec) for _ in range(20)]).std()
    half = np.concatenate([noise_of(lab.spec, halved=True) for _ in range(20)]).std()
    assert whole == pytest.approx(float(lab.spec.sigma), rel=0.05)
    assert half == pytest.approx(whole / 2, rel=0.07)


# ---------------------------------------------------------------- what is no leak


class Shuffled:
    """Scores of another attack, given to the wrong candidates."""

    name = "shuffled"

    def guess(self, cases: Any, stream: torch.Generator) -> list[Guess | None]:
        guesses = Membership().guess(cases, stream)
        order = [torch.randperm(len(case.candidates), generator=stream) for case in cases]
        return [
            None if g is None else Guess(np.asarray(g.scores)[o.numpy()])
            for g, o in zip(guesses, order, strict=True)
        ]


@pytest.mark.parametrize("attack", [ClassMean(), Shuffled()], ids=lambda attack: attack.name)
def test_what_is_no_attack_is_no_leak(made: Callable[..., Path], attack: Any) -> None:
    lab = audited(made())
    trials = UploadStager(lab).trials(5, 400, repetitions=0)
    found, _ = attempt(
        [attack], [group("n = 5", trials)], Policy(), seed=0, progress=SilentProgress()
    )
    by_metric = {finding.metric: finding for finding in found}
    decisive = [finding for finding in found if finding.passed is not None]
    assert {finding.metric for finding in decisive} == {"identification", "tpr_at_1_percent_fpr"}
    assert all(finding.passed for finding in decisive)
    assert judge(found)[0] == "pass"
    auc = by_metric["auc"]
    assert (auc.low or 1) <= 0.5 <= (auc.high or 0)


def test_a_high_ssim_is_no_leak() -> None:
    """Pictures that are alike: the class mean scores above 0.7, and is told from none."""
    rng = np.random.default_rng(0)
    lab_images = np.clip(blob(rng, 60) + rng.normal(0, 0.03, (60, 1, 16, 16)), 0, 1)
    trials = [planted_trial(rng, lab_images) for _ in range(400)]
    found, _ = attempt(
        [ClassMean()], [group("n = 5", trials)], Policy(), seed=0, progress=SilentProgress()
    )
    by_metric = {finding.metric: finding for finding in found}
    assert (by_metric["ssim"].value or 0) > 0.7
    assert by_metric["identification"].passed
    assert judge(found)[0] == "pass"


def blob(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    grid = np.linspace(-1, 1, 16)
    radius = rng.normal(0.6, 0.02, (count, 1, 1, 1))
    shape: NDArray[np.float64] = np.exp(-(grid[:, None] ** 2 + grid**2) / radius)[..., :, :]
    return shape.reshape(count, 1, 16, 16)


def planted_trial(rng: np.random.Generator, images: NDArray[np.float64]) -> Any:
    from fedvtc_edge.attacks.adversary.trials import Trial
    from fedvtc_edge.attacks.adversary.view import Case, View

    order = rng.permutation(len(images))
    pictures = torch.from_numpy(images[order]).float()
    view = View(
        who="server",
        label=0,
        count=5.0,
        mean=np.zeros(4),
        std=None,
        public=pictures[50:],
        everyday=pictures[50:],
    )
    return Trial(Case(view, pictures[:50]), 7, 5, "a", True, pictures[7:12].mean(0))


def test_ties_share_the_credit() -> None:
    assert credit(np.array([1.0, 1.0, 0.0]), 0) == 0.5
    assert credit(np.array([1.0, 1.0, 0.0]), 2) == 0.0
    assert credit(np.zeros(50), 3) == pytest.approx(0.02)


def test_no_rate_is_printed_that_nulls_do_not_resolve(made: Callable[..., Path]) -> None:
    lab = audited(made())
    trials = UploadStager(lab).trials(2, 21, repetitions=0)
    guesses = Membership().guess([t.case for t in trials], STREAM)
    answers = answers_of("membership", trials, guesses, "n = 2", STREAM)
    assert answers is not None
    assert 1000 <= sum(map(len, answers.others)) < 10_000
    found = answers.findings(Policy(), 0.95)
    assert "tpr_at_1_percent_fpr" in {f.metric for f in found}
    assert "tpr_at_0.1_percent_fpr" not in {f.metric for f in found}
    answers.members, answers.others = answers.members * 10, answers.others * 10
    more = rates_of(
        np.array(answers.members),
        np.concatenate(answers.others),
        Policy(),
        0.95,
        answers.common,
    )
    assert "tpr_at_0.1_percent_fpr" in {f.metric for f in more}
    assert answers_of("membership", trials[:5], [None] * 5, "few", STREAM) is None


# ---------------------------------------------------------------- pictures


def test_an_inversion_comes_nearer_than_its_start(hasty: None, made: Callable[..., Path]) -> None:
    lab = audited(made())
    trials = UploadStager(lab).trials(1, 22)
    cases = [trial.case for trial in trials]
    truth = torch.stack([t.case.candidates[t.target] for t in trials])
    errors = {}
    for attack in (ClassMean(), Decode(), Inversion(), Inversion(joint=True)):
        guesses = attack.guess(cases, STREAM)
        pictures = torch.stack(
            [g.picture for g in guesses if g is not None and g.picture is not None]
        )
        assert pictures.shape == truth.shape
        assert pictures.min() >= 0
        assert pictures.max() <= 1
        errors[attack.name] = float((pictures - truth).square().mean())
    assert errors["rounds"] < errors["inversion"] < errors["decode"] < errors["class-mean"]


def test_inversion_finds_what_a_known_map_hides() -> None:
    torch.manual_seed(0)
    weights, _ = torch.linalg.qr(torch.randn(64, 64))
    truth = torch.rand(3, 1, 8, 8) * 0.8 + 0.1

    def extract(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ weights

    found = invert([extract], [extract(truth)], torch.full_like(truth, 0.5))
    assert (found - truth).abs().max() < 0.15
    assert (found - truth).abs().mean() < 0.05


def test_a_ridge_map_learns_a_linear_one() -> None:
    rng = np.random.default_rng(0)
    linear = rng.normal(size=(12, 5))
    known, other = rng.normal(size=(200, 12)), rng.normal(size=(30, 12))
    mapped = ridge(known, known @ linear + 3, other)
    assert np.corrcoef(mapped.ravel(), (other @ linear + 3).ravel())[0, 1] > 0.99
    # The dual form is the primal one.
    centred = known - known.mean(0)
    gram = centred.T @ centred
    lam = 0.1 * np.trace(centred @ centred.T) / 200
    weights = np.linalg.solve(gram + lam * np.eye(12), centred.T @ (known @ linear))
    twin = (other - known.mean(0)) @ weights + (known @ linear + 3).mean(0)
    np.testing.assert_allclose(mapped, twin, atol=1e-8)


# ---------------------------------------------------------------- verdicts


def finding(passed: bool | None, **fields: Any) -> Finding:
    low, high = {True: (0.0, 0.1), False: (0.11, 0.4), None: (0.0, 0.37)}[passed]
    told = Finding("x", "server", "identification", 0.05, low=low, high=high, threshold=0.1)
    return replace(told, **fields)


DP = {"epsilon": 4.0, "lower_bound": 3.0, "control_caught": True}


@pytest.mark.parametrize(
    ("findings", "more", "verdict"),
    [
        ([finding(True)], {}, "pass"),
        ([finding(True), finding(False)], {}, "leak"),
        ([finding(None)], {}, "inconclusive"),
        ([finding(True), finding(None)], {}, "inconclusive"),
        ([finding(True), finding(None, required=False)], {}, "pass"),
        ([finding(True), finding(None, threshold=None)], {}, "pass"),
        ([finding(None, required=False)], {}, "inconclusive"),
        ([finding(True), finding(None, low=None, high=None, value=None)], {}, "inconclusive"),
        ([finding(False), finding(None)], {}, "leak"),
        ([], {"dp": DP}, "pass"),
        ([finding(None)], {"dp": DP}, "inconclusive"),
        ([], {}, "inconclusive"),
        ([finding(False)], {"invalid": ["no delta"]}, "claim invalid"),
        ([finding(True)], {"dp": DP}, "pass"),
        ([finding(True)], {"dp": {**DP, "lower_bound": 4.1}}, "leak"),
        ([finding(True)], {"dp": {**DP, "control_caught": False}}, "inconclusive"),
        ([finding(False)], {"dp": {**DP, "control_caught": False}}, "leak"),
        ([finding(True)], {"dp": DP, "limits": Thresholds(max_epsilon=2.0)}, "leak"),
    ],
)
def test_verdicts(findings: list[Finding], more: dict[str, Any], verdict: str) -> None:
    said, reasons = judge(findings, **more)
    assert said == verdict
    assert bool(reasons) == (verdict != "pass")


def test_what_a_claim_does_not_cover_has_a_verdict_of_its_own() -> None:
    """A device that gives images away is told of, and is no part of the verdict on the claim."""
    device = finding(
        None, view="device", metric="tpr_at_1_percent_fpr", low=0.2, high=0.3, threshold=None
    )
    found = [finding(True), device]
    assert judge(found)[0] == "pass"
    [told] = beyond(found, Policy(covered=frozenset({"server"})))
    assert (told["view"], told["verdict"]) == ("device", "leak")
    assert "allowed 5.0%" in told["reasons"][0]
    assert beyond(found, Policy()) == []


def test_a_claim_allows_what_it_says(tiny: Tiny) -> None:
    from fedvtc_edge.attacks.dp.claims import claim_of_run

    config = tiny(privacy={"mode": "anchored", "epsilon": 1.0})
    policy = policy_of(config, claim_of_run(config), Thresholds())
    assert policy.identification == pytest.approx(np.e / 50, rel=1e-3)
    assert policy.membership == pytest.approx(np.e / 100, rel=1e-2)
    assert policy.limit("identification", "server") == policy.identification
    assert policy.limit("identification", "device") is None  # models are not covered
    own = policy_of(config, claim_of_run(config), Thresholds(max_identification=0.03))
    assert own.limit("identification", "server") == 0.03
    nothing = policy_of(tiny(), None, Thresholds())
    assert nothing.limit("membership", "device") == 0.05


# ---------------------------------------------------------------- all of it


def test_a_run_without_noise_leaks(
    hasty: None, made: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "STAGED", (1, 2))
    result = audit(made(), quick=True, trials=24, out=tmp_path / "audit")
    document = result.document
    assert (document["verdict"], document["exit_code"]) == ("leak", 1)
    assert document == json.loads((tmp_path / "audit" / "report.json").read_bytes())
    promised = "schema, verdict, exit_code, claim, threat_model, unit, neighbouring, findings, "
    promised += "epsilon_lower_bound, recommendations"
    assert set(promised.split(", ")) <= set(document)
    keys = "attack, view, metric, value, low, high, null, baseline, ceiling, threshold, passed"
    for each in document["findings"]:
        assert set(keys.split(", ")) <= set(each)
    exact = [f for f in document["findings"] if f["metric"] == "recovered_exactly"]
    assert any("exact recovery" in f["note"] for f in exact)
    assert any("masking" in advice["setting"] for advice in document["recommendations"])
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "exact recovery" in page
    assert "NaN" not in page
    again = audit(made(), quick=True, trials=24).document
    drop = ("seconds", "curve", "recommendations")  # the curve's noise has no seed
    assert {k: v for k, v in again.items() if k not in drop} == {
        k: v for k, v in document.items() if k not in drop
    }


@pytest.mark.slow
def test_a_private_run_passes(
    hasty: None, made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "STAGED", (1, 20))
    named = []

    def noise_audit(*given: Any, riskiest: Risk, **options: Any) -> Any:
        named.append(riskiest.record)
        return game.audit_claim(*given, riskiest=riskiest, **options)

    monkeypatch.setattr(auditing, "audit_claim", noise_audit)
    path = made(privacy={"mode": "anchored", "epsilon": 4.0, "population": 600})
    document = audit(path, quick=True, trials=40).document
    assert document["verdict"] == "pass", document["reasons"]
    [worst] = [f for f in document["findings"] if f["group"] == "worst record"]
    assert f"training image {named[0]}," in worst["note"]
    assert document["claim"]["epsilon"] == 4.0
    assert document["unit"] == "example"
    assert document["dp"]["control_caught"]
    assert 0 <= document["epsilon_lower_bound"] <= 4.0


def test_a_claim_that_the_run_does_not_make(
    made: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "STAGED", ())
    claim = tmp_path / "claim.toml"
    claim.write_text(
        'epsilon = 1.0\ndelta = 1e-5\nunit = "example"\nneighbouring = "add/remove"\n'
        'mechanism = "discrete Gaussian"\n'
    )
    document = audit(made(), claim=claim, attacks=["membership"], trials=20).document
    assert (document["verdict"], document["exit_code"]) == ("claim invalid", 4)
    assert "adds no noise" in document["reasons"][0]
    claim.write_text("max_identification = 1.0\nmax_membership_tpr = 1.0\n")
    document = audit(made(), claim=claim, attacks=["membership"], trials=20).document
    assert document["verdict"] == "pass"


def test_a_statistics_file_and_its_data(
    hasty: None, made: Callable[..., Path], tmp_path: Path
) -> None:
    path = made()
    config = FinishedRun.open(path).config
    document = audit(path / "statistics.safetensors", config=config, trials=20, quick=True).document
    assert document["subject"]["kind"] == "statistics"
    assert {f["view"] for f in document["findings"]} >= {"device"}
    with pytest.raises(UsageError, match="which data"):
        audit(path / "statistics.safetensors")
    damaged = tmp_path / "statistics.safetensors"
    damaged.write_bytes(b"no")
    with pytest.raises(RunError, match="no published statistics"):
        audit(damaged, config=config)
    with pytest.raises(RunError, match="features"):
        audit(path / "statistics.safetensors", config=config.replace(method={"anchor": 12}))


def test_other_methods_have_other_uploads(hasty: None, made: Callable[..., Path]) -> None:
    words = {"quick": True, "trials": 20}
    proto = audit(made(method={"name": "fedproto", "rounds": 1}), **words).document
    assert proto["subject"]["share"] == "features"
    assert {f["view"] for f in proto["findings"]} >= {"server", "server+device", "device"}
    alone = audit(made(method={"name": "local", "rounds": 1}), **words).document
    assert alone["subject"]["share"] == "nothing"
    assert {f["view"] for f in alone["findings"]} == {"device"}
    assert alone["verdict"] == "inconclusive"
    with pytest.raises(UsageError, match="data themselves"):
        audit(made(method={"name": "centralised", "rounds": 1}), **words)


def test_names_that_do_not_exist(made: Callable[..., Path], tmp_path: Path) -> None:
    assert [attack.name for attack in parse_attacks(None)] == [
        "decode", "inversion", "exact", "membership", "second-moments", "differencing", "rounds",
        "shadow", "eigenvectors", "averaging",
    ]  # fmt: skip
    assert [attack.name for attack in parse_attacks(["exact"])] == [ExactRecovery().name]
    with pytest.raises(UsageError, match="unknown attack 'magic'"):
        audit(made(), attacks=["magic"])
    with pytest.raises(UsageError, match="no adversary 'god'"):
        audit(made(), views=["god"])
    with pytest.raises(RunError, match="no run"):
        audit(tmp_path)
    with pytest.raises(ConfigError):
        audit(made(), claim=tmp_path / "none.toml")


def test_a_client_s_home_is_not_scored_against_others_images(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    home = Path(shutil.copytree(made(), tmp_path / "home"))
    summary = json.loads((home / "summary.json").read_text())
    (home / "summary.json").write_text(json.dumps(summary | {"home": True}))
    with pytest.raises(RunError, match="is known to the clients of this run alone") as refused:
        audit(home)
    assert "--engine local" in refused.value.hint


def test_views_and_attacks_are_chosen(made: Callable[..., Path]) -> None:
    lab = audited(made())
    document = audit(made(), views=["colluders"], attacks=["decode"], trials=20).document
    assert {(f["view"], f["attack"]) for f in document["findings"]} <= {("colluders", "decode")}
    assert document["findings"]
    groups = groups_of(lab, [], 20, staged=())
    assert groups == []


def test_a_shadow_sees_what_known_pairs_show(made: Callable[..., Path]) -> None:
    """The map from pairs is as good as the hidden extractor is smooth: better than blind."""
    lab = audited(made(method={"share": "features", "rounds": 2}))
    seen = [one for one in lab.observed() if one.who == "server"]
    groups = groups_of(lab, seen, 40, staged=())
    found, _ = attempt(
        parse_attacks(["shadow"]), groups, Policy(), seed=0, progress=SilentProgress()
    )
    assert {finding.attack for finding in found} == {"shadow"}
    blind, _ = attempt(
        parse_attacks(["decode"]), groups, Policy(), seed=0, progress=SilentProgress()
    )
    assert {(one.attack, one.undecided) for one in blind} == {("untested", True)}


@pytest.mark.parametrize("share", ["features", "features+decoder"])
def test_who_has_the_decoder_decodes_with_it(made: Callable[..., Path], share: str) -> None:
    lab = audited(made(method={"share": share, "rounds": 1}))
    for seen in lab.observed():
        if seen.who not in ("server", "server+device"):
            continue
        label = int(seen.count.argmax())
        view = lab.view(seen, label, lab.extractor(seen))
        has = share == "features+decoder" or seen.who == "server+device"
        assert (view.decode is not None) == has
        [guess] = Decode().guess([Case(view, view.public)], STREAM)
        assert (guess is not None) == has
        if guess is None:
            continue
        decoder = lab.run.decoder(seen.client, lab.shape)
        assert decoder is not None
        with torch.no_grad():
            painted = decoder(torch.from_numpy(view.mean).float()[None])[0].clamp(0, 1)
        assert guess.picture is not None
        torch.testing.assert_close(guess.picture, painted)


def test_sizes_tell_nothing(made: Callable[..., Path], tmp_path: Path) -> None:
    lab = audited(made())
    [told] = traffic(lab)
    assert (told.view, told.value, told.passed) == ("eavesdropper", 0.0, True)
    copy = tmp_path / "run"
    shutil.copytree(lab.run.path, copy)
    victim = next(copy.glob("server/*/client-01.anchor.upload"))
    victim.write_bytes(victim.read_bytes() + b"more")
    [told] = traffic(audited(copy))
    assert told.passed is False


def test_counts_are_told_exactly_and_noised_ones_are_not(made: Callable[..., Path]) -> None:
    plain = audited(made())
    by_design = histogram(plain, plain.observed(), Policy())
    exact = {f.metric: (f.value, f.passed) for f in by_design if f.view == "server"}
    assert exact == {"counts_exact": (1.0, None), "missing_classes_told": (1.0, None)}
    noised = audited(made(privacy={"mode": "anchored", "epsilon": 1.0}))
    policy = Policy(counts=0.73)
    told = histogram(noised, noised.observed(), policy)
    assert [finding.passed for finding in told] == [True, True]
    # A claim over the same numbers without noise: exact counts and missing classes are leaks.
    told = histogram(plain, plain.observed(), policy)
    assert {f.passed for f in told if f.view == "server"} == {False}


def test_the_curve_has_every_setting(made: Callable[..., Path]) -> None:
    lab = audited(made())
    points = list(curve(lab, 30, epsilons=(None, 1.0)))
    assert {(p.epsilon, p.moments) for p in points} == {
        (None, "mean"),
        (None, "pooled"),
        (None, "class"),
        (1.0, "pooled"),
    }
    by = {(p.epsilon, p.moments, p.minimum): p for p in points}
    assert by[None, "class", 1].identification == 1.0
    assert by[1.0, "pooled", 1].identification < 0.4
    assert by[None, "pooled", 1].accuracy > by[1.0, "pooled", 1].accuracy - 0.05
    assert ReleasePath(None, pooled=True).precision == "float32"
    assert wire.encode(lab.sums(lab.anchor, np.arange(5), pooled=True))  # type: ignore[arg-type]


def test_part_of_an_audit_does_not_pass_a_claim(
    hasty: None, made: Callable[..., Path], tmp_path: Path
) -> None:
    path = made(privacy={"mode": "anchored", "epsilon": 1.0})
    limits = tmp_path / "limits.toml"  # every attack within them
    limits.write_text("max_identification = 1.0\nmax_membership_tpr = 1.0\n")
    for chosen in ({"attacks": ["membership"]}, {"views": ["device", "colluders"]}):
        document = audit(path, trials=20, quick=True, claim=limits, **chosen).document
        assert document["verdict"] != "pass"
        assert any("left out" in reason for reason in document["reasons"])
    config = FinishedRun.open(path).config
    document = audit(path / "statistics.safetensors", config=config, trials=20, quick=True).document
    leaks = [finding for finding in document["findings"] if finding["passed"] is False]
    assert document["verdict"] == "inconclusive", (leaks, document["dp"])
    assert any("noise of the releases" in reason for reason in document["reasons"])
