"""No release without an entry, and none beyond the budget."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.config import load_config
from fedvtc_edge.errors import PrivacyError, RunError
from fedvtc_edge.privacy.ledger import Ledger
from fedvtc_edge.privacy.mechanism import Mechanism, mechanism_of

ONCE = mechanism_of(load_config({"privacy": {"mode": "anchored"}}))
assert ONCE is not None


def begun(path: Path, mechanism: Mechanism | None = ONCE) -> Ledger:
    ledger = Ledger(path / "ledger.json", mechanism)
    ledger.begin()
    return ledger


def reopened(path: Path, mechanism: Mechanism | None = ONCE) -> Ledger:
    ledger = Ledger(path / "ledger.json", mechanism)
    ledger.reopen()
    return ledger


def entries(path: Path) -> list[dict[str, Any]]:
    return list(json.loads((path / "ledger.json").read_text())["releases"])


def refuses(ledger: Ledger, *release: Any) -> None:
    before = ledger.path.read_bytes()
    with pytest.raises(PrivacyError, match="epsilon 4 is spent") as refused:
        ledger.record(*release)
    assert "a retry sends the same bytes" in refused.value.hint
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize(
    ("mechanism", "paid"), [(None, (None, None)), (ONCE, (ONCE.claim.mechanism, 4.0))]
)
def test_an_entry(tmp_path: Path, mechanism: Mechanism | None, paid: tuple[Any, Any]) -> None:
    begun(tmp_path, mechanism).record(0, "a", "anchor", b"bytes")
    assert entries(tmp_path) == [
        {
            "round": 0,
            "client": "a",
            "kind": "anchor",
            "bytes": 5,
            "sha256": hashlib.sha256(b"bytes").hexdigest(),
            "mechanism": paid[0],
            "epsilon": paid[1],
        }
    ]


def test_without_a_claim_the_file_is_as_it_ever_was(tmp_path: Path) -> None:
    """Byte for byte: version 1 of the format."""
    ledger = begun(tmp_path, None)
    assert (tmp_path / "ledger.json").read_text() == '{"schema": 1, "releases": [\n]}\n'
    ledger.record(1, "a", "features", b"x")
    ledger.record(2, "a", "features", b"y")
    digests = [hashlib.sha256(data).hexdigest() for data in (b"x", b"y")]
    assert (tmp_path / "ledger.json").read_text() == (
        '{"schema": 1, "releases": [\n'
        f'  {{"round": 1, "client": "a", "kind": "features", "bytes": 1, "sha256": "{digests[0]}", '
        '"mechanism": null, "epsilon": null},\n'
        f'  {{"round": 2, "client": "a", "kind": "features", "bytes": 1, "sha256": "{digests[1]}", '
        '"mechanism": null, "epsilon": null}\n'
        "]}\n"
    )


@pytest.mark.parametrize(
    "second",
    [
        (0, "a", "anchor", b"other"),
        (1, "a", "anchor", b"same"),
        (0, "a", "features", b"same"),
        (0, "a", "anchor", b""),
    ],
)
def test_a_second_release_is_refused(tmp_path: Path, second: tuple[Any, ...]) -> None:
    ledger = begun(tmp_path)
    ledger.record(0, "a", "anchor", b"same")
    refuses(ledger, *second)
    refuses(reopened(tmp_path), *second)
    ledger.record(0, "b", "anchor", b"other")
    assert [entry["client"] for entry in entries(tmp_path)] == ["a", "b"]


def test_a_retry_costs_nothing(tmp_path: Path) -> None:
    ledger = begun(tmp_path)
    for _ in range(3):
        ledger.record(0, "a", "anchor", b"same")
        ledger = reopened(tmp_path)
    assert len(entries(tmp_path)) == 1


def test_as_many_as_the_budget_has_room_for(tmp_path: Path) -> None:
    settings = {
        "privacy": {"mode": "client"},
        "method": {"share": "features", "rounds": 3},
        "transport": {"masking": True},
    }
    ledger = begun(tmp_path, mechanism_of(load_config(settings)))
    for number in range(1, 4):
        ledger.record(number, "a", "features", b"%d" % number)
    refuses(ledger, 4, "a", "features", b"4")
    ledger.record(2, "a", "features", b"2")
    assert len(entries(tmp_path)) == 3


def test_what_was_released_before_the_claim_counts(tmp_path: Path) -> None:
    """An entry in the file is a release, whoever wrote it and whatever it says it cost."""
    begun(tmp_path, None).record(0, "a", "anchor", b"exact")
    refuses(reopened(tmp_path), 0, "a", "anchor", b"noised")
    refuses(reopened(tmp_path), 0, "a", "anchor", b"exact")


def test_a_refused_release_leaves_room_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check comes before the writing: a full disk cannot turn a refusal into an entry."""

    def never(path: Path, data: bytes) -> None:
        raise AssertionError("written")

    ledger = begun(tmp_path)
    ledger.record(0, "a", "anchor", b"same")
    monkeypatch.setattr("fedvtc_edge.privacy.ledger.write_atomic", never)
    refuses(ledger, 0, "a", "anchor", b"other")


@pytest.mark.parametrize("damage", ["", "[]", '{"schema": 1}', '{"schema": 1, "releases": [{}]}'])
def test_a_ledger_that_was_lost_is_never_empty(tmp_path: Path, damage: str) -> None:
    begun(tmp_path).record(0, "a", "anchor", b"same")
    (tmp_path / "ledger.json").write_text(damage)
    with pytest.raises(RunError, match="what was released"):
        reopened(tmp_path)
