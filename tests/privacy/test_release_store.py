"""What was drawn once is sent again, never drawn again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fedvtc_edge.privacy.release_store import ReleaseStore


class Draw:
    """Noise of its own at every call."""

    def __init__(self, drawn: int = 0) -> None:
        self.drawn = drawn

    def __call__(self) -> bytes:
        self.drawn += 1
        return b"noise %d" % self.drawn


def never() -> bytes:
    raise AssertionError("drawn again")


@pytest.mark.parametrize("on_disk", [True, False])
def test_drawn_once_for_each_sender_and_kind(tmp_path: Path, on_disk: bool) -> None:
    store, draw = ReleaseStore(tmp_path if on_disk else None), Draw()
    asked = [("a", "anchor"), ("b", "anchor"), ("a", "other"), ("a", "anchor"), ("b", "anchor")]
    got = [store.once(sender, kind, draw) for sender, kind in asked]
    assert got == [b"noise 1", b"noise 2", b"noise 3", b"noise 1", b"noise 2"]
    assert draw.drawn == 3


def test_another_process_sends_the_same(tmp_path: Path) -> None:
    first = ReleaseStore(tmp_path).once("client-00", "anchor", Draw())
    assert ReleaseStore(tmp_path).once("client-00", "anchor", never) == first
    file = tmp_path / "clients" / "client-00" / "anchor.release"
    assert file.read_bytes() == first


def test_without_a_folder_nothing_outlives_the_store(tmp_path: Path) -> None:
    draw = Draw()
    assert ReleaseStore(None).once("a", "k", draw) != ReleaseStore(None).once("a", "k", draw)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_kept_does_not_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that fails must be done again before anything leaves; what was drawn stays."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store, draw = ReleaseStore(tmp_path), Draw()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert store.once("a", "k", draw) == b"noise 1"
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                store.sync()
    store.sync()
    assert ReleaseStore(tmp_path).once("a", "k", never) == b"noise 1"


def test_one_wait_for_the_disk_however_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[object] = []
    monkeypatch.setattr("fedvtc_edge.storage.atomic._sync_file_system", waits.append)
    monkeypatch.setattr("os.fsync", waits.append)
    store, draw = ReleaseStore(tmp_path), Draw()
    for name in "abcdefgh":
        store.once(name, "k", draw)
    assert waits == []
    store.sync()
    assert len(waits) == 1
    store.sync()
    assert len(waits) == 1
    again = ReleaseStore(tmp_path)  # of a process that was killed before it synced
    for name in "abcdefgh":
        again.once(name, "k", never)
    again.sync()
    assert len(waits) == 2


def test_a_draw_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        ReleaseStore(tmp_path).once("a", "k", never)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
