"""A simulated run under a privacy mode is remembered, and warns of a second one on its data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.config import Config
from fedvtc_edge.privacy.spending import Spending
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.workflows.run import run

Tiny = Callable[..., Config]


class Listener(SilentProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Keep a line."""
        self.said.append(text)


@pytest.fixture
def data(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"class_names": np.array(["one", "two", "three"])}
    for part, size in (("train", 90), ("test", 12)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (size, 8, 8, 1), np.uint8)
        arrays[f"y_{part}"] = np.arange(size) % 3
    np.savez(tmp_path / "own.npz", **arrays)
    return str(tmp_path / "own.npz")


@pytest.mark.usefixtures("quick")
def test_a_second_private_run_on_the_same_data_warns(tiny: Tiny, tmp_path: Path, data: str) -> None:
    private, spending = {"mode": "anchored"}, Spending(tmp_path / "state")

    def said(**tables: Any) -> list[str]:
        listener = Listener()
        run(tiny(method={"rounds": 1}, **tables), progress=listener, spending=spending)
        return [line for line in listener.said if "warning" in line]

    own = {"name": data, "limit": 0}
    assert said(privacy=private, data=own) == []
    (warning,) = said(privacy=private, data=own, seed=5)
    assert "these data were released once before" in warning
    assert said(data=own) == []  # of exact statistics no ε says what they tell
    assert said(privacy=private) == said(privacy=private) == []  # the built-in digits are public
    noted = json.loads((tmp_path / "state" / "spending.json").read_text())["releases"]
    assert len(noted) == 2
