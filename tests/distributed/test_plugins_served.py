"""An own architecture and an own method over messages: the served run knows them too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge import plugins

FILES = Path(__file__).parents[1] / "plugins"
Make = Callable[..., Any]


@pytest.mark.usefixtures("fresh")
def test_an_own_architecture_and_an_own_method_are_served(village: Make, small: Make) -> None:
    changes = {"method": {"name": "magnet"}, "clients": {"architectures": ["pyramid"]}}
    plugins.load(FILES / "own_architecture.py", FILES / "own_method.py")
    directory = village(small(**changes)).serve()
    summary = json.loads((directory.path / "summary.json").read_text())
    assert {client["architecture"] for client in summary["clients"]} == {"pyramid"}
    assert summary["method"] == "magnet"
    assert summary["upload_bytes_total"] > 0
    assert summary["uploads"] == [
        "every round: class counts, sums and sums of squares of its own features"
    ]


@pytest.mark.usefixtures("fresh")
def test_a_client_without_the_file_takes_no_part(
    village: Make, small: Make, fresh: Callable[[], None]
) -> None:
    plugins.load(FILES / "own_method.py")
    one = village(small(method={"name": "magnet"}))
    request = one.hello()
    fresh()
    reply = one.participant("client-00").reply(request)
    assert "unknown method 'magnet'" in reply.problem
