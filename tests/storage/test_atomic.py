"""A file or a folder is whole or absent, whatever fails."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.storage.atomic import (
    append_line,
    new_folder,
    recover_folder,
    replace_tail,
    sync_files,
    write_atomic,
)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_line_is_appended_in_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, written, write = tmp_path / "log.jsonl", [], os.write

    def counting(descriptor: int, data: bytes) -> int:
        written.append(data)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", counting)
    for line in (b"one", b"", b"three"):
        append_line(path, line)
    assert path.read_bytes() == b"".join(written) == b"one\n\nthree\n"
    assert len(written) == 3


def test_half_a_line_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda descriptor, data: len(data) - 1)
    with pytest.raises(OSError, match="No space"):
        append_line(tmp_path / "log.jsonl", b"one")


@pytest.mark.parametrize("data", [b"", b"new", b"x" * 300_000])
def test_the_content_arrives(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    write_atomic(path, data)
    assert path.read_bytes() == data
    write_atomic(path, data + b"!")
    assert path.read_bytes() == data + b"!"
    assert names(tmp_path) == ["metrics.jsonl"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_others_may_read_the_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
@pytest.mark.parametrize("mask", [0, 0o077])
def test_permissions_are_those_asked_for(tmp_path: Path, mode: int, mask: int) -> None:
    (tmp_path / "a").touch(0o666)
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "a", b"secret", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_secret_is_never_readable_not_even_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []

    def look(*_: Any) -> None:
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir())

    monkeypatch.setattr(os, "fsync", look)
    write_atomic(tmp_path / "key", b"secret", mode=0o600)
    assert set(modes) == {0o600}


def test_a_relative_path_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_atomic(Path("a"), b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_reader_of_the_old_file_keeps_it(tmp_path: Path) -> None:
    """Replaced, not overwritten: an open handle still reads what it opened."""
    path = tmp_path / "a"
    write_atomic(path, b"old")
    with path.open("rb") as reader:
        write_atomic(path, b"new!")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new!"


def test_the_data_are_on_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted(name: str, function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            order.append(name)
            function(*args)

        return call

    monkeypatch.setattr(os, "fsync", noted("fsync", fsync))
    monkeypatch.setattr(os, "replace", noted("replace", replace))
    write_atomic(tmp_path / "a", b"new")
    assert order[:2] == ["fsync", "replace"]
    assert order[2:] == (["fsync"] if os.name == "posix" else [])  # the folder's


def test_what_can_be_made_again_need_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full)  # never called
    write_atomic(tmp_path / "a", b"new", durable=False)
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_full_disk_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, old: bytes | None
) -> None:
    path = tmp_path / "a"
    if old is not None:
        path.write_bytes(old)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(OSError, match="No space left") as error:
            write_atomic(path, b"new")
    assert error.value.errno == errno.ENOSPC
    assert names(tmp_path) == ([] if old is None else ["a"])
    assert old is None or path.read_bytes() == old


def test_a_disk_that_fills_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    fdopen = os.fdopen

    def small(*args: Any) -> Any:
        file = fdopen(*args)
        write = file.write

        class Half:
            def __enter__(self) -> Half:
                return self

            def __exit__(self, *_: Any) -> None:
                file.close()

            def write(self, data: bytes) -> None:
                write(data[: len(data) // 2])
                full()

        return Half()

    monkeypatch.setattr(os, "fdopen", small)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new!")
    assert names(tmp_path) == ["a"]
    assert path.read_bytes() == b"old"


def test_an_interrupt_cleans_up_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", b"new")
    assert names(tmp_path) == []


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "absent" / "a", b"new")


# ---------------------------------------------------------------- folders


def fill(folder: Path, text: str) -> None:
    (folder / "a").write_text(text)
    (folder / text).write_text(text)


def made(path: Path, text: str) -> None:
    with new_folder(path) as scratch:
        fill(scratch, text)


def test_a_folder_appears_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "b"
    with new_folder(path) as scratch:
        assert scratch.parent == tmp_path  # else it could not be renamed
        fill(scratch, "new")
        assert not path.exists()
    assert names(path) == ["a", "new"]
    assert names(tmp_path) == ["b"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "b"
    made(path, "old")
    with new_folder(path) as scratch:
        fill(scratch, "new")
        assert names(path) == ["a", "old"]
    assert names(path) == ["a", "new"]
    assert (path / "a").read_text() == "new"
    assert names(tmp_path) == ["b"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_others_may_read_the_folder(tmp_path: Path) -> None:
    made(tmp_path / "b", "new")
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [ValueError("off"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("old", [False, True])
def test_work_that_fails_leaves_the_old_folder(
    tmp_path: Path, error: BaseException, old: bool
) -> None:
    path = tmp_path / "b"
    if old:
        made(path, "old")
    with pytest.raises(type(error)), new_folder(path) as scratch:  # noqa: PT012
        fill(scratch, "new")
        raise error
    assert names(tmp_path) == (["b"] if old else [])
    assert not old or names(path) == ["a", "old"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    path, rename, calls = tmp_path / "b", os.rename, [0]
    made(path, "old")

    def once(source: Any, target: Any) -> None:
        calls[0] += 1
        if calls[0] == failing:
            full()
        rename(source, target)

    monkeypatch.setattr(os, "rename", once)
    with pytest.raises(OSError, match="No space left"):
        made(path, "new")
    assert names(path) == ["a", "old"]
    assert names(tmp_path) == ["b"]


def test_all_files_are_on_the_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut after the rename could leave a folder of empty files, and no old one."""
    order: list[str] = []
    fsync, rename, opened = os.fsync, os.rename, os.open
    paths: dict[int, str] = {}

    def opening(path: Any, *args: Any) -> int:
        descriptor = opened(path, *args)
        paths[descriptor] = Path(path).name
        return descriptor

    def syncing(descriptor: int) -> None:
        order.append(paths[descriptor])
        fsync(descriptor)

    def renaming(source: Any, target: Any) -> None:
        order.append("rename")
        rename(source, target)

    with new_folder(tmp_path / "b") as scratch:
        fill(scratch, "new")
        monkeypatch.setattr(os, "open", opening)
        monkeypatch.setattr(os, "fsync", syncing)
        monkeypatch.setattr(os, "rename", renaming)
    monkeypatch.undo()
    if os.name == "posix":
        assert sorted(order[:2]) == ["a", "new"]
        assert order[2:] == [scratch.name, "rename", tmp_path.name]


def lying(folder: Path, name: str, text: str) -> Path:
    (folder / name).mkdir()
    fill(folder / name, text)
    return folder / name


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([], None),
        (["b"], "b"),
        ([".b.old"], ".b.old"),
        ([".b.new-x"], None),
        (["b", ".b.new-x", ".b.new-y"], "b"),
        ([".b.old", ".b.new-x"], ".b.old"),
        (["b", ".b.old"], "b"),
        (["b", ".b.old", ".b.new-x"], "b"),
    ],
)
def test_what_a_killed_process_left_is_undone(
    tmp_path: Path, there: list[str], expected: str | None
) -> None:
    for name in there:
        lying(tmp_path, name, f"was {name}")
    for _ in range(2):
        recover_folder(tmp_path / "b")
        assert names(tmp_path) == ([] if expected is None else ["b"])
        assert expected is None or (tmp_path / "b" / "a").read_text() == f"was {expected}"


@pytest.mark.parametrize("name", [".bb.old", "b.old", ".b.older", ".b.ne", ".bb.new-x", ".b"])
def test_other_folders_are_left_alone(tmp_path: Path, name: str) -> None:
    lying(tmp_path, name, "other")
    recover_folder(tmp_path / "b")
    made(tmp_path / "b", "new")
    assert names(tmp_path / name) == ["a", "other"]


def test_a_name_is_no_pattern(tmp_path: Path) -> None:
    lying(tmp_path, ".b1.new-x", "other")
    lying(tmp_path, ".[b]1.new-x", "left")
    recover_folder(tmp_path / "[b]1")
    assert names(tmp_path) == [".b1.new-x"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX links")
def test_a_link_is_not_followed_when_cleaning_up(tmp_path: Path) -> None:
    precious = lying(tmp_path, "precious", "kept")
    for name in (".b.new-x", ".b.old"):
        (tmp_path / name).symlink_to(precious)
    (tmp_path / "b").mkdir()
    recover_folder(tmp_path / "b")
    assert names(precious) == ["a", "kept"]


def test_where_there_is_nothing_there_is_nothing_to_recover(tmp_path: Path) -> None:
    recover_folder(tmp_path / "absent" / "b")
    with pytest.raises(FileNotFoundError):
        made(tmp_path / "absent" / "b", "new")
    assert names(tmp_path) == []


# ---------------------------------------------------------------- tails and many files


def test_a_tail_is_replaced_longer_or_shorter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"head, tail")
    replace_tail(path, 4, b" and a longer tail", before=b", tail")
    assert path.read_bytes() == b"head and a longer tail"
    replace_tail(path, 4, b".")
    assert path.read_bytes() == b"head."
    with pytest.raises(OSError, match="cut by somebody else"):
        replace_tail(path, 6, b"x")
    assert path.read_bytes() == b"head."
    with pytest.raises(FileNotFoundError):
        replace_tail(tmp_path / "none", 0, b"x")


def test_a_tail_that_the_disk_does_not_take_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"head, tail")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_tail(path, 4, b" and a longer tail", before=b", tail")
    assert path.read_bytes() == b"head, tail"


@pytest.mark.parametrize("number", [0, 1, 3, 40])
def test_many_files_are_flushed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    paths = [tmp_path / str(index) for index in range(number)]
    for path in paths:
        path.write_bytes(b"x")
    sync_files(paths)  # by the real disk
    waits: list[int] = []
    monkeypatch.setattr(os, "fsync", waits.append)
    whole: list[Path] = []
    monkeypatch.setattr("fedvtc_edge.storage.atomic._sync_file_system", whole.append)
    sync_files(paths)
    if number > 4 and sys.platform == "linux":
        assert (waits, whole) == ([], [tmp_path])
    else:
        assert len(waits) == (number + 1 if number else 0)  # the folder too
    monkeypatch.setattr("sys.platform", "another")
    waits.clear()
    sync_files(paths)
    assert len(waits) == (number + 1 if number else 0)


@pytest.mark.skipif(sys.platform != "linux", reason="syncfs is Linux's")
def test_a_flush_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / str(index) for index in range(9)]
    for path in paths:
        path.write_bytes(b"x")
    monkeypatch.setattr(os, "open", lambda *_: 9999)  # no such descriptor
    monkeypatch.setattr(os, "close", lambda _: None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync_files(paths)
