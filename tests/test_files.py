"""A file is whole or absent, whatever fails."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.files import write_atomic


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
