"""The run directory: laid out as promised, true to what happened, and never lost to a kill."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from safetensors.torch import load_file

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.errors import RunError
from fedvtc_edge.privacy.ledger import Ledger
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.runs import directory as runs
from fedvtc_edge.runs.directory import RunDirectory, new_number, number_of
from fedvtc_edge.runs.journal import Journal
from fedvtc_edge.storage.atomic import write_atomic
from fedvtc_edge.workflows.run import resume, run

Tiny = Callable[..., Config]
Contents = Callable[[Path], dict[str, Any]]
Quickly = Callable[[], AbstractContextManager[None]]

MODES: dict[str, dict[str, Any]] = {
    "anchored": {"share": "anchored"},
    "features+decoder": {"share": "features+decoder"},
    "fedproto": {"name": "fedproto"},
    "local": {"name": "local"},
}


class Cut(Exception):  # noqa: N818  (what it stands for is no error)
    """Stands for the end of a process."""


class CutAfter(SilentProgress):
    """Ends the run once so many rounds are done."""

    def __init__(self, rounds: int) -> None:
        self.left = rounds

    def advance(self, note: str = "") -> None:
        self.left -= 1
        if not self.left:
            raise Cut


def cut(config: Config, out: Path, rounds: int) -> None:
    with pytest.raises(Cut):
        run(config, out=out, progress=CutAfter(rounds))


def digests(directory: Path) -> dict[str, str]:
    """Every byte below a folder, to show that a refusal changes none."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def refuses(directory: Path, message: str, hint: str) -> None:
    before = digests(directory)
    with pytest.raises(RunError) as refused:
        resume(directory)
    assert message in str(refused.value)
    assert hint in refused.value.hint
    assert digests(directory) == before


def checkpoints(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoint").glob("round-*"))


def releases(directory: Path) -> list[dict[str, Any]]:
    """Of the file as any reader of JSON finds it, without the checks."""
    listed = json.loads((directory / "ledger.json").read_text())["releases"]
    return [{k: v for k, v in entry.items() if k != "check"} for entry in listed]


# What is there.


def test_the_layout_is_the_promised_one(
    tiny: Tiny, tmp_path: Path, strict_json: Callable[[str], Any]
) -> None:
    out = tmp_path / "run"
    config = tiny(clients={"devices": ["rpi4"]})
    result = run(config, out=out)
    assert result.directory == out
    ids = ["client-00", "client-01", "client-02"]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == sorted(
        [
            "config.toml",
            "summary.json",
            "metrics.jsonl",
            "statistics.safetensors",
            "ledger.json",
            "report.html",
            "run.json",
            "run.lock",
            "samples.npz",
            "checkpoint",
            "checkpoint/clients-000000.jsonl",
            "checkpoint/round-000003.safetensors",
            "clients",
            "server",
            "server/round-0000",
            *(f"server/round-0000/{name}.anchor.upload" for name in ids),
            *(f"clients/{name}" for name in ids),
            *(
                f"clients/{name}/{file}"
                for name in ids
                for file in ("classifier.safetensors", "decoder.safetensors", "client.json")
            ),
        ]
    )
    assert strict_json((out / "summary.json").read_text()) == result.summary
    for name, record in zip(ids, result.summary["clients"], strict=True):
        stored = strict_json((out / "clients" / name / "client.json").read_text())
        assert stored == record
        promised = {"architecture", "device", "class_counts", "accuracy", "accuracy_local_only"}
        assert promised < set(stored)
        assert load_file(out / "clients" / name / "classifier.safetensors")["head.weight"].shape
    with np.load(out / "samples.npz") as samples:
        assert samples["painted"].shape == (3, 10, 6, 8, 8, 1)
        assert samples["painted"].dtype == np.uint8
    assert b"<script src" not in (out / "report.html").read_bytes()


@pytest.mark.usefixtures("quick")
def test_one_line_of_metrics_per_round(
    tiny: Tiny, tmp_path: Path, strict_json: Callable[[str], Any]
) -> None:
    seen: list[int] = []
    out = tmp_path / "run"

    class Watch(SilentProgress):
        def advance(self, note: str = "") -> None:
            seen.append(len((out / "metrics.jsonl").read_text().splitlines()))

    summary = run(tiny(method={"share": "features"}), out=out, progress=Watch()).summary
    assert seen == [1, 2, 3], "each line is there as soon as its round is done"
    lines = [strict_json(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert lines[-1]["accuracy_mean"] == summary["accuracy_mean"]
    spent = [sum(client["upload_bytes"] for client in line["clients"]) for line in lines]
    assert sum(spent) == summary["upload_bytes_total"]
    assert all(spent)
    assert sum(line["seconds"] for line in lines) == pytest.approx(summary["seconds"], abs=0.01)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("mode", ["anchored", "features", "fedproto", "local"])
def test_the_server_saw_what_the_folder_says(tiny: Tiny, tmp_path: Path, mode: str) -> None:
    method = MODES.get(mode, {"share": mode})
    heard: dict[str, bytes] = {}
    plain = runs.RunDirectory.record_upload

    def recorder(self: RunDirectory, round_: int, sender: str, kind: str, data: bytes) -> None:
        heard[f"round-{round_:04d}/{sender}.{kind}.upload"] = data
        plain(self, round_, sender, kind, data)

    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runs.RunDirectory, "record_upload", recorder)
        summary = run(tiny(method=method, clients={"cohort": 0.67}), out=out).summary
    server = out / "server"
    stored = {
        path.relative_to(server).as_posix(): path.read_bytes()
        for path in server.rglob("*")
        if path.is_file()
    }
    assert stored == heard
    assert len(stored) == {"anchored": 3, "features": 6, "fedproto": 6, "local": 0}[mode]
    travelled = sum(len(data) + 1214 for data in stored.values())  # in envelopes
    assert summary["upload_bytes_total"] == travelled
    assert (out / "statistics.safetensors").exists() == (mode != "local")


@pytest.mark.usefixtures("quick")
def test_the_ledger_holds_every_release(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(tiny(method={"share": "features"}), out=out)
    expected = []
    for number in (1, 2, 3):
        for client in ("client-00", "client-01", "client-02"):
            file = out / "server" / f"round-{number:04d}" / f"{client}.features.upload"
            data = file.read_bytes()
            expected.append(
                {
                    "round": number,
                    "client": client,
                    "kind": "features",
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "mechanism": None,
                    "epsilon": None,
                }
            )
    assert releases(out) == expected


def test_a_run_that_releases_nothing_says_so(tiny: Tiny, tmp_path: Path, quick: None) -> None:
    run(tiny(method=MODES["local"]), out=tmp_path / "run")
    assert releases(tmp_path / "run") == []


@pytest.mark.usefixtures("quick")
def test_an_entry_is_on_disk_before_the_upload_leaves(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: Contents,
    finished: dict[str, Any],
) -> None:
    config, out = tiny(), tmp_path / "run"
    from fedvtc_edge import wire

    opened = wire.decode
    before: list[int] = []

    def cut_at_the_second(data: bytes, **agreed: Any) -> Any:
        digests = [entry["sha256"] for entry in releases(out)]
        assert hashlib.sha256(data).hexdigest() == digests[len(before)]
        before.append(len(digests))
        if len(before) == 2:
            raise Cut
        return opened(data, **agreed)

    with monkeypatch.context() as patched:
        patched.setattr(wire, "decode", cut_at_the_second)
        with pytest.raises(Cut):
            run(config, out=out)
    assert before == [3, 3], "those of an exchange are entered together"
    resume(out)
    assert len(releases(out)) == 3, "none twice, none lost"
    assert contents(out) == finished


def test_a_ledger_counts_releases_not_attempts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.begin()
    ledger.record(1, "a", "anchor", b"same")
    ledger.record(1, "a", "anchor", b"same")
    assert len(releases(tmp_path)) == 1
    again = Ledger(tmp_path / "ledger.json")
    again.reopen()
    again.record(1, "a", "anchor", b"same")
    assert len(releases(tmp_path)) == 1
    again.record(1, "b", "anchor", b"same")
    again.record(1, "a", "anchor", b"other")
    assert [(entry["client"], entry["bytes"]) for entry in releases(tmp_path)] == [
        ("a", 4),
        ("b", 4),
        ("a", 5),
    ]


def test_a_release_that_cannot_be_written_down_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.begin()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            ledger.record(1, "a", "anchor", b"x")
    assert releases(tmp_path) == []
    ledger.record(1, "a", "anchor", b"x")
    assert len(releases(tmp_path)) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("mode", ["anchored", "features+decoder"])
def test_config_toml_reproduces_the_run(
    tiny: Tiny, tmp_path: Path, contents: Contents, mode: str
) -> None:
    config = tiny(seed=7, method=MODES[mode], clients={"cohort": 0.67})
    run(config, out=tmp_path / "first")
    file = tmp_path / "first" / "config.toml"
    assert load_config(file) == config
    assert tomllib.loads(file.read_text())["training"]["rate"] == 1e-3, "defaults are spelt out"
    run(load_config(file), out=tmp_path / "second")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


# Cut off and gone on with.


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("mode", MODES)
def test_a_run_cut_after_any_round_goes_on_bit_for_bit(
    tiny: Tiny, tmp_path: Path, contents: Contents, untimed: Callable[[Any], Any], mode: str
) -> None:
    config = tiny(method=MODES[mode], clients={"cohort": 0.67})
    whole = run(config, out=tmp_path / "whole").summary
    expected = contents(tmp_path / "whole")
    for rounds in (1, 3):
        out = tmp_path / f"cut-{rounds}"
        cut(config, out, rounds)
        assert checkpoints(out) == [f"round-00000{rounds}.safetensors"]
        assert not (out / "summary.json").exists()
        result = resume(out)
        assert untimed(result.summary) == untimed(whole)
        assert contents(out) == expected
    # Again and again: what a resumed run leaves can be resumed, too.
    out = tmp_path / "often"
    cut(config, out, 1)
    with pytest.raises(Cut):
        resume(out, progress=CutAfter(2))
    resume(out)
    assert contents(out) == expected


@pytest.fixture(scope="module")
def cut_off(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, quickly: Quickly) -> Path:
    out = tmp_path_factory.mktemp("cut") / "run"
    with quickly():
        cut(tiny(), out, 2)
    return out


@pytest.fixture
def unfinished(cut_off: Path, tmp_path: Path, quick: None) -> Path:
    """A run of three rounds, cut off after the second."""
    return shutil.copytree(cut_off, tmp_path / "run")


@pytest.fixture(scope="module")
def finished(
    tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, contents: Contents, quickly: Quickly
) -> dict[str, Any]:
    """What :func:`unfinished` must come to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with quickly():
        run(tiny(), out=out)
    return contents(out)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "moment", ["before any checkpoint", "before", "within clients", "within metrics", "cleanup"]
)
def test_a_kill_around_a_checkpoint(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: Contents,
    finished: dict[str, Any],
    moment: str,
) -> None:
    out = tmp_path / "run"
    number = 1 if moment == "before any checkpoint" else 2

    def killed(path: Path, data: bytes, **options: bool) -> None:
        if path.name == f"round-00000{number}.safetensors":
            # As kill -9 leaves it: half a file under a temporary name.
            (path.parent / f".{path.name}.abc_12xy").write_bytes(data[: len(data) // 2])
            raise Cut
        write_atomic(path, data, **options)

    def torn(self: Journal, lines: Sequence[str]) -> None:
        if self.path.name.startswith(moment.split()[-1]) and self.lines:
            with self.path.open("a") as file:
                file.write(lines[0][: len(lines[0]) // 2])
            raise Cut
        append(self, lines)

    append, unlink = Journal.append, Path.unlink

    def kept(self: Path, missing_ok: bool = False) -> None:
        if self.parent.name == "checkpoint":
            raise Cut
        unlink(self, missing_ok)

    with monkeypatch.context() as patched:
        if moment == "cleanup":
            patched.setattr(Path, "unlink", kept)
        elif "within" in moment:
            patched.setattr(Journal, "append", torn)
        else:
            patched.setattr(runs, "write_atomic", killed)
        with pytest.raises(Cut):
            run(tiny(), out=out)
    if "within" in moment:
        assert checkpoints(out) == ["round-000001.safetensors", "round-000002.safetensors"]
    resume(out)
    assert contents(out) == finished
    assert not list(out.rglob(".*")), "torn files are swept away"


def test_a_torn_line_of_metrics(
    unfinished: Path, contents: Contents, finished: dict[str, Any]
) -> None:
    with (unfinished / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "accuracy_me')
    resume(unfinished)
    assert contents(unfinished) == finished


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint/clients-000000.jsonl"])
@pytest.mark.parametrize("size", [None, 3])
def test_a_file_of_lines_that_somebody_cut(unfinished: Path, name: str, size: int | None) -> None:
    path = unfinished / name
    path.unlink() if size is None else os.truncate(path, size)
    refuses(unfinished, f"{path} is damaged: {size or 0} bytes", "new folder")


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_weights_that_are_not_what_was_written(unfinished: Path, damage: str) -> None:
    path = min((unfinished / "checkpoint" / "weights").iterdir())
    if damage == "lost":
        path.unlink()
        refuses(unfinished, "lacks the weights of 1 clients, client-00", "from a copy")
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        refuses(unfinished, f"{path} is damaged", "new folder")


def test_weights_of_a_killed_round_are_removed(unfinished: Path) -> None:
    weights = unfinished / "checkpoint" / "weights"
    (weights / f"client-00.{'0' * 32}.safetensors").write_bytes(b"of a round that is done again")
    assert len(list(weights.iterdir())) == 4
    with pytest.raises(Cut):
        resume(unfinished, progress=CutAfter(2))
    assert len(list(weights.iterdir())) == 3


def test_only_our_own_torn_files_are_swept_away(unfinished: Path) -> None:
    torn = unfinished / "server" / "round-0000" / ".client-00.anchor.upload.0a_b9xyz"
    torn.write_bytes(b"half")
    mine = unfinished / ".notes"
    mine.write_text("mine")
    resume(unfinished)
    assert not torn.exists()
    assert mine.read_text() == "mine"


def test_a_kill_while_the_results_are_written(
    unfinished: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: Contents,
    finished: dict[str, Any],
) -> None:
    def killed(path: Path, data: bytes, **options: Any) -> None:
        if path.name == "summary.json":
            raise Cut
        write_atomic(path, data, **options)

    with monkeypatch.context() as patched:
        patched.setattr("fedvtc_edge.federation.summary.write_atomic", killed)
        with pytest.raises(Cut):
            resume(unfinished)
    assert not (unfinished / "summary.json").exists()
    resume(unfinished)
    assert contents(unfinished) == finished


def test_a_full_disk_costs_one_round(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    contents: Contents,
    finished: dict[str, Any],
) -> None:
    from fedvtc_edge.__main__ import main

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def at_the_second(path: Path, data: bytes, **options: bool) -> None:
        with pytest.MonkeyPatch.context() as patched:
            if path.name == "round-000002.safetensors":
                patched.setattr(os, "fsync", full)
            write_atomic(path, data, **options)

    file, out = tmp_path / "tiny.toml", tmp_path / "run"
    file.write_text(tomli_w.dumps(tiny().model_dump(mode="json", exclude_none=True)))
    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_atomic", at_the_second)
        with pytest.raises(SystemExit) as left:
            main(["run", str(file), "--out", str(out), "--quiet"])
    assert left.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error, hint = captured.err.splitlines()
    assert error == "fedvtc-edge: error: No space left on device"
    assert hint.startswith("fedvtc-edge: hint: ")
    assert "run --resume" in hint
    assert checkpoints(out) == ["round-000001.safetensors"]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1
    resume(out)
    assert contents(out) == finished


# Refused, and left as it was.


def test_a_finished_run_has_nothing_to_resume(tiny: Tiny, tmp_path: Path, quick: None) -> None:
    run(tiny(), out=tmp_path / "run")
    refuses(tmp_path / "run", "is finished already", "fedvtc-edge report")


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    refuses(tmp_path, "holds no run", "fedvtc-edge run --out")
    refuses(tmp_path / "nowhere", "holds no run", "fedvtc-edge run --out")
    refuses(tmp_path / "letter", "holds no run", "fedvtc-edge run --out")


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"version": "0.0.1"}, "made by fedvtc-edge 0.0.1 (schema 1)", "fedvtc-edge==0.0.1"),
        ({"schema": 2}, "(schema 2)", "pip install"),
        ({"config": "0"}, "config.toml was changed", "restore it"),
    ],
)
def test_a_run_of_another_version(
    unfinished: Path, change: dict[str, Any], message: str, hint: str
) -> None:
    made = json.loads((unfinished / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps(made | change))
    refuses(unfinished, message, hint)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"schema": 1}', "\xff"])
def test_a_run_that_does_not_say_its_version(unfinished: Path, text: str) -> None:
    (unfinished / "run.json").write_bytes(text.encode("latin-1"))
    refuses(unfinished, "which version", "start a new run")


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.usefixtures("quick")
def test_changed_settings(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    out = tmp_path / "run"
    if rounds:
        cut(tiny(), out, rounds)
    else:
        with monkeypatch.context() as patched:
            patched.setattr(RunDirectory, "save", lambda *_: (_ for _ in ()).throw(Cut()))
            with pytest.raises(Cut):
                run(tiny(), out=out)
    file = out / "config.toml"
    original = file.read_text()
    file.write_text(original.replace("count = 3", "count = 2"))
    refuses(out, "was changed since", "restore it")
    file.write_text("")
    refuses(out, "was changed since", "restore it")
    file.write_text(original + "\n[x]\n")
    refuses(out, "not one of this version", "")
    file.write_text("= ?")
    refuses(out, "is not TOML", "")
    file.write_text("# a comment changes nothing\n" + original)
    resume(out)


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "header", "state"])
def test_a_damaged_checkpoint(unfinished: Path, damage: str) -> None:
    (path,) = (unfinished / "checkpoint").glob("round-*")
    whole = path.read_bytes()
    if damage == "state":
        from safetensors.torch import save

        path.write_bytes(save(load_file(path), {"state": "{}"}))
    else:
        path.write_bytes(
            {
                "empty": b"",
                "garbage": bytes(range(256)) * 40,
                "truncated": whole[: len(whole) // 2],
                "header": b"\xff" * 8 + whole[8:],
            }[damage]
        )
    refuses(unfinished, f"{path} is damaged", "new folder")
    path.write_bytes(whole)
    resume(unfinished)


def test_a_checkpoint_of_another_run(tiny: Tiny, unfinished: Path, tmp_path: Path) -> None:
    cut(tiny(seed=1), tmp_path / "other", 2)
    (path,) = (unfinished / "checkpoint").glob("round-*")
    shutil.copy(tmp_path / "other" / "checkpoint" / path.name, path)
    refuses(unfinished, "is of another run", "new folder")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        '{"schema": 1}',
        '{"schema": 2, "releases": []}',
        '{"schema": 1, "releases": [{}]}',
        '{"schema": 1, "releases": 3}',
    ],
)
def test_a_damaged_ledger(unfinished: Path, text: str | None) -> None:
    path = unfinished / "ledger.json"
    path.unlink() if text is None else path.write_text(text)
    refuses(unfinished, "does not say what was released", "start a new one")


def test_a_ledger_that_was_cut_off_between_two_entries(unfinished: Path) -> None:
    """By itself it looks like one that was being written; the checkpoint knows how long it was."""
    path = unfinished / "ledger.json"
    number = len(releases(unfinished))
    head, *lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([head, *lines[:2]]))
    with pytest.raises(RunError, match=f"of {number} entries there are 2, or others") as refused:
        resume(unfinished)
    assert "start a new one" in refused.value.hint


def test_a_run_that_may_not_be_written(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    refuses(unfinished, f"cannot write {unfinished}", "permission")


def test_a_folder_that_cannot_be_made(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(RunError, match="Permission denied") as error:
        run(tiny(), out=tmp_path / "run")
    assert "--out" in error.value.hint


# A real end.

MOMENTS = (0, 1, 8)
"""Rounds that are done when the process is killed; 0 is before the first has ended."""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_kill_minus_nine(
    tiny: Tiny,
    tmp_path: Path,
    contents: Contents,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny(method={"share": "features+decoder", "rounds": 12}, clients={"cohort": 0.67})
    file = tmp_path / "tiny.toml"
    file.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    chance = random.Random(9)
    out = tmp_path / "run"
    words = ["run", str(file), "--out", str(out)]
    # One run, killed again and again: each moment finds what the one before left.
    for rounds in MOMENTS:
        with subprocess.Popen(
            [sys.executable, "-m", "fedvtc_edge", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith(f"rounds: {rounds}/12" if rounds else "rounds: 12 to do"):
                    break
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
            assert process.returncode == -signal.SIGKILL
        done = len((out / "metrics.jsonl").read_text().splitlines()) if rounds else 0
        assert rounds <= done < 12, "it was killed in the middle"
        words = ["run", "--resume", str(out)]
    from fedvtc_edge.__main__ import main

    with pytest.raises(SystemExit) as left:
        main([*words, "--quiet", "--json"])
    assert left.value.code == 0
    number = number_of(out)  # drawn by the process that was killed first
    monkeypatch.setattr("fedvtc_edge.runs.directory.new_number", lambda: number)
    run(config, out=tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.rglob(".*"))


def test_equal_settings_are_two_runs_and_a_resumed_one_is_the_same(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedvtc_edge.runs.directory.new_number", new_number)  # the random one
    made = [RunDirectory.create(tmp_path / name, tiny()) for name in ("one", "two")]
    assert made[0].name != made[1].name
    for directory in made:
        assert RunDirectory.reopen(directory.path).name == directory.name
    document = json.loads((made[0].path / "run.json").read_text())
    for number in (None, 3, "0" * 31, "g" * 32):
        (made[0].path / "run.json").write_text(json.dumps(document | {"number": number}))
        with pytest.raises(RunError, match="which run it is"):
            RunDirectory.reopen(made[0].path)


@pytest.mark.usefixtures("quick")
def test_what_the_server_saw_is_the_owners_alone(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "run"
    privacy = {"mode": "client", "delta": 1e-3}
    run(tiny(method={"rounds": 1}, privacy=privacy, clients={"count": 4}), out=out)
    found = [out / "server", *(out / "server").rglob("*")]
    assert any(path.suffix == ".release" for path in found)
    assert any(path.suffix == ".upload" for path in found)
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
