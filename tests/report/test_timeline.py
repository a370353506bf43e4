"""The report's timeline: what is drawn is what the clock noted."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedvtc_edge import run
from fedvtc_edge.config import Config
from fedvtc_edge.errors import RunError
from fedvtc_edge.report import render
from fedvtc_edge.report.timeline import _ORDER, _picture, devices, timeline
from fedvtc_edge.runs.records import ClockRecord, Line

Tiny = Callable[..., Config]


def line(outcome: str = "done", **seconds: float) -> Line:
    spans = {"download": 0.0, "compute": 0.0, "upload": 0.0, "wait": 0.0} | seconds
    return Line.model_validate({"outcome": outcome, **spans})


TURNS = [
    ClockRecord(
        begin=0,
        end=10,
        clients={
            "a": line(download=1, compute=6, upload=3),
            "b": line(compute=2, wait=8),
            "c": line("unreachable"),
        },
    ),
    ClockRecord(
        begin=10,
        end=20,
        void="too few",
        clients={"a": line("late", compute=10), "b": line("dropped", compute=5)},
    ),
]
KINDS = {"a": "rpi4", "b": "rpi4", "c": "phone"}


def kind_at(picture: Any, row: int, second: float) -> str:
    value = int(picture[row, int(second / 20 * picture.shape[1])])
    return _ORDER[value - 1] if value else ""


def test_every_moment_has_its_colour() -> None:
    picture = _picture(TURNS, ["a", "b", "c"])
    seen = [[kind_at(picture, row, second) for second in (0.5, 4, 8, 12, 18)] for row in range(3)]
    vain, away = "works in vain: late or dropped", "unreachable"
    assert seen == [
        ["downloads", "computes", "uploads", vain, vain],
        ["computes", "waits for the others", "waits for the others", vain, ""],
        [away, away, away, "", ""],
    ]


def test_a_short_upload_is_still_seen() -> None:
    turn = ClockRecord(begin=0, end=1e6, clients={"a": line(compute=5, upload=1e-3, wait=1e6 - 5)})
    picture = _picture([turn], ["a"])
    assert _ORDER.index("uploads") + 1 in picture


def test_devices_are_counted() -> None:
    phone, pi = devices(TURNS, KINDS)
    assert (phone.name, phone.clients, phone.busy, phone.unreachable) == ("phone", 1, 0, 1)
    assert (pi.clients, pi.done, pi.late, pi.dropped) == (2, 2, 1, 1)
    assert pi.busy == (1 + 6 + 3 + 2 + 10 + 5) / 2


def test_the_drawing_tells_who_cannot_see_it() -> None:
    chart = timeline(TURNS, KINDS)
    assert chart is not None
    assert "rpi4: 2 clients" in chart.svg
    assert "1 late, 1 dropped" in chart.svg
    data = re.search(r"data:image/png;base64,([^\"]+)", chart.svg)
    assert data is not None
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.group(1)))).convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) >= 6
    assert timeline([], KINDS) is None


@pytest.mark.parametrize("count", [5, 60])
def test_many_clients_share_labels(count: int) -> None:
    names = [f"k{index}" for index in range(count)]
    chart = timeline(
        [ClockRecord(begin=0, end=1, clients={name: line(compute=1) for name in names})],
        dict.fromkeys(names, "rpi4"),
    )
    assert chart is not None
    assert ("rpi4 × 60" in chart.svg) == (count == 60)
    assert (">k3 (rpi4)<" in chart.svg) == (count == 5)


def test_the_page_of_a_run_with_devices(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(clients={"devices": ["rpi5", "stm32h7"], "architectures": ["mlp"]})
    page = (run(config, out=tmp_path / "run").directory or tmp_path) / "report.html"
    text = page.read_text("utf-8")
    assert "Simulated time" in text
    assert "client-01 sits out, nothing that trains runs on stm32h7" in text
    metrics = tmp_path / "run" / "metrics.jsonl"
    record = json.loads(metrics.read_text().splitlines()[0])
    record["clock"][0]["end"] = -1
    metrics.write_text(json.dumps(record) + "\n" + metrics.read_text())
    with pytest.raises(RunError, match="clock"):
        render(tmp_path / "run")
