"""Runs a script where no packet can leave this machine, if the machine allows that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

UP = 'ip link set lo up && exec "$@"'


def namespace() -> list[str]:
    """What to put before a command: a network namespace with loopback alone, or nothing."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return []
    prefix = ["unshare", "--map-root-user", "--net", "sh", "-c", UP, "sh"]
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return [] if tried.returncode else prefix


@pytest.fixture
def offline() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a Python script offline; returns what it printed."""

    def run(
        script: Path, *arguments: str, environ: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*namespace(), sys.executable, str(script), *arguments],
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
