"""Methods without training over messages: sealed, and with the figures of one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fedvtc_edge.workflows.run import run

Make = Callable[..., Any]


@pytest.mark.parametrize("name", ["statistics", "afl", "fishermix", "fedcof"])
def test_a_served_run_has_the_figures_of_a_local_one(name: str, village: Make, small: Make) -> None:
    settings = small(method={"name": name, "rounds": 1})
    alone = run(settings.replace(engine={"name": "local"})).summary
    served = json.loads((village(settings).serve().path / "summary.json").read_text())
    for mine, other in zip(served["clients"], alone["clients"], strict=True):
        for key in ("accuracy", "accuracy_home", "recall"):
            assert mine[key] == other[key], key
    assert served["uploads"] == alone["uploads"]
