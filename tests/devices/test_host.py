"""What a machine has is read from its own files, and the lowest limit counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedvtc_edge.devices import calibration
from fedvtc_edge.errors import ConfigError

MEMINFO = "MemTotal:  2048000 kB\nMemFree: 1 kB\nMemAvailable:  1024000 kB\n"


def machine(root: Path, meminfo: str = MEMINFO, groups: str = "", **limits: str) -> Path:
    """A root folder with /proc and, for each limit, a file whose name has | for /."""
    files = {"proc/meminfo": meminfo, "proc/self/cgroup": groups}
    files |= {f"sys/fs/cgroup/{name.replace('|', '/')}": text for name, text in limits.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_limits(tmp_path: Path) -> None:
    assert calibration.machine_memory(machine(tmp_path)) == (2000, 1000, False)


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    root = machine(tmp_path)
    (root / "proc/self/cgroup").unlink()
    assert calibration.machine_memory(root) == (2000, 1000, False)


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/box\n", {"box|memory.max": "max\n"}, (2000, 1000, False)),
        ("0::/box\n", {"box|memory.max": f"{512 << 20}\n"}, (512, 512, True)),
        ("0::/box\n", {"box|memory.max": f"{1500 << 20}\n"}, (1500, 1000, True)),
        # The outer group's limit holds for the inner one.
        ("0::/a/b\n", {"a|b|memory.max": "max", "a|memory.max": f"{64 << 20}"}, (64, 64, True)),
        # In a container the host's path leads nowhere; the root is our own group.
        ("0::/host/path\n", {"memory.max": f"{256 << 20}"}, (256, 256, True)),
        (
            "3:cpu:/box\n5:memory:/box\n",
            {"memory|box|memory.limit_in_bytes": f"{128 << 20}"},
            (128, 128, True),
        ),
        # v1 writes a huge number for no limit.
        ("5:memory:/\n", {"memory|memory.limit_in_bytes": f"{(1 << 63) - 4096}"}, (2000, 1000, 0)),
    ],
)
def test_limits(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: tuple[float, float, bool]
) -> None:
    assert calibration.machine_memory(machine(tmp_path, groups=groups, **limits)) == expected


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n"])
def test_a_strange_meminfo_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="expected MemTotal and MemAvailable"):
        calibration.machine_memory(machine(tmp_path, meminfo=text))


def test_no_linux(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="on Linux only") as caught:
        calibration.machine_memory(tmp_path)
    assert "docs/devices.md" in caught.value.hint


def test_cores_are_those_we_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert calibration.available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert calibration.available_cores() == 1
