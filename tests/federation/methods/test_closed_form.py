"""Methods that train nothing: one upload, one head, on every engine and under every mode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvtc_edge.config import load_config
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.workflows.run import resume, run

Summary = dict[str, Any]

SMALL: dict[str, Any] = {
    "data": {"limit": 200, "test_limit": 100},
    "clients": {"count": 3, "architectures": ["mlp"]},
    "method": {"name": "statistics", "anchor": 16, "rounds": 2},
}


def config(**tables: Any) -> Any:
    return load_config({**SMALL, **{k: {**SMALL.get(k, {}), **v} for k, v in tables.items()}})


def test_every_model_is_the_control(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for phase in ("fit_decoder", "finetune"):  # the local baselines beside it do train
        monkeypatch.setattr(Client, phase, lambda *_, **__: pytest.fail("it trains"))
    summary = run(config(), out=tmp_path / "run").summary
    assert summary["accuracy_control"] > 0.5
    for client in summary["clients"]:
        assert client["accuracy"] == client["accuracy_calibrated"] == summary["accuracy_control"]
    assert summary["share"] is None
    assert summary["uploads"] == [
        "once, before the first round: class counts, per-class sums and one pooled second-moment "
        "matrix of the frozen anchor's features"
    ]


def test_its_statistics_are_those_of_fedvtc() -> None:
    quick = {"epochs": 1, "decoder_steps": 1, "finetune_last": 0}
    other = run(config(method={"name": "fedvtc", "rounds": 1}, training=quick)).summary
    assert run(config()).summary["accuracy_control"] == other["accuracy_control"]


@pytest.mark.parametrize("name", ["statistics", "afl", "fishermix"])
@pytest.mark.parametrize("mode", ["anchored", "client"])
def test_it_is_private_where_its_upload_is(name: str, mode: str) -> None:
    privacy = {"mode": mode, "population": 200, "epsilon": 20.0, "delta": 1e-3}
    summary = run(config(privacy=privacy, method={"name": name})).summary
    assert 0 < summary["epsilon"] <= 20
    assert mode == "client" or summary["accuracy_mean"] > 0.3  # three clients' noise is all there


def test_example_level_training_is_not_claimed_for_what_trains_nothing() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.mode = 'example' with method\.name"):
        check(config(privacy={"mode": "example"}))


HIDDEN = {"transport": {"masking": True}, "privacy": {"collusion": 0.0}}


@pytest.mark.parametrize("name", ["statistics", "afl", "fishermix"])
def test_masks_cover_its_one_upload(name: str) -> None:
    method = {"name": name}
    plain = run(config(clients={"cohort": 0.5}, method=method)).summary
    masked = run(config(clients={"cohort": 0.5}, method=method, **HIDDEN)).summary
    assert abs(plain["accuracy_mean"] - masked["accuracy_mean"]) <= 0.02


# ---------------------------------------------------------------- all of them

ALL = ("statistics", "afl", "fishermix", "fedcof")


def figures(summary: Summary) -> dict[str, Any]:
    """All of a summary that does not tell of time."""
    clients = [{**one, "seconds": 0, "samples": 0} for one in summary["clients"]]
    kept = {
        key: value for key, value in summary.items() if not key.startswith(("seconds", "sampl"))
    }
    return {**kept, "clients": clients, "engine": ""}


@pytest.mark.parametrize("name", ALL)
def test_one_upload_teaches_all_classes(name: str, tmp_path: Path) -> None:
    summary = run(config(method={"name": name}), out=tmp_path / "run").summary
    assert summary["accuracy_mean"] > 0.5
    assert summary["accuracy_absent_classes_mean"] > 0.4
    assert {one["architecture"] for one in summary["clients"]} == {"extractor-head"}
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rounds = [json.loads(line) for line in lines]
    assert [one["upload_bytes"] > 0 for one in rounds] == [True, False]
    assert sum(one["upload_bytes"] for one in rounds) == summary["upload_bytes_total"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"alpha": 0.05}},
        {"clients": {"cohort": 0.1}},
        {"method": {"latent": 16}},
        {"method": {"latent": 256}},
    ],
)
def test_ablations_of_participation_and_width_run(name: str, changes: dict[str, Any]) -> None:
    method = {"name": name, **changes.pop("method", {})}
    assert run(config(method=method, **changes)).summary["accuracy_mean"] > 0.4


@pytest.mark.parametrize("name", ALL)
def test_several_workers_change_nothing(name: str) -> None:
    settings = config(method={"name": name})
    assert figures(run(settings.replace(engine={"workers": 2})).summary) == figures(
        run(settings).summary
    )


@pytest.mark.parametrize("name", ALL)
def test_a_run_goes_on_where_it_was_cut_off(name: str, tmp_path: Path) -> None:
    settings, folder = config(method={"name": name}), tmp_path / "run"
    whole = figures(run(settings).summary)

    def stop(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, out=folder, callbacks=[stop])
    assert figures(resume(folder).summary) == whole


@pytest.mark.parametrize("name", ALL)
def test_the_knob_is_in_force_and_bounded(name: str) -> None:
    knob = METHODS.find(name).knob
    settings = config(method={"name": name, "knob": knob.tuned_over[-1]})
    known = GlobalStatistics.from_sum(
        ClassStatistics.of(
            np.eye(8)[np.arange(40) % 8] * 8**0.5, np.arange(40) % 3, classes=3, pooled=True
        )
    )
    kind = METHODS.find(name)
    _, mine, _ = kind.head(settings, known)
    _, usual, _ = kind.head(config(method={"name": name}), known)
    assert (mine != usual).any()
    with pytest.raises(ConfigError, match=r"method\.knob = -1 with method\.name"):
        check(config(method={"name": name, "knob": -1.0}))


def test_scores_before_any_statistics_favour_no_class() -> None:
    from fedvtc_edge.data import load_data
    from fedvtc_edge.federation.assembly import assemble
    from fedvtc_edge.training.compute import Compute

    settings = config()
    method = assemble(settings, load_data(settings), Compute.of(settings.engine))
    client = method.federation.clients[0]
    assert torch.equal(method.scores(client, client.images[:3]), torch.zeros(3, 10))
