"""Statistics alone: every client's model is the control, and no network learns from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedvtc_edge.config import load_config
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.training.client import Client
from fedvtc_edge.workflows.run import run

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
    other = run(config(method={"name": "fedvtc"}, training={"epochs": 1})).summary
    assert run(config()).summary["accuracy_control"] == other["accuracy_control"]


@pytest.mark.parametrize("mode", ["anchored", "client"])
def test_it_is_private_where_its_upload_is(mode: str) -> None:
    privacy = {"mode": mode, "population": 200, "epsilon": 20.0, "delta": 1e-3}
    summary = run(config(privacy=privacy)).summary
    assert 0 < summary["epsilon"] <= 20


def test_example_level_training_is_not_claimed_for_what_trains_nothing() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.mode = 'example' with method\.name"):
        check(config(privacy={"mode": "example"}))


def test_masks_cover_its_one_upload() -> None:
    plain = run(config(clients={"cohort": 0.5})).summary
    hidden = {"transport": {"masking": True}, "privacy": {"collusion": 0.0}}
    masked = run(config(clients={"cohort": 0.5}, **hidden)).summary
    assert abs(plain["accuracy_control"] - masked["accuracy_control"]) <= 0.02


def test_scores_before_any_statistics_favour_no_class() -> None:
    from fedvtc_edge.data import load_data
    from fedvtc_edge.federation.assembly import assemble
    from fedvtc_edge.training.compute import Compute

    settings = config()
    method = assemble(settings, load_data(settings), Compute.of(settings.engine))
    client = method.federation.clients[0]
    assert torch.equal(method.scores(client, client.images[:3]), torch.zeros(3, 10))
