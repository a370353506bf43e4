"""Who takes part by the virtual clock: what counts, what is missed, and what cannot close."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge import run
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.devices import DeviceProfile
from fedvtc_edge.errors import ServerError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.participation import CALLS, ParticipationSimulator
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.masking import MaskingError
from fedvtc_edge.runs.directory import RunDirectory
from fedvtc_edge.runs.records import RoundRecord
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.workflows.run import resume

Tiny = Callable[..., Config]

SOUND: dict[str, float] = {
    "cores": 1, "memory_total_mb": 8000, "fp32_gflops": 5, "memory_gbps": 2,
    "network_up_mbps": 8, "network_down_mbps": 8,
    "torch_overhead_us": 10,
}  # fmt: skip


def device(folder: Path, name: str, **figures: float) -> str:
    """Path of a profile that always answers, but for what is said."""
    path = folder / f"{name}.toml"
    lines = [f'name = "{name}"', f'title = "{name}"', 'arch = "aarch64"', 'runtime = "onnxruntime"']
    for key, value in (SOUND | figures).items():
        lines.append(f'{key} = {{ value = {float(value)}, kind = "assumed", source = "a test" }}')
    path.write_text("\n".join(lines))
    return str(path)


def attendance_of(config: Config) -> ParticipationSimulator:
    method = assemble(config, load_dataset(config.data), Compute.of(config.engine))
    clients = method.federation.clients
    names = config.clients.devices
    return ParticipationSimulator(
        method,
        {c.id: DeviceProfile.load(names[i % len(names)]) for i, c in enumerate(clients)}
        if names
        else {},
    )


def test_without_devices_everybody_comes_and_no_time_passes(tiny: Tiny) -> None:
    attendance = attendance_of(tiny())
    clients = attendance._method.federation.clients
    ids = [client.id for client in clients]
    assert attendance.opening() == (ids, [])
    turn = attendance.round(1, clients)
    assert (turn.present, turn.record) == (ids, None)
    assert attendance.now == 0


@pytest.mark.usefixtures("quick")
def test_devices_that_always_answer_change_no_result(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(clients={"architectures": ["mlp"]})
    plain = run(config).summary
    devices = [device(tmp_path, "fast"), device(tmp_path, "slow")]
    timed = run(config.replace(clients={"devices": devices})).summary
    for key in ("accuracy_mean", "accuracy_control", "accuracy_local_only_mean", "gain"):
        assert timed[key] == plain[key]
    assert plain["seconds_virtual"] is None
    assert plain["clients"][0]["seconds_virtual"] is None
    spent, whole = timed["clients"][0]["seconds_virtual"], timed["seconds_virtual"]
    assert 0 < spent <= whole + 5e-4, "it is rounded to milliseconds"
    assert [client["device"] for client in timed["clients"]] == ["fast", "slow", "fast"]
    assert timed["clients"][0]["rounds_missed"] == {}


@pytest.mark.usefixtures("quick")
def test_a_slower_device_takes_longer_and_makes_the_others_wait(tiny: Tiny, tmp_path: Path) -> None:
    devices = [device(tmp_path, "fast"), device(tmp_path, "slow", fp32_gflops=0.05)]
    result = run(tiny(clients={"devices": devices, "architectures": ["mlp"]}), out=tmp_path / "run")
    spent = [client["seconds_virtual"] for client in result.summary["clients"]]
    assert spent[1] > 3 * spent[0]
    for opening, *turns in _clocks((tmp_path / "run" / "metrics.jsonl").read_text()):
        for turn in (opening, *turns):
            fast, slow, _ = turn["clients"].values()
            length = turn["end"] - turn["begin"]
            assert slow["wait"] == pytest.approx(0, abs=1e-5)
            assert fast["wait"] == pytest.approx(length - _busy(fast), abs=1e-5)
            assert _busy(slow) == pytest.approx(length, abs=1e-5)


@pytest.mark.usefixtures("quick")
def test_who_is_late_or_away_uploads_and_learns_nothing(tiny: Tiny, tmp_path: Path) -> None:
    devices = [
        device(tmp_path, "sound"),
        device(tmp_path, "late", fp32_gflops=1e-4, deadline_s=1),
        device(tmp_path, "away", availability=0.0),
    ]
    config = tiny(clients={"devices": devices, "architectures": ["mlp"]})
    for name in ("fedvtc", "fedproto"):
        summary = run(config.replace(method={"name": name, "share": "features"})).summary
        sound, late, away = summary["clients"]
        assert late["rounds_missed"] == {"late": 3}
        assert away["rounds_missed"] == {"unreachable": 3}
        assert sound["rounds_missed"] == {}
        assert late["upload_bytes"] == away["upload_bytes"] == 0
        assert sound["upload_bytes"] > 0
        assert late["seconds"] == away["seconds"] == 0, "neither was trained"
        assert late["seconds_virtual"] == pytest.approx(3, abs=0.01), "cut off at the deadline"
        if name == "fedvtc":  # the other one classifies by published prototypes
            assert late["accuracy"] == pytest.approx(late["accuracy_local_only"])


@pytest.mark.usefixtures("quick")
def test_the_opening_calls_again_who_did_not_answer(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(clients={"count": 12, "devices": [device(tmp_path, "rare", availability=0.5)]})
    with deterministic():
        attendance = attendance_of(config)
        present, turns = attendance.opening()
    assert len(turns) == CALLS
    called = [set(turn.record.clients) for turn in turns if turn.record]
    assert called[0] > called[1] > called[2], "whoever answered is not called again"
    assert present == sorted(present)
    assert len(present) == sum(len(turn.present) for turn in turns) > len(turns[0].present)
    ends = [turn.record.end for turn in turns if turn.record]
    assert ends == sorted(ends)
    assert attendance.now == pytest.approx(ends[-1], abs=1e-6)


def test_an_opening_of_too_few_is_an_error(tiny: Tiny, tmp_path: Path) -> None:
    away = device(tmp_path, "away", availability=0.0)
    with deterministic(), pytest.raises(ServerError, match="0 of 3 clients, the quorum is 1"):
        attendance_of(tiny(clients={"devices": [away]})).opening()
    half = [device(tmp_path, "sound"), away]
    strict = tiny(clients={"devices": half}, server={"quorum": 0.9})
    with deterministic(), pytest.raises(ServerError, match="2 of 3 clients, the quorum is 3"):
        attendance_of(strict).opening()
    with deterministic():
        assert len(attendance_of(strict.replace(server={"quorum": 0.5})).opening()[0]) == 2


@pytest.mark.usefixtures("quick")
def test_a_round_of_too_few_comes_to_nothing(tiny: Tiny, tmp_path: Path) -> None:
    devices = [device(tmp_path, "sound"), device(tmp_path, "away", availability=0.0)]
    config = tiny(
        clients={"devices": devices, "architectures": ["mlp"]},
        method={"name": "fedproto"},
        server={"quorum": 1.0},
    )
    out = tmp_path / "run"
    summary = run(config, out=out).summary
    assert summary["upload_bytes_total"] == 0
    assert all(client["seconds"] == 0 for client in summary["clients"])
    assert "2 of 3 clients, the quorum is 3" in (out / "metrics.jsonl").read_text()


@pytest.mark.usefixtures("quick")
def test_masks_need_two_thirds(tiny: Tiny, tmp_path: Path) -> None:
    away = device(tmp_path, "away", availability=0.0)
    clients = {"count": 4, "devices": [device(tmp_path, "sound"), away], "architectures": ["mlp"]}
    masked = tiny(clients=clients)
    masked = masked.replace(transport={"masking": True}, method={"share": "features"})
    out = tmp_path / "run"
    summary = run(masked, out=out).summary
    assert summary["upload_bytes_total"] == 0
    assert "2 of 4 clients, the quorum is 3" in (out / "metrics.jsonl").read_text()
    enough = masked.replace(clients={"devices": [device(tmp_path, "sound")] * 3 + [away]})
    assert run(enough).summary["upload_bytes_total"] > 0


def test_a_masked_sum_of_too_few_is_refused_whoever_asks(tiny: Tiny) -> None:
    config = tiny(clients={"count": 4}, transport={"masking": True})
    with deterministic():
        method = assemble(config, load_dataset(config.data), Compute.of(config.engine))
        executor = LocalExecutor(method)
        with pytest.raises(MaskingError, match="2 of 4 clients in a masked sum, expected 3 in one"):
            take_steps(method, executor, 0, executor.clients[:2])


@pytest.mark.usefixtures("quick")
def test_the_clock_is_the_same_again_and_after_a_restart(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = device(tmp_path, "flaky", availability=0.7, dropout=0.3, deadline_s=60)
    for share in ("anchored", "features"):
        clients = {"count": 5, "devices": [flaky], "architectures": ["mlp"]}
        config = tiny(clients=clients, method={"share": share})
        whole = run(config, out=tmp_path / share / "whole")

        out = tmp_path / share / "cut"
        with monkeypatch.context() as patched:
            patched.setattr(RunDirectory, "save", _save_two_rounds)
            with pytest.raises(KeyboardInterrupt):
                run(config, out=out)
        again = resume(out)
        for key in ("seconds_virtual", "accuracy_mean", "upload_bytes_total"):
            assert again.summary[key] == whole.summary[key]
        lines = [
            (tmp_path / share / name / "metrics.jsonl").read_text() for name in ("whole", "cut")
        ]
        assert [_clocks(text) for text in lines[1:]] == [_clocks(text) for text in lines[:1]]


def _busy(line: dict[str, Any]) -> float:
    return float(line["download"] + line["compute"] + line["upload"])


_save = RunDirectory.save


def _save_two_rounds(self: RunDirectory, state: Any) -> None:
    _save(self, state)
    if state.round == 2:
        raise KeyboardInterrupt


def _clocks(text: str) -> list[Any]:

    return [json.loads(line)["clock"] for line in text.splitlines()]


def test_attendance_in_words() -> None:
    assert RoundRecord(round=1).words() == ""
    line = {"download": 0, "compute": 1, "upload": 0, "wait": 0}
    clients = {
        name: {"outcome": outcome, **line}
        for name, outcome in zip("abcd", ("done", "late", "late", "dropped"), strict=True)
    }
    turn = {"begin": 0, "end": 61.2, "void": "", "clients": clients}
    record = RoundRecord.model_validate({"round": 1, "accuracy_mean": 0.5, "clock": [turn]})
    told = "own model 50.0 %, 1 of 4 took part (1 dropped, 2 late)"
    assert record.words() == f"{told}, clock 61 s"
    record.clock[-1].void = "1 of 4 clients, the quorum is 3"
    assert record.words().startswith(f"{told}, round void: 1 of 4 clients, the quorum is 3")
