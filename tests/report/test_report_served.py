"""The page of a run whose clients are elsewhere: what is not told is said, and never guessed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.errors import RunError
from fedvtc_edge.report import render
from fedvtc_edge.report.timeline import attendance
from fedvtc_edge.runs.records import RoundRecord

NAMES = ("north", "south", "east")
FIGURES = {"accuracy": 0.6, "accuracy_local_only": 0.4, "accuracy_calibrated": 0.9}


def client(name: str, tells: bool) -> dict[str, Any]:
    counts = [4, 0, 8] if tells else None
    return {
        "id": name,
        "architecture": "mlp",
        "device": None,
        "samples": counts and sum(counts),
        "class_counts": counts,
        "classes_present": counts and 2,
        "parameters": 1200 if tells else None,
        **{key: value if tells else None for key, value in FIGURES.items()},
        "upload_bytes": 5000,
        "download_bytes": 7000,
        "peak_memory_mb": 3.0 if tells else None,
        "seconds": 1.5,
    }


def served(folder: Path, *, tells: int, void: str = "", **keys: Any) -> Path:
    """A run of three clients and three rounds; in the last one ``east`` is late."""
    clients = [client(name, index < tells) for index, name in enumerate(NAMES)]
    means = {f"{key}_mean": value if tells else None for key, value in FIGURES.items()}
    summary = {
        "schema": 1,
        "method": "fedvtc",
        "data": "digits",
        "engine": "flower",
        "share": "anchored",
        "rounds": 3,
        "class_names": ["a", "b", "c"],
        "clients": clients,
        **means,
        "accuracy_control": 0.95,
        "gain": 0.2 if tells else None,
        "upload_bytes_total": 15_000,
        "download_bytes_total": 21_000,
        "uploads": ["once: sums"],
        "epsilon": None,
        "seconds": 60.0,
    }
    (folder / "summary.json").write_text(json.dumps(summary | keys))
    rounds = []
    for number in (1, 2, 3):
        empty = void if number == 2 else ""
        lines = [
            {**client(one["id"], bool(one["accuracy"])), "took_part": not empty} for one in clients
        ]
        lines[2]["took_part"] = not empty and number < 3
        rounds.append({"round": number, "void": empty, "clients": lines, "seconds": 20.0} | means)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rounds))
    return folder


def page_of(folder: Path) -> str:
    return re.sub(r"\s+", " ", render(folder).read_text("utf-8"))


def test_nothing_told_is_said_in_words(tmp_path: Path) -> None:
    page = page_of(served(tmp_path, tells=0))
    assert "Not told:" in page
    assert "how accurate the clients' networks are; how many images".replace("'", "&#39;") in page
    assert "join --tell" in page
    assert "The 3 clients keep to themselves how accurate their networks are" in page
    assert "reach 95.0%" in page
    assert page.count("Not told by the clients.") == 3
    assert "No client told an accuracy in any round." in page
    assert "No accuracy has been measured yet." not in page
    assert "fedvtc-edge report HOME" in page
    assert "<li>How accurate its networks are.</li>" in page


def test_some_told_says_by_how_many(tmp_path: Path) -> None:
    page = page_of(served(tmp_path, tells=1))
    assert "networks are (2 of 3 do not tell); how many images of which class they have" in page
    assert "Means are over the clients that tell." in page
    assert "each round, told: how accurate its networks are" in page
    assert "<li>How accurate its networks are.</li>" not in page


def test_everything_told_is_said_to_have_left(tmp_path: Path) -> None:
    page = page_of(served(tmp_path, tells=3))
    assert "Not told" not in page
    assert "No client told" not in page
    assert "once, told: how many images of which class it has" in page
    assert "<li>All networks.</li>" in page
    assert "those stayed with the clients" in page
    assert "--engine local" in page  # how to audit it


@pytest.mark.parametrize(
    ("share", "stays"),
    [
        ("features+decoder", "The classifier."),
        ("companion", "Its own network, but not the small one beside it."),
        ("heads", "Its network but for the head."),
    ],
)
def test_weights_that_left_are_not_said_to_stay(tmp_path: Path, share: str, stays: str) -> None:
    folder = served(tmp_path, tells=3)
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"share": share}))
    page = page_of(folder)
    assert f"<li>{stays}</li>" in page
    assert "All networks." not in page


def test_a_simulation_has_its_networks_here(tmp_path: Path) -> None:
    (tmp_path / "clients" / "north").mkdir(parents=True)
    (tmp_path / "clients" / "north" / "client.json").write_bytes(b"{}")
    page = page_of(served(tmp_path, tells=3))
    assert "stayed with the clients" not in page
    assert "Who took part" in page


def test_rounds_show_who_took_part_who_was_late_and_what_was_void(tmp_path: Path) -> None:
    page = page_of(served(tmp_path, tells=3, void="1 of 3 <b>answered</b>"))
    assert "Round 2 is void" in page
    assert "1 of 3 &lt;b&gt;answered&lt;/b&gt;." in page
    table = page[page.index('id="attendance"') :]
    assert table.count('aria-label="counted in 2 of 3 rounds; missed: none"') == 2
    assert table.count('aria-label="counted in 1 of 3 rounds; missed: 3"') == 1
    assert table.count('class="void"') == 3


def test_an_unfinished_run_shows_its_rounds_so_far(tmp_path: Path) -> None:
    served(tmp_path, tells=0, void="too few")
    (tmp_path / "summary.json").unlink()
    page = page_of(tmp_path)
    assert "This run is not finished." in page
    assert "Round 2 is void" in page


def test_a_client_s_page_says_whose_it_is(tmp_path: Path) -> None:
    own = {"home": True, "evaluated_on": None, "clients": [client("north", False)]}
    page = page_of(served(tmp_path, tells=0, upload_bytes_total=None, **own))
    assert "one client's own page" in page
    assert "This client has no test set" in page
    assert page.count("No test set here.") == 3
    assert "Not told" not in page
    assert "the server counts it" in page


def test_a_home_that_is_not_ready_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home.json").write_text("{}")
    with pytest.raises(RunError, match="whose run is not over") as refused:
        render(tmp_path)
    assert "fedvtc-edge join" in refused.value.hint


def rounds_of(*parts: dict[str, bool | None], void: int = 0) -> list[RoundRecord]:
    return [
        RoundRecord.model_validate(
            {
                "round": number,
                "void": "too few" if number == void else "",
                "clients": [{"id": name, "took_part": took} for name, took in part.items()],
            }
        )
        for number, part in enumerate(parts, start=1)
    ]


def test_attendance_is_empty_where_nobody_could_stay_away() -> None:
    assert attendance(rounds_of({"a": None}, {"a": None}), ["a"]) == []
    assert attendance([], ["a"]) == []


def test_attendance_counts_each_round_once() -> None:
    found = attendance(
        rounds_of({"a": True, "b": False}, {"a": False}, {"b": True, "a": True}, void=2), ["a", "b"]
    )
    assert [(one.id, one.cells, one.took, one.missed) for one in found] == [
        ("a", ["took", "void", "took"], 2, []),
        ("b", ["missed", "void", "took"], 1, [1]),
    ]


def test_a_long_absence_is_cut_short() -> None:
    (only,) = attendance(rounds_of(*({"a": False} for _ in range(20))), ["a"])
    assert only.words == "1, 2, 3, 4, 5, 6, 7, 8 and 12 more"
