"""The choice of an extractor: on training images alone, once, and not where it would tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data import hold_out, load_data, partition
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.federation import choosing
from fedvtc_edge.federation.choosing import MOST, _parts, choose
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.models.pretrained import LITE0
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.workflows import run as workflow
from fedvtc_edge.workflows.run import resume, run

SMALL: dict[str, Any] = {
    "data": {"limit": 150, "test_limit": 40, "alpha": 1.0},
    "clients": {"count": 3, "architectures": ["mlp"]},
    "method": {"name": "statistics", "anchor": 16, "rounds": 2, "extractor": "choose"},
    "training": {"epochs": 1},
}


def config(**tables: Any) -> Config:
    return load_config({**SMALL, **{k: {**SMALL.get(k, {}), **v} for k, v in tables.items()}})


def silent(_: str) -> None:
    pass


def test_digits_are_too_small_for_all_but_one() -> None:
    heard: list[str] = []
    settings = config()
    chosen, accuracies = choose(settings, load_data(settings), heard.append)
    assert chosen.method.extractor == "random"
    assert list(accuracies) == ["random"]
    assert accuracies["random"] > 0.5
    assert heard == [
        f"extractor {LITE0} is not tried: images of 8 px for a pretrained extractor, from 16 px on"
    ]


def test_the_better_one_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(data={"image_size": 16, "limit": 60})
    data = load_data(settings)
    chosen, accuracies = choose(settings, data, silent)
    assert set(accuracies) == {"random", LITE0}
    assert accuracies[chosen.method.extractor] == max(accuracies.values())
    monkeypatch.setattr(choosing, "_accuracy", lambda anchor, *_: 0.9 if anchor.sha256 else 0.5)
    assert choose(settings, data, silent)[0].method.extractor == LITE0


def test_images_that_are_held_out_of_training_choose_nothing() -> None:
    settings = config(data={"holdout": 0.3, "limit": 0})
    data = load_data(settings)
    fitted, held = _parts(settings, data)
    read = {int(index) for part in (*fitted, held) for index in part}
    parts = partition(
        data.y_train,
        clients=settings.clients.count,
        classes=data.classes,
        settings=settings.data,
        seed=derive_seed(settings.seed, "partition"),
    )
    for client, part in zip(settings.client_ids, parts, strict=True):
        hidden = part[hold_out(data.y_train[part], settings, client)[1]]
        assert len(hidden)
        assert not read & set(hidden.tolist())


@pytest.mark.parametrize("count", [150, 1500])
def test_nothing_is_both_fitted_and_held_out(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "MOST", 500)
    settings = config(data={"limit": count})
    data = load_data(settings)
    fitted, held = _parts(settings, data)
    every = np.concatenate([*fitted, held])
    assert len(every) == len(set(every.tolist()))
    assert len(every) == pytest.approx(min(count, 500), abs=5)
    assert len(held) == pytest.approx(len(every) / 5, abs=3)
    assert MOST == 2_000


def test_a_run_names_the_winner_and_a_resumed_one_asks_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = run(config(), out=tmp_path / "whole").summary

    class CutError(Exception):
        pass

    def cut(line: dict[str, Any]) -> None:
        raise CutError

    with pytest.raises(CutError):
        run(config(), out=tmp_path / "cut", callbacks=[cut])
    monkeypatch.setattr(workflow, "choose", lambda *_: pytest.fail("it was decided already"))
    summary = resume(tmp_path / "cut").summary
    assert list(summary["extractor_choice"]) == ["random"]
    assert summary["extractor_choice"] == whole["extractor_choice"]
    assert summary["accuracy_mean"] == whole["accuracy_mean"]
    assert "choose" not in (tmp_path / "cut" / "config.toml").read_text()
    written = json.loads((tmp_path / "cut" / "summary.json").read_text())
    assert written["extractor_choice"] == whole["extractor_choice"]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"privacy": {"mode": "anchored"}}, "it reads data, unaccounted for"),
        ({"transport": {"masking": True}, "privacy": {"collusion": 0.0}}, "unmask"),
        ({"engine": {"name": "flower"}}, "on engine flower"),
        ({"method": {"name": "local"}}, "for method.name = 'local'"),
        ({"method": {"name": "fedvtc", "share": "features"}}, "for method.name = 'fedvtc'"),
    ],
)
def test_a_choice_that_would_tell_or_help_nobody_is_refused(
    tables: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=r"method\.extractor = 'choose'") as caught:
        check(config(**tables))
    assert words in str(caught.value)
