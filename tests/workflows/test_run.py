"""A federation as its user meets it: settings in, a summary out, whatever the settings are."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedvtc_edge
from fedvtc_edge.attacks.adversary.trials import AuditedRun
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ConfigError, DataError, FedVTCError, RunError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.training import compute
from fedvtc_edge.workflows.run import run

Tiny = Callable[..., Config]

COUNT, SHARE, TEXT = (int,), (float,), (str,)
MAYBE = (float, type(None))
NOTHING = (type(None),)

# interface.md, word for word; more keys may come, none may go.
PROMISED: dict[str, tuple[type, ...]] = {
    "schema": COUNT,
    "version": TEXT,
    "seed": COUNT,
    "method": TEXT,
    "data": TEXT,
    "share": (str, type(None)),
    "engine": TEXT,
    "device": TEXT,
    "rounds": COUNT,
    "clients": (list,),
    "accuracy_mean": SHARE,
    "accuracy_worst": SHARE,
    "accuracy_local_only_mean": SHARE,
    "accuracy_calibrated_mean": MAYBE,
    "accuracy_control": MAYBE,
    "gain": SHARE,
    "upload_bytes_total": COUNT,
    "epsilon": NOTHING,
    "delta": NOTHING,
    "privacy_unit": NOTHING,
    "privacy_mechanism": NOTHING,
    "privacy_covers": NOTHING,
    "seconds": SHARE,
    "samples_per_second": SHARE,
}
PROMISED_OF_A_CLIENT: dict[str, tuple[type, ...]] = {
    "id": TEXT,
    "architecture": TEXT,
    "device": (str, type(None)),
    "samples": COUNT,
    "classes_present": COUNT,
    "accuracy": SHARE,
    "accuracy_local_only": SHARE,
    "accuracy_absent_classes": MAYBE,
    "accuracy_calibrated": MAYBE,
    "upload_bytes": COUNT,
    "download_bytes": COUNT,
    "peak_memory_mb": SHARE,
    "seconds_virtual": NOTHING,
}

MODES: dict[str, dict[str, Any]] = {
    "anchored-covariance": {"share": "anchored", "moments": "covariance"},
    "anchored-diagonal": {"share": "anchored", "moments": "diagonal"},
    "features-covariance": {"share": "features", "moments": "covariance"},
    "features-diagonal": {"share": "features", "moments": "diagonal"},
    "decoder-covariance": {"share": "features+decoder", "moments": "covariance"},
    "decoder-diagonal": {"share": "features+decoder", "moments": "diagonal"},
    "local": {"name": "local"},
    "local-matched": {"name": "local-matched"},
    "fedproto": {"name": "fedproto"},
    "fedgh": {"name": "fedgh"},
    "fedtgp": {"name": "fedtgp"},
    "fedgen": {"name": "fedgen"},
    "ccvr": {"name": "ccvr"},
    "centralised": {"name": "centralised"},
    "no-dm": {"ablate": ["dm"]},
    "no-kl": {"ablate": ["kl"]},
    "head-only": {"ablate": ["head-only"]},
    "no-teacher": {"ablate": ["teacher"]},
    "nothing-left": {"ablate": ["dm", "kl", "head-only", "teacher"], "share": "features"},
}

SHARING = {"fedproto", "fedgh", "fedtgp", "fedgen", "ccvr"}
NARROW = {"anchored-covariance", "anchored-diagonal", "features-diagonal", "decoder-diagonal"}
NARROW |= SHARING | {"centralised"}


def has_types(record: dict[str, Any], promised: dict[str, tuple[type, ...]]) -> None:
    assert set(promised) <= set(record)
    for key, kinds in promised.items():
        assert type(record[key]) in kinds, f"{key} is {record[key]!r}"


def is_sound(summary: dict[str, Any], config: Config) -> None:
    json.dumps(summary, allow_nan=False)
    has_types(summary, PROMISED)
    assert len(summary["clients"]) == config.clients.count
    for record in summary["clients"]:
        never = {"accuracy": NOTHING, "accuracy_local_only": NOTHING}
        took_part = record["evaluated_round"] is not None
        has_types(record, PROMISED_OF_A_CLIENT | ({} if took_part else never))
        accuracies = [value for key, value in record.items() if key.startswith("accuracy")]
        assert all(value is None or 0 <= value <= 1 for value in accuracies)
        counts = record["class_counts"]
        assert sum(counts) == record["samples"]
        assert sum(count > 0 for count in counts) == record["classes_present"]
        whole = record["classes_present"] == len(summary["class_names"])
        assert (record["accuracy_absent_classes"] is None) == whole
    every = [one["accuracy"] for one in summary["clients"] if one["accuracy"] is not None]
    assert summary["accuracy_mean"] == pytest.approx(sum(every) / len(every))
    assert summary["accuracy_worst"] == min(every)
    local = summary["accuracy_local_only_mean"]
    assert summary["gain"] == pytest.approx(summary["accuracy_mean"] - local)
    uploads = [record["upload_bytes"] for record in summary["clients"]]
    assert summary["upload_bytes_total"] == sum(uploads)


# Every way to run one.


def test_what_is_held_out_is_read_and_never_trained_on(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(data={"holdout": 0.5})
    summary = run(config, out=tmp_path / "run").summary
    whole = run(tiny()).summary
    held = [
        before["samples"] - after["samples"]
        for before, after in zip(whole["clients"], summary["clients"], strict=True)
    ]
    assert held == [n // 2 if n >= 20 else 0 for n in (c["samples"] for c in whole["clients"])]
    assert any(held)
    for client, count in zip(summary["clients"], held, strict=True):
        for expert in ("", "_calibrated", "_control", "_local_only"):
            figure = client[f"accuracy_held_out{expert}"]
            assert (figure is None) == (count == 0)
            if count:
                assert figure * count == pytest.approx(round(figure * count))
    known = [c["accuracy_held_out"] for c in summary["clients"] if c["accuracy_held_out"]]
    assert summary["accuracy_held_out_mean"] == pytest.approx(sum(known) / len(known))
    assert whole["accuracy_held_out_mean"] is None
    audited = AuditedRun(FinishedRun.open(tmp_path / "run"), load_dataset(config.data))
    for client in summary["clients"]:
        assert len(audited.holdings[client["id"]]) == client["samples"]


def test_figures_at_home_follow_from_recalls_and_counts(tiny: Tiny) -> None:
    summary = run(tiny()).summary
    for client in summary["clients"]:
        pairs = list(zip(client["class_counts"], client["recall"], strict=True))
        by_hand = sum(n * r for n, r in pairs if r is not None)
        total = sum(n for n, r in pairs if r is not None)
        assert client["accuracy_own_distribution"] == pytest.approx(by_hand / total, abs=1e-4)
    recalls = [client["recall"] for client in summary["clients"]]
    for mean, values in zip(summary["recall_mean"], zip(*recalls, strict=True), strict=True):
        assert mean == pytest.approx(np.mean(values), abs=1e-4)
    assert len(summary["recall_control"]) == len(summary["class_names"])


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_ends_in_a_sound_summary(tiny: Tiny, mode: str) -> None:
    config = tiny(method=MODES[mode])
    summary = run(config).summary
    is_sound(summary, config)
    assert summary["method"] == config.method.name
    federated = config.method.name == "fedvtc"
    anchored = federated and config.method.share == "anchored"
    weights = {"fedgen": "heads", "ccvr": "features+heads"}.get(mode)
    assert summary["share"] == (config.method.share if federated else weights)
    assert summary["moments"] == (config.method.moments if anchored else None)
    assert (summary["accuracy_control"] is not None) == anchored
    assert (summary["accuracy_calibrated_mean"] is not None) == anchored
    assert bool(summary["upload_bytes_total"]) == (federated or mode in SHARING)


def test_what_is_learned_is_more_than_chance(tiny: Tiny) -> None:
    long = {"rounds": 2, "latent": 16, "anchor": 64}
    recipe = {"epochs": 4, "finetune_last": 40, "decoder_steps": 15}
    data = {"limit": 600, "test_limit": 300}
    summary = run(tiny(method=long, training=recipe, data=data, clients={"count": 2})).summary
    assert summary["accuracy_control"] > 0.8
    assert summary["accuracy_mean"] > summary["accuracy_local_only_mean"] > 0.15


def test_the_same_seed_is_the_same_run(tiny: Tiny, untimed: Callable[[Any], Any]) -> None:
    first, again, other = (run(tiny(seed=seed)).summary for seed in (0, 0, 1))
    assert untimed(first) == untimed(again)
    assert untimed(first) | {"seed": 1} != untimed(other)
    splits = [[c["class_counts"] for c in summary["clients"]] for summary in (first, other)]
    assert splits[0] != splits[1]


def test_torch_is_left_as_it_was_found(tiny: Tiny) -> None:
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    run(tiny(method={"rounds": 1}))
    with pytest.raises(DataError):
        run(tiny(clients={"count": 150}))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_devices_and_architectures_are_given_in_turn(tiny: Tiny) -> None:
    settings = {"count": 5, "architectures": ["mlp", "lenet"], "devices": ["rpi4", "rpi5", "rpi4"]}
    made = run(tiny(clients=settings, method={"rounds": 1})).summary["clients"]
    assert [record["architecture"] for record in made] == ["mlp", "lenet", "mlp", "lenet", "mlp"]
    assert [record["device"] for record in made] == ["rpi4", "rpi5", "rpi4", "rpi4", "rpi5"]


# Unusual, but right.


@pytest.mark.parametrize(
    "changes",
    [
        {"clients": {"count": 1}},
        {"clients": {"count": 2}},
        {"clients": {"cohort": 0.5}},
        {"clients": {"cohort": 0.01}, "method": {"share": "features"}},
        {"clients": {"cohort": 0.34}, "method": {"name": "fedproto"}},
        {"method": {"rounds": 1}},
        {"method": {"latent": 512}, "data": {"limit": 60}},
        {"method": {"latent": 2, "anchor": 2}},
        {"method": {"anchor": 512}, "data": {"limit": 60}},
        {"training": {"batch": 250}, "clients": {"count": 2}},
        {"training": {"finetune_last": 0, "finetune_from": 99}},
        {"engine": {"precision": "bfloat16"}},
        {"data": {"evaluate": "validation"}},
        {"data": {"partition": "iid"}},
        {"data": {"alpha": 1e-6, "min_samples": 1}},
    ],
    ids=str,
)
def test_unusual_settings_work(tiny: Tiny, changes: dict[str, Any]) -> None:
    config = tiny(**changes)
    is_sound(run(config).summary, config)


@pytest.mark.parametrize("mode", sorted(NARROW))
def test_one_class_for_each_client(tiny: Tiny, archive: Callable[..., str], mode: str) -> None:
    data = {"name": archive([label for label in range(4) for _ in range(10)]), "limit": 0}
    data |= {"partition": "shards", "shards": 1, "min_samples": 1}
    config = tiny(data=data, clients={"count": 4}, method=MODES[mode] | {"rounds": 2})
    summary = run(config).summary
    is_sound(summary, config)
    assert [record["classes_present"] for record in summary["clients"]] == [1, 1, 1, 1]


@pytest.mark.parametrize("mode", ["anchored-covariance", "anchored-diagonal", "features-diagonal"])
def test_one_sample_for_each_client(tiny: Tiny, archive: Callable[..., str], mode: str) -> None:
    data = {"name": archive([0, 1, 2, 1]), "limit": 0, "partition": "iid", "min_samples": 1}
    every = ["lenet", "resnet8", "mobilenet", "shufflenet"]
    config = tiny(
        data=data, clients={"count": 4, "architectures": every}, method=MODES[mode] | {"rounds": 2}
    )
    summary = run(config).summary
    is_sound(summary, config)
    assert [record["samples"] for record in summary["clients"]] == [1, 1, 1, 1]


@pytest.mark.parametrize("mode", sorted(NARROW))
@pytest.mark.usefixtures("quick")
def test_a_class_that_nobody_has(
    tiny: Tiny, archive: Callable[..., str], tmp_path: Path, mode: str
) -> None:
    name = archive([label for label in range(9) for _ in range(8)], classes=10)
    config = tiny(data={"name": name, "limit": 0}, method=MODES[mode] | {"rounds": 2})
    result = run(config, out=tmp_path / "run")
    is_sound(result.summary, config)
    assert len(result.summary["class_names"]) == 10
    from safetensors.torch import load_file

    for path in sorted((tmp_path / "run").rglob("*.safetensors")):
        for key, value in load_file(path).items():
            assert torch.isfinite(value.float()).all(), f"{path.name}: {key}"


@pytest.mark.parametrize("mode", ["anchored-covariance", "features-diagonal"])
def test_a_hundred_classes(tiny: Tiny, archive: Callable[..., str], mode: str) -> None:
    name = archive([label for label in range(100) for _ in range(2)])
    method = MODES[mode] | {"latent": 64, "rounds": 2}
    config = tiny(data={"name": name, "limit": 0}, method=method)
    is_sound(run(config).summary, config)


@pytest.mark.parametrize(("size", "channels"), [(12, 3), (28, 1), (32, 3)])
def test_other_images(tiny: Tiny, archive: Callable[..., str], size: int, channels: int) -> None:
    name = archive([0, 1, 2] * 10, size=size, channels=channels)
    every = ["lenet", "resnet8", "mobilenet", "shufflenet", "mlp"]
    config = tiny(
        data={"name": name, "limit": 0, "min_samples": 2},
        clients={"count": 5, "architectures": every},
        method={"rounds": 1},
    )
    is_sound(run(config).summary, config)


# Wrong, and refused before anything is left behind.


@pytest.mark.parametrize(
    ("changes", "error", "message", "hint"),
    [
        ({"clients": {"architectures": ["lent"]}}, ConfigError, "'lent'", "did you mean lenet?"),
        (
            {"clients": {"count": 1, "architectures": ["mlp", "zzz"]}},
            ConfigError,
            "unknown architecture 'zzz'",
            "known: ",
        ),
        ({"clients": {"devices": ["rpi6"]}}, ConfigError, "'rpi6'", "did you mean rpi5?"),
        ({"engine": {"device": "cuda:99"}}, ConfigError, "no such device", '"auto" or "cpu"'),
        ({"clients": {"count": 99}}, DataError, "200 samples for 99 clients", "at most 25"),
        ({"data": {"name": "digit"}}, DataError, "unknown data set 'digit'", "did you mean digits"),
        ({"data": {"name": "no/such.npz"}}, DataError, "no data set at", "relative paths"),
    ],
    ids=lambda value: None if isinstance(value, (str, type)) else str(value),
)
def test_nothing_is_left_of_a_run_that_cannot_begin(
    tiny: Tiny,
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[FedVTCError],
    message: str,
    hint: str,
) -> None:
    with pytest.raises(error) as refused:
        run(tiny(**changes), out=tmp_path / "deep" / "run")
    assert message in str(refused.value)
    assert hint in refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_a_gpu(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"engine\.device = 'cuda'"):
        run(tiny(engine={"device": "cuda"}))


@pytest.mark.parametrize("rounds", [0, -1])
def test_no_rounds_are_no_run(tiny: Tiny, rounds: int) -> None:
    with pytest.raises(ConfigError, match=r"method\.rounds"):
        tiny(method={"rounds": rounds})


@pytest.mark.usefixtures("quick")
def test_out_must_be_vacant(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(method={"rounds": 1, "name": "local"})

    def refused(out: Path) -> RunError:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(RunError) as error:
            run(config, out=out)
        assert sorted(tmp_path.rglob("*")) == before
        return error.value

    (tmp_path / "file").write_text("mine")
    assert "is a file" in str(refused(tmp_path / "file"))
    assert "Not a directory" in str(refused(tmp_path / "file" / "below"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("dear")
    assert "is not empty" in str(refused(tmp_path / "full"))

    (tmp_path / "empty").mkdir()
    run(config, out=tmp_path / "empty")
    again = refused(tmp_path / "empty")
    assert "a finished run" in str(again)
    assert "another --out" in again.hint

    class Stop(SilentProgress):
        def advance(self, note: str = "") -> None:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(config, out=tmp_path / "cut", progress=Stop())
    again = refused(tmp_path / "cut")
    assert "an unfinished run" in str(again)
    assert f"--resume {tmp_path / 'cut'}" in again.hint


def test_clients_share_the_data_out(tiny: Tiny) -> None:
    config = tiny(clients={"count": 4}, method={"name": "local"})
    data = load_dataset(config.data)
    dealt = assemble(config, data, compute.Compute.of(config.engine)).federation.clients
    assert sum(len(client.images) for client in dealt) == len(data.y_train) == 200
    total = sum((client.counts for client in dealt), torch.zeros(10, dtype=torch.int64))
    assert total.tolist() == torch.bincount(torch.from_numpy(data.y_train)).tolist()
    assert [client.id for client in dealt] == [f"client-0{index}" for index in range(4)]
    assert all(client.decoder is None for client in dealt)
    assert all(0 <= client.images.min() <= client.images.max() <= 1 for client in dealt)


def test_the_package_says_its_version() -> None:
    assert fedvtc_edge.__version__ == metadata.version("fedvtc-edge")
