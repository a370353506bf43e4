"""The journal: an envelope counts once, in its round and run, whatever is cut off."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.errors import EnvelopeError, ReplayError, RunError
from fedvtc_edge.sealing import ReplayGuard
from fedvtc_edge.wire.context import Context, ContextError

RUN = "00112233445566778899aabbccddeeff"
ONE, OTHER = b"one envelope", b"another envelope"


def at(sender: str = "a", kind: str = "features", round_: int = 0, run: str = RUN) -> Context:
    return Context(run, round_, sender, kind)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def guard(path: Path) -> ReplayGuard:
    return ReplayGuard(path, run=RUN)


def accept(guard: ReplayGuard, context: Context, envelope: bytes) -> bool:
    """One envelope, accepted by itself."""
    return guard.accept_all([(context, envelope)])[0]


def refused(call: Callable[..., Any], *words: Any, match: str) -> None:
    with pytest.raises(ReplayError, match=match) as caught:
        call(*words)
    assert caught.value.hint
    assert isinstance(caught.value, EnvelopeError)


# ---------------------------------------------------------------- what counts


def test_once_and_again_and_another(guard: ReplayGuard) -> None:
    assert accept(guard, at(), ONE)
    assert not accept(guard, at(), ONE)
    refused(accept, guard, at(), OTHER, match="another features of a counts in round 0")
    assert not accept(guard, at(), ONE)
    assert accept(guard, at("b"), OTHER)
    assert accept(guard, at(kind="decoder"), OTHER)
    assert set(guard.accepted()) == {("a", "features"), ("b", "features"), ("a", "decoder")}


def test_other_runs_and_rounds(guard: ReplayGuard, path: Path) -> None:
    before = path.read_bytes()
    refused(accept, guard, at(run="0" * 32), ONE, match="expected " + RUN)
    refused(accept, guard, at(round_=1), ONE, match="round 1, open is round 0")
    assert path.read_bytes() == before
    assert accept(guard, at(), ONE)
    guard.close(0)
    assert guard.round == 1
    refused(accept, guard, at(), ONE, match="round 0, open is round 1")
    refused(accept, guard, at(), OTHER, match="round 0, open is round 1")
    assert accept(guard, at(round_=1), OTHER)


def test_closing(guard: ReplayGuard) -> None:
    guard.close(4)
    assert guard.round == 5
    guard.close(2)
    guard.close(4)
    assert guard.round == 5
    with pytest.raises(ContextError):
        guard.close(-1)


def test_checking_notes_nothing(guard: ReplayGuard, path: Path) -> None:
    before = path.read_bytes()
    assert guard.check(at(), ONE)
    assert guard.check(at(), OTHER)
    assert path.read_bytes() == before
    accept(guard, at(), ONE)
    assert not guard.check(at(), ONE)
    refused(guard.check, at(), OTHER, match="another features")


def test_what_is_held_is_the_open_rounds(guard: ReplayGuard, path: Path) -> None:
    sizes = []
    for round_ in range(3):
        for sender in "abcde":
            accept(guard, at(sender, round_=round_), ONE)
        sizes.append(path.stat().st_size)
        guard.close(round_)
        assert guard.accepted() == {}
    assert len(set(sizes)) == 1


@hypothesis_settings(deadline=None, max_examples=25)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["accept", "close", "restart"]),
            st.integers(0, 2),
            st.sampled_from("ab"),
            st.sampled_from([ONE, OTHER]),
        ),
        max_size=25,
    )
)
def test_a_slow_twin(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    """A dictionary that forgets nothing agrees, restarts and all."""
    path = tmp_path_factory.mktemp("twin") / "journal"
    guard, open_round, seen = ReplayGuard(path, run=RUN), 0, {}
    for what, round_, sender, envelope in steps:
        if what == "restart":
            guard = ReplayGuard(path, run=RUN)
        elif what == "close":
            guard.close(round_)
            open_round = max(open_round, round_ + 1)
        elif round_ != open_round or seen.get((round_, sender), envelope) != envelope:
            with pytest.raises(ReplayError):
                accept(guard, at(sender, round_=round_), envelope)
        else:
            new = (round_, sender) not in seen
            assert accept(guard, at(sender, round_=round_), envelope) == new
            seen[round_, sender] = envelope
    assert {sender for sender, _ in guard.accepted()} == {s for r, s in seen if r == open_round}


# ---------------------------------------------------------------- the file


def test_after_a_restart(guard: ReplayGuard, path: Path) -> None:
    guard.close(6)
    accept(guard, at(round_=7), ONE)
    again = ReplayGuard(path, run=RUN)
    assert (again.round, again.accepted()) == (7, guard.accepted())
    assert not accept(again, at(round_=7), ONE)
    refused(accept, again, at(round_=7), OTHER, match="another features")
    refused(accept, again, at(round_=6), ONE, match="open is round 7")


def test_golden_journal(guard: ReplayGuard, path: Path) -> None:
    guard.close(0)
    accept(guard, at("client-07", round_=1), b"")
    lines = path.read_text("ascii").splitlines()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert lines[0] == f'{{"schema": 1, "run": "{RUN}", "round": 1}} f5f427eeea79e8c6'
    assert lines[1] == (
        f'{{"sender": "client-07", "kind": "features", "sha256": "{empty}"}} 20f0768ebff6c8b5'
    )


def test_a_line_that_was_being_written_is_cut_off(guard: ReplayGuard, path: Path) -> None:
    accept(guard, at("a"), ONE)
    kept = path.read_bytes()
    accept(guard, at("b"), OTHER)
    whole = path.read_bytes()
    for size in range(len(kept), len(whole)):
        path.write_bytes(whole[:size])
        again = ReplayGuard(path, run=RUN)
        assert set(again.accepted()) == {("a", "features")}
        assert path.read_bytes() == kept
        assert accept(again, at("b"), OTHER)
        assert path.read_bytes() == whole


def test_damage_elsewhere_is_refused(guard: ReplayGuard, path: Path) -> None:
    for sender in "abc":
        accept(guard, at(sender), ONE)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    spoilt = [
        b"",
        b"\n",
        b"\0" * 100 + b"\n",
        b"".join(lines[1:]),
        b"".join([*lines[:2], *lines[3:]]),
        b"".join([*lines[:2], lines[1], *lines[2:]]),
        b"".join([lines[0], lines[2], lines[1], lines[3]]),
        b"".join([*lines[:3], b"{}\n"]),
        b"".join([*lines[:3], lines[3][:-5] + b"\n"]),
        b"".join([*lines, b"x" * 5000 + b"\n"]),
        b"".join([*lines, lines[0]]),
    ]
    for place in range(len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        spoilt.append(bytes(changed))
    for data in spoilt:
        path.write_bytes(data)
        with pytest.raises(RunError, match="does not say what run") as caught:
            ReplayGuard(path, run=RUN)
        assert caught.value.hint
        assert path.read_bytes() == data


def test_another_runs_journal(guard: ReplayGuard, path: Path) -> None:
    with pytest.raises(RunError, match="does not say what run 0000"):
        ReplayGuard(path, run="0" * 32)
    with pytest.raises(ContextError):
        ReplayGuard(path, run="x")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not say"):
        ReplayGuard(tmp_path, run=RUN)
    with pytest.raises(RunError, match="cannot write"):
        ReplayGuard(tmp_path / "absent" / "journal", run=RUN)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(RunError, match="does not say"):
        ReplayGuard(tmp_path / "huge", run=RUN)


def test_a_full_disk_counts_nothing(
    guard: ReplayGuard, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(guard, at("a"), ONE)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left"):
            accept(guard, at("b"), OTHER)
        with pytest.raises(RunError, match="No space left"):
            guard.close(0)
    assert path.read_bytes() == before
    assert guard.round == 0
    assert accept(guard, at("b"), OTHER)
    assert set(ReplayGuard(path, run=RUN).accepted()) == {("a", "features"), ("b", "features")}


def test_a_flush_that_fails_late_is_no_damage(
    guard: ReplayGuard, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new journal has its name, its folder was not flushed: closed, and closed again."""
    accept(guard, at(), ONE)
    real, left = os.fsync, [1]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(RunError, match="cannot write"):
            guard.close(0)
    assert guard.round == ReplayGuard(path, run=RUN).round == 1
    inode = path.stat().st_ino
    guard.close(0)
    assert path.stat().st_ino != inode
    assert accept(guard, at(round_=1), ONE)
    guard.close(0)  # long ago
    assert ReplayGuard(path, run=RUN).accepted() == guard.accepted() != {}


def test_a_journal_that_somebody_cut(guard: ReplayGuard, path: Path) -> None:
    accept(guard, at("a"), ONE)
    os.truncate(path, 20)
    with pytest.raises(RunError, match="cut by somebody else"):
        accept(guard, at("b"), ONE)
    assert path.stat().st_size == 20


def test_an_interrupt_leaves_no_half_line(
    guard: ReplayGuard, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            accept(guard, at("a-rather-long-name"), ONE)
    assert accept(guard, at("b"), OTHER)
    assert set(ReplayGuard(path, run=RUN).accepted()) == {("b", "features")}


def test_it_is_on_the_disk_before_it_counts(
    guard: ReplayGuard, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(path.read_bytes().count(b"\n"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    accept(guard, at(), ONE)
    assert synced == [2]
    accept(guard, at(), ONE)
    assert synced == [2]  # a retry costs nothing


def test_names_in_the_journal_are_ascii(guard: ReplayGuard, path: Path) -> None:
    accept(guard, at("x" * 64, "k" * 16), ONE)
    assert re.fullmatch(r"[ -~\n]+", path.read_text("ascii"))
    assert max(map(len, path.read_bytes().splitlines())) < 512
