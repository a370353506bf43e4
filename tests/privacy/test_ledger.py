"""No release without an entry, and none beyond the budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.config import load_config
from fedvtc_edge.errors import PrivacyError, RunError
from fedvtc_edge.privacy.ledger import Ledger, Release
from fedvtc_edge.privacy.mechanism import Mechanism, mechanism_of
from fedvtc_edge.storage.atomic import replace_tail

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
    """Of the file as any reader of JSON finds it, without the checks."""
    document = json.loads((path / "ledger.json").read_text())
    assert document["entries"] == len(document["releases"])
    assert document["check"] == (document["releases"] or [{"check": ""}])[-1]["check"]
    return [{k: v for k, v in e.items() if k != "check"} for e in document["releases"]]


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


def test_the_file_byte_for_byte(tmp_path: Path) -> None:
    """Version 2 of the format, written down by hand."""
    ledger = begun(tmp_path, None)
    empty = '{"schema": 2, "releases": [\n], "entries": 0, "check": ""}\n'
    assert (tmp_path / "ledger.json").read_text() == empty
    ledger.record(1, "a", "features", b"x")
    ledger.record(2, "a", "features", b"y")
    lines, before = [], ""
    for number, data in ((1, b"x"), (2, b"y")):
        body = (
            f'{{"round": {number}, "client": "a", "kind": "features", "bytes": 1, "sha256": '
            f'"{hashlib.sha256(data).hexdigest()}", "mechanism": null, "epsilon": null}}'
        )
        before = hashlib.sha256((before + body).encode()).hexdigest()[:32]
        lines.append(f'{body[:-1]}, "check": "{before}"}}')
    assert (tmp_path / "ledger.json").read_text() == (
        '{"schema": 2, "releases": [\n  '
        + "\n, ".join(lines)
        + f'\n], "entries": 2, "check": "{before}"}}\n'
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

    def never(path: Path, at: int, data: bytes, *, before: bytes) -> None:
        raise AssertionError("written")

    ledger = begun(tmp_path)
    ledger.record(0, "a", "anchor", b"same")
    monkeypatch.setattr("fedvtc_edge.privacy.ledger.replace_tail", never)
    refuses(ledger, 0, "a", "anchor", b"other")


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        '{"schema": 1}',
        '{"schema": 1, "releases": [{}]}',
        '{"schema": 2, "releases": []}',
        '{"schema": 2, "releases": [',
        '{"schema": 2, "releases": [\n  {"round":',
    ],
)
def test_a_ledger_that_was_lost_is_never_empty(tmp_path: Path, damage: str) -> None:
    begun(tmp_path).record(0, "a", "anchor", b"same")
    (tmp_path / "ledger.json").write_text(damage)
    with pytest.raises(RunError, match="what was released"):
        reopened(tmp_path)


# ---------------------------------------------------------------- batches and what went wrong


def releases(*names: str) -> list[Release]:
    return [Release(0, name, "anchor", name.encode()) for name in names]


def filled(path: Path, *batches: str) -> Ledger:
    """A ledger in which each letter of a batch is a client's release."""
    ledger = begun(path, None)
    for batch in batches:
        ledger.enter(releases(*batch))
    return ledger


def test_a_batch_is_what_its_entries_are_one_by_one(tmp_path: Path) -> None:
    for name, batches in (("once", ["abcd"]), ("each", [*"abcd"]), ("two", ["ab", "abcd", "cd"])):
        (tmp_path / name).mkdir()
        filled(tmp_path / name, *batches)
    files = [(tmp_path / name / "ledger.json").read_bytes() for name in ("once", "each", "two")]
    assert files[0] == files[1] == files[2]
    assert [entry["client"] for entry in entries(tmp_path / "once")] == list("abcd")


def test_a_batch_is_one_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    ledger = begun(tmp_path, None)
    monkeypatch.setattr("os.fsync", waits.append)
    ledger.enter(releases(*"abcdefgh"))
    assert len(waits) == 1
    ledger.enter(releases(*"abc"))  # known
    assert len(waits) == 1


def test_what_a_release_writes_does_not_grow_with_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def noting(path: Path, at: int, data: bytes, *, before: bytes = b"") -> None:
        written.append(len(data))
        replace_tail(path, at, data, before=before)

    ledger = begun(tmp_path, None)
    monkeypatch.setattr("fedvtc_edge.privacy.ledger.replace_tail", noting)
    for number in range(200):
        ledger.record(number, "a", "features", b"x")
    assert max(written[1:]) - min(written[1:]) <= 4  # digits of a round's and an entry's number


def test_a_batch_that_the_budget_does_not_cover_leaves_nothing(tmp_path: Path) -> None:
    ledger = begun(tmp_path)
    other = Release(0, "b", "anchor", b"another")
    with pytest.raises(PrivacyError, match="b has released 1 times"):
        ledger.enter([*releases("a", "b"), other, *releases("c")])
    assert entries(tmp_path) == []
    ledger.enter([*releases("a", "b"), *releases("b")])  # the same bytes twice are one release
    assert [entry["client"] for entry in entries(tmp_path)] == ["a", "b"]


def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    ledger = filled(tmp_path, "ab")
    before = ledger.path.read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            ledger.enter(releases(*"cd"))
    assert ledger.path.read_bytes() == before
    ledger.enter(releases("c"))
    assert [entry["client"] for entry in entries(tmp_path)] == list("abc")


@given(batch=st.integers(0, 4), data=st.data())
def test_a_torn_tail_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, batch: int, data: st.DataObject
) -> None:
    """Whatever part of a write reached the disk: what was durable stays, and the file goes on."""
    path = tmp_path_factory.mktemp("torn")
    before = filled(path, "abc").path.read_bytes()
    ledger = reopened(path, None)
    ledger.enter(releases(*"defg"[:batch]))
    after = ledger.path.read_bytes()
    cut = data.draw(st.integers(before.rindex(b"\n]"), len(after)))
    torn = after[:cut] + before[cut:]  # the old tail was overwritten from its beginning
    ledger.path.write_bytes(torn)
    again = reopened(path, None)
    found = [entry["client"] for entry in entries(path)]
    assert found == list("abcdefg"[: len(found)])
    assert len(found) >= 3
    again.enter(releases(*"defg"))
    assert [entry["client"] for entry in entries(path)] == list("abcdefg")


def test_an_old_block_before_new_ones_is_torn_too(tmp_path: Path) -> None:
    """A power cut may write what was appended and not what was overwritten."""
    before = filled(tmp_path, "abc").path.read_bytes()
    ledger = reopened(tmp_path, None)
    ledger.enter(releases(*"defg"))
    ledger.path.write_bytes(before + ledger.path.read_bytes()[len(before) :])
    assert [entry["client"] for entry in reopened(tmp_path, None).entries] == list("abc")
    assert ledger.path.read_bytes() == before


def lines_of(path: Path) -> tuple[bytes, list[bytes], bytes]:
    """Head, entries without what is in front of them, and the end of a file."""
    head, *lines, end, rest = (path / "ledger.json").read_bytes().split(b"\n")
    assert rest == b""
    return head, [line[2:] for line in lines], end


Fault = Callable[[list[bytes]], list[bytes]]


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (lambda e: [e[0], e[1].replace(b'"bytes": 1', b'"bytes": 2'), *e[2:]], 2),
        (lambda e: [e[0].replace(b"null", b"0.1"), *e[1:]], 1),
        (lambda e: [*e[:3], e[3].replace(b'"check": "', b'"check": "0')], 4),
        (lambda e: e[1:], 1),
        (lambda e: [*e[:2], e[3]], 3),
        (lambda e: e[:3], 4),
        (lambda e: [], 1),
        (lambda e: [e[0], e[2], e[1], e[3]], 2),
        (lambda e: [*e, e[3]], 5),
        (lambda e: [e[0], e[0], *e[1:]], 2),
        (lambda e: [e[0], e[1] + b" ", *e[2:]], 2),
        (lambda e: [e[0], b"{}", *e[1:]], 2),
        (lambda e: [e[0], b"", *e[1:]], 2),
    ],
)
def test_a_changed_removed_or_exchanged_entry_is_named(
    tmp_path: Path, fault: Fault, named: int
) -> None:
    ledger = filled(tmp_path, "ab", "cd")
    head, listed, end = lines_of(tmp_path)
    faulty = [(b", " if place else b"  ") + line for place, line in enumerate(fault(listed))]
    changed = b"\n".join([head, *faulty, end])
    ledger.path.write_bytes(changed + b"\n")
    with pytest.raises(RunError, match=f"entry {named} is damaged, missing or out of place"):
        reopened(tmp_path, None)
    assert ledger.path.read_bytes() == changed + b"\n"


def test_a_cut_that_takes_more_than_a_tail_is_no_torn_one(tmp_path: Path) -> None:
    """Entries that follow each other stand behind the damage: they were durable."""
    ledger = filled(tmp_path, "abcde")
    whole = ledger.path.read_bytes()
    damaged = whole.replace(b'"client": "b"', b'"client": "x"')[:-20]
    ledger.path.write_bytes(damaged)
    with pytest.raises(RunError, match="entry 2 is damaged"):
        reopened(tmp_path, None)


def test_a_ledger_is_held_to_an_earlier_head(tmp_path: Path) -> None:
    ledger = filled(tmp_path, "ab")
    ledger.expect(0, "")
    head = ledger.head
    assert head[0] == 2
    ledger.enter(releases("c"))
    reopened(tmp_path, None).expect(*head)
    ledger.path.write_bytes(ledger.path.read_bytes()[:400])  # looks like a torn tail
    lost = reopened(tmp_path, None)
    assert lost.head[0] == 1
    with pytest.raises(RunError, match="of 2 entries there are 1"):
        lost.expect(*head)
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match="or others"):
        filled(tmp_path / "other", "ac").expect(*head)


def test_an_older_version_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text('{"schema": 1, "releases": [\n]}\n')
    with pytest.raises(RunError, match="of another version"):
        reopened(tmp_path)
    (tmp_path / "ledger.json").unlink()
    with pytest.raises(RunError, match="missing"):
        reopened(tmp_path)


def test_two_processes_in_turn_lose_nothing(tmp_path: Path) -> None:
    """Each sees what the other entered before it enters something itself."""
    one = begun(tmp_path)
    other = reopened(tmp_path)
    one.enter(releases("a"))
    other.enter(releases("b"))
    one.enter(releases("c"))
    assert [entry["client"] for entry in entries(tmp_path)] == list("abc")
    with pytest.raises(PrivacyError, match="b has released 1 times"):
        one.record(0, "b", "anchor", b"another")
    whole = one.path.read_bytes()
    one.path.write_bytes(whole.replace(b'"client": "b"', b'"client": "x"') + b" ")
    with pytest.raises(RunError, match="entry 2 is damaged"):
        one.enter(releases("d"))
