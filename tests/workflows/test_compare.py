"""A comparison: one split and one budget per seed, and every method that has a name."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset, partition
from fedvtc_edge.errors import ConfigError, RunError, UsageError
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.workflows import compare as comparison
from fedvtc_edge.workflows.compare import compare, methods_by_name

Tiny = Callable[..., Config]

# interface.md, word for word.
PROMISED = {"schema", "data", "alpha", "seeds", "methods"}
PROMISED_OF_A_METHOD = {
    "accuracy_mean",
    "accuracy_std",
    "accuracy_worst",
    "upload_bytes_total",
    "seconds",
    "per_seed",
}


@pytest.fixture
def summaries(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every run's summary, in the order of the runs."""
    kept: list[dict[str, Any]] = []
    plain = comparison.run_without_trace

    def keeping(*words: Any) -> dict[str, Any]:
        kept.append(plain(*words))
        return kept[-1]

    monkeypatch.setattr(comparison, "run_without_trace", keeping)
    return kept


def test_every_method_that_has_a_name(
    tiny: Tiny, tmp_path: Path, summaries: list[dict[str, Any]], strict_json: Callable[[str], Any]
) -> None:
    config = tiny(method={"rounds": 2}, clients={"count": 2})
    document = compare(config, list(methods_by_name()), [3], out=tmp_path)
    assert strict_json((tmp_path / "comparison.json").read_text()) == document
    assert set(document) >= PROMISED
    assert (document["data"], document["alpha"], document["seeds"]) == ("digits", 0.1, [3])
    assert list(document["methods"]) == list(methods_by_name())
    for name, entry in document["methods"].items():
        assert set(entry) >= PROMISED_OF_A_METHOD
        assert entry["per_seed"] == [entry["accuracy_mean"]]
        assert entry["accuracy_std"] is None, "one seed says nothing of the spread"
        assert 0 <= entry["accuracy_worst"] <= entry["accuracy_mean"] <= 1
        shares = name.startswith(("fed", "statistics"))
        assert (entry["upload_bytes_total"] > 0) == shares
    own = {name: entry["accuracy_control"] for name, entry in document["methods"].items()}
    silent = {"local", "local-matched", "fedproto", "fedvtc-features", "fedvtc-decoder"}
    assert {name for name, value in own.items() if value is None} == silent | {"centralised"}
    kinds = [(s["method"], s["share"], s["moments"], s["ablate"]) for s in summaries]
    names = dict(zip(methods_by_name(), kinds, strict=True))
    assert names["fedvtc-no-kl"] == ("fedvtc", "anchored", "covariance", ["kl"])
    assert names["fedvtc-diagonal"] == ("fedvtc", "anchored", "diagonal", [])
    assert names["fedvtc-decoder"] == ("fedvtc", "features+decoder", None, [])
    assert names["local-matched"] == ("local-matched", None, None, [])


def test_one_split_per_seed(tiny: Tiny, summaries: list[dict[str, Any]]) -> None:
    config = tiny(method={"rounds": 1})
    names, seeds = ["local", "fedproto", "fedvtc-features"], [4, 0]
    document = compare(config, names, seeds)
    assert [s["seed"] for s in summaries] == seeds * 3
    splits = [[client["class_counts"] for client in s["clients"]] for s in summaries]
    assert splits[0] == splits[2] == splits[4]
    assert splits[1] == splits[3] == splits[5]
    assert splits[0] != splits[1]
    data = load_dataset(config.data)
    for split, seed in zip(splits, seeds, strict=False):
        parts = partition(
            data.y_train,
            clients=3,
            classes=10,
            settings=config.data,
            seed=derive_seed(seed, "partition"),
        )
        labels = torch.from_numpy(data.y_train)
        assert split == [torch.bincount(labels[part], minlength=10).tolist() for part in parts]
    for index, name in enumerate(names):
        entry = document["methods"][name]
        pair = summaries[2 * index : 2 * index + 2]
        assert entry["per_seed"] == [s["accuracy_mean"] for s in pair], "in the order of the seeds"
        assert entry["accuracy_std"] == pytest.approx(statistics.stdev(entry["per_seed"]))
        for key in ("accuracy_mean", "accuracy_worst", "upload_bytes_total", "seconds"):
            assert entry[key] == pytest.approx(statistics.mean(s[key] for s in pair))


def test_a_stopped_comparison_keeps_what_is_done(tiny: Tiny, tmp_path: Path) -> None:
    seen: list[list[str]] = []
    file = tmp_path / "new" / "comparison.json"

    class Watch(SilentProgress):
        def start(self, total: int, what: str) -> None:
            assert (total, what) == (4, "runs")

        def advance(self, note: str = "") -> None:
            assert re.fullmatch(r"(local|fedproto), seed [01]: \d+\.\d %", note)
            seen.append(list(json.loads(file.read_text())["methods"]) if file.exists() else [])
            if len(seen) == 4:
                raise InterruptedError

    config = tiny(method={"rounds": 1})
    with pytest.raises(InterruptedError):
        compare(config, ["local", "fedproto"], [0, 1], out=tmp_path / "new", progress=Watch())
    assert seen == [[], [], ["local"], ["local"]]
    assert list(json.loads(file.read_text())["methods"]) == ["local"]


@pytest.mark.parametrize(("names", "seeds"), [([], [0]), (["local"], []), (["local", "x"], [0])])
def test_methods_and_seeds_must_be_given(
    tiny: Tiny, tmp_path: Path, names: list[str], seeds: list[int]
) -> None:
    with pytest.raises(UsageError) as refused:
        compare(tiny(), names, seeds, out=tmp_path / "new")
    assert "methods: fedvtc, statistics, local, local-matched" in refused.value.hint
    assert not (tmp_path / "new").exists()


def test_names_are_known_before_the_folder_is(tiny: Tiny, tmp_path: Path) -> None:
    for clients in ({"architectures": ["lent"]}, {"devices": ["rpi6"]}):
        with pytest.raises(ConfigError, match="unknown"):
            compare(tiny(clients=clients), ["local"], [0], out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_out_must_be_vacant(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(RunError, match="is not empty"):
        compare(tiny(), ["local"], [0], out=tmp_path)
    with pytest.raises(RunError, match="is a file"):
        compare(tiny(), ["local"], [0], out=tmp_path / "letter")
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]


def test_no_split_has_an_alpha_where_none_is_drawn(tiny: Tiny) -> None:
    config = tiny(data={"partition": "iid"}, method={"rounds": 1})
    assert compare(config, ["local"], [0])["alpha"] is None
