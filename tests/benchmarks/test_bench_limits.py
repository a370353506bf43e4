"""Control groups: found, limited, and gone whatever happens."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedvtc_edge.benchmarks.bench import limits
from fedvtc_edge.benchmarks.bench.limits import GroupParent, find_parent, limited

Tree = dict[str, str]

V1: Tree = {
    "proc/self/cgroup": "5:cpu:/a\n4:memory:/a/b\n0::/\n",
    "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "",
}
V2: Tree = {
    "proc/self/cgroup": "0::/user/session\n",
    "sys/fs/cgroup/user/cgroup.subtree_control": "cpu memory pids",
    "sys/fs/cgroup/user/session/cgroup.subtree_control": "",
}


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A made-up root; its groups are folders, in which files remain when they are removed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(limits, "_remove", shutil.rmtree)
        yield tmp_path


def plant(root: Path, files: Tree) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_group_of_version_1_lies_below_our_own(tree: Path) -> None:
    assert find_parent(plant(tree, V1)) == GroupParent(tree / "sys/fs/cgroup/memory/a/b", 1)


def test_a_path_of_the_host_is_taken_for_the_mount(tree: Path) -> None:
    (plant(tree, V1) / "sys/fs/cgroup/memory/a/b").rename(tree / "elsewhere")
    assert find_parent(tree) == GroupParent(tree / "sys/fs/cgroup/memory", 1)


def test_version_2_takes_the_parent_where_it_hands_memory_on(tree: Path) -> None:
    assert find_parent(plant(tree, V2)) == GroupParent(tree / "sys/fs/cgroup/user", 2)


def test_version_2_prefers_our_own_group(tree: Path) -> None:
    own = {"sys/fs/cgroup/user/session/cgroup.subtree_control": "memory"}
    assert find_parent(plant(tree, V2 | own)) == GroupParent(tree / "sys/fs/cgroup/user/session", 2)


@pytest.mark.parametrize(
    "files",
    [
        {"proc/other": ""},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cgroup.subtree_control": "cpu"},
        {"proc/self/cgroup": "0::/\n"},
        {"proc/self/cgroup": "5:cpu:/\n"},
    ],
)
def test_where_none_can_be_made_there_is_none(tree: Path, files: Tree) -> None:
    assert find_parent(plant(tree, files)) is None


def test_what_may_not_be_made_is_passed_over(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    plant(tree, V2)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert find_parent(tree) is None


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_is_in_bytes_and_swap_is_none(tree: Path, version: int) -> None:
    parent = GroupParent(tree, 1 if version == 1 else 2)
    swap = "memory.memsw.limit_in_bytes" if version == 1 else "memory.swap.max"
    exists = Path.exists
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "exists", lambda path: path.name == swap or exists(path))
        with limited(parent, 1.5) as procs:
            group = procs.parent
            limit = "memory.limit_in_bytes" if version == 1 else "memory.max"
            assert (group / limit).read_text() == str(3 << 19)
            assert (group / swap).read_text() == ("0" if version == 2 else str(3 << 19))
            assert procs.name == "cgroup.procs"
    assert not group.exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_group_is_removed_after_an_exception(tree: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), limited(GroupParent(tree, 1), 10):
        raise error
    assert list(tree.iterdir()) == []


def test_groups_of_killed_benches_are_swept_and_others_left(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = tmp_path / f"fedvtc-edge-bench-{dead.pid}-1"
    alive = tmp_path / "fedvtc-edge-bench-1-1"
    for folder in (stale, alive, tmp_path / "other"):
        folder.mkdir()
    limits._sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, "other"}


def test_a_busy_group_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, tries = tmp_path / "group", []
    group.mkdir()
    remove = Path.rmdir

    def busy_twice(path: Path) -> None:
        tries.append(path)
        if len(tries) < 3:
            raise OSError(16, "Device or resource busy")
        remove(path)

    monkeypatch.setattr(Path, "rmdir", busy_twice)
    limits._remove(group)
    assert len(tries) == 3
    assert not group.exists()


def test_a_group_that_stays_busy_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_: Path) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "rmdir", busy)
    monkeypatch.setattr(limits, "_PATIENCE_S", 0.05)
    with pytest.raises(OSError, match="busy"):
        limits._remove(Path("/nowhere"))


def test_the_kernel_enforces_a_real_group() -> None:
    parent = find_parent()
    if parent is None:
        pytest.skip("no control group can be made here: not root, or mounted read-only")
    program = "open({procs!r}, 'w').write('0'); bytearray(64 << 20); print('alive')"
    for limit, alive in ((200, True), (30, False)):
        with limited(parent, limit) as procs:
            done = subprocess.run(
                [sys.executable, "-c", program.format(procs=str(procs))],
                capture_output=True,
                check=False,
            )
        assert (done.returncode == 0) == alive
        assert not procs.parent.exists()
