"""A folder in which a client survives between two messages."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvtc_edge.config import Config
from fedvtc_edge.distributed.client.state import ClientCheckpoint, ClientState
from fedvtc_edge.distributed.messages import RequestError
from fedvtc_edge.errors import PrivacyError, RunError
from fedvtc_edge.runs.directory import as_toml, public_name
from fedvtc_edge.wire.context import Context

NUMBER = "0123456789abcdef" * 2
RUN, OTHER = "0" * 32, "1" * 32
TERMS = '{"classes": "agreed"}'


@pytest.fixture
def home(tmp_path: Path, quick: None, small: Callable[..., Config]) -> ClientState:
    made = ClientState(tmp_path / "home", "client-00")
    made.join(RUN, as_toml(small()).decode(), TERMS, NUMBER)
    return made


def state() -> ClientCheckpoint:
    tensors = {
        "classifier/weight": torch.randn(3, 4),
        "classifier/steps": torch.tensor(7),
        "local/empty": torch.zeros(0, 2),
    }
    return ClientCheckpoint(
        3, 1, "digest", 2.5, 120, {"anchor": b"\0bytes", "test-set": b""}, tensors
    )


def test_a_state_survives(home: ClientState) -> None:
    made = state()
    home.keep(made)
    read = ClientState(home.path, "client-00").state()
    assert {name: value.tolist() for name, value in read.tensors.items()} == {
        name: value.tolist() for name, value in made.tensors.items()
    }
    read.tensors = made.tensors
    assert read == made
    assert home.answered() == "digest"
    assert stat.S_IMODE((home.path / "state.safetensors").stat().st_mode) == 0o600


def test_a_new_home_has_done_nothing(home: ClientState, small: Callable[..., Config]) -> None:
    assert home.state() == ClientCheckpoint()
    assert home.answered() == ""
    assert home.kept_answer("x") is None
    assert home.notes("sum") == {}
    assert home.config() == small()
    assert home.terms() == TERMS
    assert home.joined == RUN


@pytest.mark.parametrize(
    "damaged", [b"", b"no tensors", b"\xff" * 99, b"\x02" + bytes(7) + b"{}"], ids=range(4)
)
def test_a_damaged_state_is_named(home: ClientState, damaged: bytes) -> None:
    path = home.path / "state.safetensors"
    path.write_bytes(damaged)
    with pytest.raises(RunError, match=r"state\.safetensors is damaged") as refused:
        home.state()
    assert "new --home" in refused.value.hint
    assert home.answered() == ""


def test_half_a_state_is_damaged(home: ClientState) -> None:
    home.keep(state())
    path = home.path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match="damaged"):
        home.state()


@pytest.mark.parametrize("name", ["config.toml", "terms.json", "ledger.json", "sum.json"])
@pytest.mark.parametrize("damaged", [None, b"\xff\xfe{"], ids=["missing", "bytes"])
def test_a_damaged_file_is_a_typed_error(
    home: ClientState, name: str, damaged: bytes | None
) -> None:
    home.note("sum", {"size": 3})
    path = home.path / name
    if damaged is None:
        path.unlink()
    else:
        path.write_bytes(damaged)
    reads: dict[str, Callable[[], object]] = {
        "config.toml": home.config,
        "terms.json": home.terms,
        "ledger.json": lambda: home.record(Context(RUN, 0, "client-00", "anchor"), b"x"),
        "sum.json": lambda: home.notes("sum"),
    }
    if (name, damaged) == ("sum.json", None):
        assert home.notes("sum") == {}
        return
    with pytest.raises(RunError, match=name):
        reads[name]()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"schema": 1}',
        '{"schema": 2, "client": "client-00", "run": "0"}',
        '{"schema": 1, "client": "client-01", "run": "0"}',
        '{"schema": 1, "client": "client-00", "run": 7}',
    ],
)
def test_a_home_of_somebody_else_is_refused(home: ClientState, content: str) -> None:
    (home.path / "home.json").write_text(content)
    with pytest.raises(RunError, match=r"home\.json is not of client client-00") as refused:
        home.check(RUN)
    assert "home of its own" in refused.value.hint


def test_a_home_belongs_to_one_run(home: ClientState, tmp_path: Path) -> None:
    home.check(RUN)
    before = sorted((path.name, path.read_bytes()) for path in home.path.iterdir())
    for refused in (
        lambda: home.check(OTHER),
        lambda: home.join(OTHER, "other", TERMS, NUMBER),
    ):
        with pytest.raises(RequestError, match=f"belongs to run {RUN}, asked is {OTHER}"):
            refused()
    with pytest.raises(RequestError, match="terms are not those that this client agreed to"):
        home.join(RUN, "whatever", TERMS.replace("agreed", "others"), NUMBER)
    home.join(RUN, "whatever", TERMS, NUMBER)
    assert before == sorted((path.name, path.read_bytes()) for path in home.path.iterdir())
    with pytest.raises(RequestError, match=f"belongs to no run, asked is {RUN}"):
        ClientState(tmp_path / "none", "client-00").check(RUN)
    assert not (tmp_path / "none").exists()


def test_an_answer_is_kept_for_its_order_alone(home: ClientState) -> None:
    home.keep_answer("a" * 64, b"sealed\nwith\nline feeds")
    assert home.kept_answer("a" * 64) == b"sealed\nwith\nline feeds"
    assert home.kept_answer("b" * 64) is None
    home.keep_answer("b" * 64, b"")
    assert home.kept_answer("a" * 64) is None
    assert home.kept_answer("b" * 64) == b""
    assert stat.S_IMODE((home.path / "last.upload").stat().st_mode) == 0o600


def test_what_a_killed_writer_left_is_swept(home: ClientState) -> None:
    for name in (".state.safetensors.abcd1234", ".last.upload.x", ".home.json.y"):
        (home.path / name).write_bytes(b"models")
    (home.path / ".other").write_bytes(b"not ours")
    home.keep(state())
    home.keep_answer("a", b"b")
    hidden = sorted(path.name for path in home.path.glob(".*"))
    assert hidden == [".home.json.y", ".other"]  # it is written once


def test_a_full_disk_is_a_typed_error_and_leaves_what_was(
    home: ClientState, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.keep(state())
    home.keep_answer("a", b"sealed")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedvtc_edge.storage.atomic.os.replace", full)
    context = Context(RUN, 0, "client-00", "anchor")
    for writes in (
        lambda: home.keep(ClientCheckpoint(round=9)),
        lambda: home.keep_answer("b", b"other"),
        lambda: home.note("sum", {}),
    ):
        with pytest.raises(RunError, match="No space left on device"):
            writes()
    monkeypatch.setattr("fedvtc_edge.storage.atomic.os.fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        home.record(context, b"release")
    assert home.state().round == 3
    assert home.kept_answer("a") == b"sealed"


def test_a_budget_is_kept_over_processes(
    tmp_path: Path, quick: None, small: Callable[..., Config]
) -> None:
    config = small(privacy={"mode": "anchored"})
    path, run = tmp_path / "home", public_name(config, NUMBER)
    ClientState(path, "client-00").join(run, as_toml(config).decode(), TERMS, NUMBER)
    context = Context(run, 0, "client-00", "anchor")
    for _ in range(2):  # the same bytes are the same release
        ClientState(path, "client-00").record(context, b"release")
    with pytest.raises(PrivacyError, match="released 1 times"):
        ClientState(path, "client-00").record(context, b"another")
    assert len(json.loads((path / "ledger.json").read_text())["releases"]) == 1
