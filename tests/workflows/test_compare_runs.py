"""A comparison: one split and one budget per seed, cell by cell, and every method with a name."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset, partition
from fedvtc_edge.errors import ConfigError, RunError, UsageError
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.workflows.compare import compare, methods_by_name, settings_of, worker

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
    plain = worker.run_without_trace

    def keeping(*words: Any) -> dict[str, Any]:
        kept.append(plain(*words))
        return kept[-1]

    monkeypatch.setattr(worker, "run_without_trace", keeping)
    return kept


def timeless(document: Any) -> Any:
    """A comparison without what a clock measured."""
    if isinstance(document, dict):
        clocks = ("seconds", "decoder_seconds")
        return {key: timeless(value) for key, value in document.items() if key not in clocks}
    return [timeless(value) for value in document] if isinstance(document, list) else document


def test_every_method_that_has_a_name(
    tiny: Tiny, tmp_path: Path, summaries: list[dict[str, Any]], strict_json: Callable[[str], Any]
) -> None:
    config = tiny(method={"rounds": 1}, clients={"count": 2}, compare={"rounds": 1})
    document = compare(config, list(methods_by_name()), [3], out=tmp_path)
    assert strict_json((tmp_path / "comparison.json").read_text()) == document
    assert set(document) >= PROMISED
    assert (document["data"], document["alpha"], document["seeds"]) == ("digits", 0.1, [3])
    assert list(document["methods"]) == list(methods_by_name())
    can = {name: entry for name, entry in document["methods"].items() if "refused" not in entry}
    assert set(can) >= {"fedvtc", "statistics", "local", "fedproto", "fedvtc-latent-16"}
    for entry in can.values():
        assert set(entry) >= PROMISED_OF_A_METHOD
        assert entry["per_seed"] == [entry["accuracy_mean"]]
        assert entry["accuracy_std"] is None, "one seed says nothing of the spread"
        assert 0 <= entry["accuracy_worst"] <= entry["accuracy_mean"] <= 1
        assert (entry["upload_bytes_total"] > 0) == (entry["shares"] not in ("nothing", "data"))
    silent = {"local", "local-matched", "centralised", "fedvtc-features", "fedvtc-decoder"}
    assert all(can[name]["accuracy_control"] is None for name in silent)
    assert can["centralised"]["ceiling"]
    kinds = [(s["method"], s["share"], s["moments"], s["ablate"]) for s in summaries]
    names = dict(zip(can, kinds, strict=True))
    assert names["fedvtc-no-kl"] == ("fedvtc", "anchored", "covariance", ["kl"])
    assert names["fedvtc-diagonal"] == ("fedvtc", "anchored", "diagonal", [])
    assert names["fedvtc-decoder"] == ("fedvtc", "features+decoder", None, [])
    assert names["local-matched"] == ("local-matched", None, None, [])


def test_one_split_per_seed(tiny: Tiny, summaries: list[dict[str, Any]]) -> None:
    config = tiny(method={"rounds": 1}, compare={"rounds": 1})
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
        assert entry["accuracy_low"] < entry["accuracy_mean"] < entry["accuracy_high"]
        for key in ("accuracy_mean", "accuracy_worst", "upload_bytes_total", "seconds"):
            assert entry[key] == pytest.approx(statistics.mean(s[key] for s in pair))


def test_a_run_alone_says_the_same(tiny: Tiny) -> None:
    """Measured in the last round only, and in no directory: no figure changes."""
    from fedvtc_edge import run

    config = tiny(compare={"rounds": 4})
    entry = compare(config, ["fedproto"], [5])["methods"]["fedproto"]
    changes = {"method": {"name": "fedproto"}, "training": {}}
    if entry["rounds"] == 4:  # it exchanges something in each round
        changes = {"method": {"name": "fedproto", "rounds": 4}, "training": {"matched_rounds": 3}}
    summary = run(config.replace(seed=5, **changes)).summary
    assert entry["accuracy_mean"] == summary["accuracy_mean"]
    assert entry["accuracy_home"] == summary["accuracy_home_mean"]
    assert entry["upload_bytes_total"] == summary["upload_bytes_total"]


def test_more_rounds_where_each_shares(tiny: Tiny, summaries: list[dict[str, Any]]) -> None:
    config = tiny(compare={"rounds": 6}, training={"decoder_steps": 4})
    compare(config, ["fedvtc", "fedvtc-features", "local-matched"], [0])
    assert [s["rounds"] for s in summaries] == [3, 6, 3]


def test_several_processes_say_the_same(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(method={"rounds": 1}, compare={"alphas": [0.1, 1.0]})
    names, seeds = ["local", "statistics", "fedproto"], [0, 1]
    one = compare(config, names, seeds)
    two = compare(config.replace(engine={"workers": 2}), names, seeds, out=tmp_path / "new")
    assert timeless(one) == timeless(two)
    assert [(table["data"], table["alpha"]) for table in one["tables"]] == [
        ("digits", 0.1),
        ("digits", 1.0),
    ]
    with (tmp_path / "new" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["data", "alpha", "method", "seed", "metric", "value"]
    told = {
        (row["alpha"], row["method"], row["seed"]): float(row["value"])
        for row in rows
        if row["metric"] == "accuracy_mean"
    }
    assert len(told) == 2 * 3 * 2
    for table in two["tables"]:
        for name, entry in table["methods"].items():
            key = str(table["alpha"])
            assert [told[key, name, str(seed)] for seed in seeds] == entry["per_seed"]


def test_data_sets_that_are_not_there_are_left_out(tiny: Tiny, archive: Callable[..., str]) -> None:
    made = archive([label % 4 for label in range(120)])
    sets = ({"name": made, "alphas": [1.0]}, "digits", "away", {"name": "digits", "limit": 100})
    config = tiny(method={"rounds": 1}, compare={"datasets": sets, "alphas": [10.0]})
    said: list[str] = []

    class Hearing(SilentProgress):
        def say(self, text: str) -> None:
            said.append(text)

    document = compare(config, ["statistics"], [0], progress=Hearing())
    tables = [(table["data"], table["alpha"], table["samples"]) for table in document["tables"]]
    label = Path(made).stem
    assert tables == [(label, 1.0, 120), ("digits 200", 10.0, 200), ("digits 100", 10.0, 100)]
    assert "unknown data set 'away'" in document["left_out"]["away"]
    assert any(text.startswith("left out, away: ") for text in said)
    with pytest.raises(UsageError, match="unknown data set 'away'"):
        compare(config.replace(compare={"datasets": ["away"]}), ["statistics"], [0])


def test_what_cannot_run_is_a_row_that_says_why(tiny: Tiny) -> None:
    config = tiny(privacy={"mode": "anchored"}, method={"rounds": 1})
    document = compare(config, ["statistics", "local-matched"], [0])
    assert document["methods"]["statistics"]["accuracy_mean"] is not None
    entry = document["methods"]["local-matched"]
    assert "not noised" in entry["refused"]
    assert "accuracy_mean" not in entry
    with pytest.raises(ConfigError, match="not noised"):
        compare(config, ["local-matched"], [0])


def test_a_cell_that_fails_is_no_end_of_the_others(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = worker.run_without_trace

    def run(config: Config, data: Any) -> dict[str, Any]:
        if config.method.name == "local" and config.seed == 1:
            raise ConfigError("no room", hint="more room")
        return plain(config, data)

    monkeypatch.setattr(worker, "run_without_trace", run)
    methods = compare(tiny(method={"rounds": 1}), ["local", "statistics"], [0, 1])["methods"]
    assert methods["local"]["per_seed"][1] is None
    assert methods["local"]["accuracy_mean"] == methods["local"]["per_seed"][0]
    methods = compare(tiny(method={"rounds": 1}), ["local", "statistics"], [1])["methods"]
    assert methods["local"]["refused"] == "no room"
    assert methods["statistics"]["accuracy_mean"] is not None


def test_a_stopped_comparison_goes_on(
    tiny: Tiny, tmp_path: Path, summaries: list[dict[str, Any]]
) -> None:
    seen: list[list[str]] = []
    out = tmp_path / "new"

    class Watch(SilentProgress):
        def start(self, total: int, what: str) -> None:
            assert (total, what) == (4, "runs")

        def advance(self, note: str = "") -> None:
            cell = r"digits, α 0\.1: (local|fedproto), seed [01]: \d+\.\d %(; about \d+ s left)?"
            assert re.fullmatch(cell, note)
            assert note.endswith("left") == (len(seen) < 3)
            file = out / "comparison.json"
            seen.append(list(json.loads(file.read_text())["methods"]) if file.exists() else [])
            if len(seen) == 3:
                raise InterruptedError

    config = tiny(method={"rounds": 1})
    with pytest.raises(InterruptedError):
        compare(config, ["local", "fedproto"], [0, 1], out=out, progress=Watch())
    assert seen == [[], ["local"], ["local"]]
    assert len(summaries) == 3
    document = compare(config, ["local", "fedproto"], [0, 1], out=out)
    assert len(summaries) == 4, "only what was not done"
    assert timeless(document) == timeless(compare(config, ["local", "fedproto"], [0, 1]))
    more = compare(config, ["local", "fedproto"], [0, 1, 2], out=out)
    assert len(summaries) == 10
    assert more["methods"]["local"]["per_seed"][:2] == document["methods"]["local"]["per_seed"]


def test_cells_of_other_settings_are_not_mixed_in(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(method={"rounds": 1})
    compare(config, ["local"], [0], out=tmp_path)
    compare(config.replace(engine={"workers": 2, "memory_mb": 100}), ["local"], [0], out=tmp_path)
    with pytest.raises(RunError, match="measured with other settings") as refused:
        compare(config.replace(training={"rate": 0.1}), ["local"], [0], out=tmp_path)
    assert "holds as config" in refused.value.hint
    (file,) = (tmp_path / "cells").iterdir()
    document = json.loads(file.read_text())
    assert document["config"]["training"]["rate"] == config.training.rate
    assert settings_of(tmp_path).training.rate == config.training.rate  # nothing was replaced
    file.write_text(json.dumps(document | {"version": "0.0.1"}))
    with pytest.raises(RunError, match=r"made by fedvtc-edge 0\.0\.1"):
        compare(config, ["local"], [0], out=tmp_path)
    result = document["result"]
    broken = (
        {},
        {"figures": result["figures"]},
        result | {"seconds": "soon"},
        result | {"figures": result["figures"] | {"accuracy_mean": "high"}},
    )
    for damage in ("", "[]", "{}", *(json.dumps(document | {"result": one}) for one in broken)):
        file.write_text(damage)
        with pytest.raises(RunError, match="is damaged"):
            compare(config, ["local"], [0], out=tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_killed_in_the_middle_of_a_cell(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(method={"rounds": 1}, engine={"workers": 2})
    long = config.replace(training={"epochs": 100_000})
    file, out = tmp_path / "tiny.toml", tmp_path / "out"
    file.write_text(tomli_w.dumps(long.model_dump(mode="json", exclude_none=True)))
    words = ["compare", str(file), "--methods", "statistics,local", "--seeds", "0,1"]
    with subprocess.Popen(
        [sys.executable, "-m", "fedvtc_edge", *words, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(3)]
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert [line.split(" ")[0] for line in lines] == ["runs:"] * 3
    assert len(list((out / "cells").glob("*statistics*.json"))) == 2
    document = json.loads((out / "comparison.json").read_text())
    assert list(document["methods"]) == ["statistics"]


@pytest.mark.parametrize(("names", "seeds"), [([], [0]), (["local"], []), (["local", "x"], [0])])
def test_methods_and_seeds_must_be_given(
    tiny: Tiny, tmp_path: Path, names: list[str], seeds: list[int]
) -> None:
    with pytest.raises(UsageError) as refused:
        compare(tiny(), names, seeds, out=tmp_path / "new")
    assert "methods: fedvtc, statistics, " in refused.value.hint
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


# Tuning, ablations and audits.


def test_numbers_are_tuned_on_validation_data_alone(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedvtc_edge.federation.methods import FedVTC

    seen: list[tuple[str, int, float | None]] = []
    plain = worker.run_without_trace

    def run(config: Config, data: Any) -> dict[str, Any]:
        seen.append((config.data.evaluate, config.seed, config.method.knob))
        summary = plain(config, data)
        if config.data.evaluate == "validation":  # 0.3 is best, whatever was measured
            summary["accuracy_mean"] = 1.0 - abs((config.method.knob or 0) - 0.3)
        return summary

    monkeypatch.setattr(worker, "run_without_trace", run)
    config = tiny(method={"rounds": 1}, compare={"tune": True})
    names = ["fedvtc", "fedvtc-no-dm", "local"]
    methods = compare(config, names, [0, 2], out=tmp_path)["methods"]
    knob = FedVTC.knob
    assert knob is not None
    tried = [value for how, _, value in seen if how == "validation"]
    assert sorted(tried, key=float) == sorted({knob.default, *knob.tuned_over})
    assert {seed for how, seed, _ in seen if how == "validation"} == {1}, "it is not reported"
    tested = [(seed, value) for how, seed, value in seen if how == "test"]
    assert tested == [(0, 0.3), (2, 0.3), (0, 0.3), (2, 0.3), (0, None), (2, None)]
    for name in ("fedvtc", "fedvtc-no-dm"):
        entry = methods[name]
        assert (entry["knob"], entry["tuning"]["chosen"], entry["tuning"]["seed"]) == (0.3, 0.3, 1)
        assert entry["tuning"]["accuracy"]["0.3"] == 1.0
    assert "tuning" not in methods["local"]
    before = len(seen)
    assert compare(config, names, [0, 2], out=tmp_path)["methods"] == methods
    assert len(seen) == before


def test_a_number_that_is_set_is_not_tuned(tiny: Tiny, summaries: list[dict[str, Any]]) -> None:
    config = tiny(method={"rounds": 1, "knob": 0.7}, compare={"tune": True})
    methods = compare(config, ["fedvtc", "local"], [0])["methods"]
    assert methods["fedvtc"]["knob"] == 0.7
    assert len(summaries) == 2


def test_ablations_are_rows(tiny: Tiny) -> None:
    from fedvtc_edge.workflows.compare.rows import ABLATIONS, row, rows_of

    config = tiny(compare={"methods": ["fedvtc"], "ablations": True})
    assert rows_of(config) == ("fedvtc", *ABLATIONS)
    assert {"fedvtc-no-synthesis", "fedvtc-latent-16", "fedvtc-cohort-0.1"} <= set(ABLATIONS)
    assert set(ABLATIONS) <= set(methods_by_name())
    _, changes = row("fedvtc-latent-48", config)
    assert changes["method"]["latent"] == 48
    _, changes = row("fedvtc-cohort-0.25", config)
    assert changes["clients"] == {"cohort": 0.25}
    for wrong in ("fedvtc-latent-0", "fedvtc-cohort-2", "fedvtc-latent-16x"):
        with pytest.raises(UsageError, match="unknown method"):
            row(wrong, config)


def test_an_audit_beside_accuracy(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Path] = []

    def audit(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert words[1:4] == ["-m", "fedvtc_edge", "audit"]
        runs.append(Path(words[4]))
        assert (runs[-1] / "summary.json").is_file()
        if len(runs) == 2:
            return subprocess.CompletedProcess(words, 2, "", "fedvtc-edge: error: no\nhint: x\n")
        told = {"verdict": "leak", "exit_code": 1, "reasons": ["found", "more"]}
        return subprocess.CompletedProcess(words, 1, json.dumps(told), "")

    monkeypatch.setattr(worker.subprocess, "run", audit)
    monkeypatch.setattr("fedvtc_edge.report.render", lambda directory: directory)
    config = tiny(method={"rounds": 1}, compare={"audit": True})
    methods = compare(config, ["statistics", "local"], [3, 4], out=tmp_path)["methods"]
    told = [(entry["leakage"], entry["leakage_reason"]) for entry in methods.values()]
    assert told == [("leak", "found"), ("inconclusive", "no")]
    assert not any(path.exists() for path in runs), "runs are not kept"
    assert len(runs) == 2, "one seed of each row"
    compare(config, ["statistics", "local"], [3, 4], out=tmp_path)
    assert len(runs) == 2


def test_what_decoders_cost(tiny: Tiny) -> None:
    from fedvtc_edge.models import ImageShape, vtc

    config = tiny(method={"rounds": 1}, compare={"rounds": 1})
    names = ["fedvtc", "fedvtc-decoder", "fedvtc-features", "fedvtc-no-synthesis", "local"]
    methods = compare(config, names, [0])["methods"]
    weights = vtc.build(ImageShape(8, 1), latent=8, seed=0).state_dict().values()
    size = sum(value.numel() * 4 for value in weights)
    for name in names[:3]:
        assert methods[name]["decoder_bytes"] == size
        assert 0 < methods[name]["decoder_seconds"] < methods[name]["seconds"]
    for name in names[3:]:
        assert methods[name].get("decoder_bytes") is None
    more = methods["fedvtc-decoder"]["upload_bytes_per_client"]
    assert size < more - methods["fedvtc-features"]["upload_bytes_per_client"] < size + 10_000


def test_a_method_of_ones_own_also_in_processes(
    tiny: Tiny, tmp_path: Path, fresh: Callable[[], None]
) -> None:
    from fedvtc_edge import plugins

    plugins.load(Path(__file__).parents[1] / "plugins" / "own_method.py")
    config = tiny(method={"rounds": 1}, engine={"workers": 2})
    document = compare(config, ["magnet", "local"], [0, 1])
    assert len(document["methods"]["magnet"]["per_seed"]) == 2
    assert "magnet" in methods_by_name()


def test_the_time_left(tiny: Tiny) -> None:
    from fedvtc_edge.workflows.compare.cells import Cell
    from fedvtc_edge.workflows.compare.work import _Times

    def cell(data: str, row: str, seed: int) -> Cell:
        return Cell("score", data, 0.1, row, tiny(seed=seed))

    first, slow = cell("digits", "local", 0), cell("digits", "fedvtc", 0)
    left = [cell("digits", "local", 1), cell("mnist", "fedvtc", 0), cell("mnist", "fml", 0)]
    times = _Times({first: {"seconds": 10.0}}, [slow, *left], workers=2)
    assert times.after(slow, {"seconds": 390.0}) == "; about 5 min left"  # (10 + 390 + 200) / 2
    for one in left[:2]:
        assert times.after(one, {"seconds": 10.0}).startswith("; about ")
    assert times.after(left[2], {"seconds": 10.0}) == ""
