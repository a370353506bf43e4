"""Closings of phases, on the disk before anybody is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.distributed.server.collector import Journal
from fedvtc_edge.errors import RunError

RUN, OTHER = "0" * 32, "1" * 32


@pytest.fixture(autouse=True)
def _quick(quick: None) -> None:
    """No disk is awaited."""


def test_what_was_closed_stays_closed(tmp_path: Path) -> None:
    path = tmp_path / "open.json"
    journal = Journal(path, RUN)
    assert journal.closed(0, 0) is None
    assert not path.exists()
    journal.close(2, 0, ["a", "b"])
    journal.close(2, 1, ["b"])
    journal.close(2, 2, [])
    for one in (journal, Journal(path, RUN)):
        assert [one.closed(2, phase) for phase in range(4)] == [("a", "b"), ("b",), (), None]
        assert one.closed(1, 0) is None
        assert one.closed(3, 0) is None
    again = Journal(path, RUN)
    again.close(3, 0, ["c"])
    assert again.closed(2, 0) is None
    assert Journal(path, RUN).closed(3, 0) == ("c",)


@pytest.mark.parametrize(("number", "phase"), [(2, 0), (2, 2), (3, 1), (1, 1), (2, -1)])
def test_phases_are_closed_in_order(tmp_path: Path, number: int, phase: int) -> None:
    journal = Journal(tmp_path / "open.json", RUN)
    journal.close(2, 0, ["a"])
    before = journal.path.read_bytes()
    with pytest.raises(ValueError, match=f"phase {phase} of round {number}"):
        journal.close(number, phase, ["b"])
    assert journal.path.read_bytes() == before
    assert journal.closed(2, 0) == ("a",)


DOCUMENT: dict[str, Any] = {"schema": 1, "run": RUN, "round": 2, "closed": [["a"]]}


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"7",
        *(
            json.dumps({key: value for key, value in DOCUMENT.items() if key != gone}).encode()
            for gone in DOCUMENT
        ),
        *(
            json.dumps(DOCUMENT | change).encode()
            for change in ({"schema": 2}, {"run": OTHER}, {"round": "two"}, {"closed": 3})
        ),
    ],
)
def test_a_damaged_journal_is_refused(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "open.json"
    path.write_bytes(damaged)
    with pytest.raises(RunError, match="does not say which phases") as refused:
        Journal(path, RUN)
    assert "new run" in refused.value.hint


def test_a_disk_that_takes_nothing_closes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "open.json", RUN)
    journal.close(1, 0, ["a"])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("fedvtc_edge.distributed.server.collector.write_atomic", full)
        with pytest.raises(RunError, match="No space left"):
            journal.close(1, 1, ["a"])
    assert journal.closed(1, 1) is None
    journal.close(1, 1, ["b"])
    assert Journal(journal.path, RUN).closed(1, 1) == ("b",)
