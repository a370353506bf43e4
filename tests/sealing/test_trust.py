"""The trust list: one id, one identity, for good; damage trusts nobody."""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.errors import TrustError
from fedvtc_edge.sealing import Entry, Identity, PublicIdentity, TrustList
from fedvtc_edge.sealing import trust as module


@pytest.fixture
def some(made_of: Callable[[str, str], Identity]) -> dict[str, PublicIdentity]:
    """Of both suites."""
    suites = {"a": "hybrid", "b": "x25519", "c": "x25519"}
    return {name: made_of(name, suite).public for name, suite in suites.items()}


@pytest.fixture
def known(some: dict[str, PublicIdentity]) -> TrustList:
    """a and b, and b is revoked."""
    known = TrustList()
    known.add("a", some["a"])
    known.add("b", some["b"])
    known.revoke("b")
    return known


def refused(call: Callable[..., Any], *words: Any, match: str) -> None:
    with pytest.raises(TrustError, match=match) as caught:
        call(*words)
    assert caught.value.hint
    assert caught.value.__cause__ is None


def test_who_is_looked_up(known: TrustList, some: dict[str, PublicIdentity]) -> None:
    assert known.lookup("a") == some["a"]
    refused(known.lookup, "b", match="client b was revoked")
    refused(known.lookup, "c", match="'c' is not in the trust list")
    refused(known.revoke, "c", match="'c' is not in the trust list")
    assert [known.is_revoked(name) for name in "abc"] == [False, True, False]
    assert known.entries == (Entry("a", some["a"]), Entry("b", some["b"], "revoked"))


def test_once_more_changes_nothing(known: TrustList, some: dict[str, PublicIdentity]) -> None:
    before = known.entries
    known.add("a", some["a"])
    known.revoke("b")
    assert known.entries == before


def test_one_id_one_identity(known: TrustList, some: dict[str, PublicIdentity]) -> None:
    refused(known.add, "a", some["c"], match="client a has an identity already")
    refused(known.add, "b", some["c"], match="client b has an identity already")
    refused(known.add, "b", some["b"], match="client b has an identity already")  # revoked
    refused(known.add, "c", some["a"], match="client c has a key of client a")
    refused(known.add, "c", some["b"], match="client c has a key of client b")
    assert len(known.entries) == 2


def test_one_key_one_id(known: TrustList, some: dict[str, PublicIdentity]) -> None:
    """Half a new identity is none: who signs alike is the same party."""
    same_signer = PublicIdentity("x25519", some["a"].verifying, some["c"].sealing)
    refused(known.add, "c", same_signer, match="client c has a key of client a")
    same_sealer = PublicIdentity("x25519", some["c"].verifying, some["b"].sealing)
    refused(known.add, "c", same_sealer, match="client c has a key of client b")


@pytest.mark.parametrize("name", ["", "-a", "a b", "a\n", "a\0", "x" * 65, "ä", "../a"])
def test_impossible_ids(some: dict[str, PublicIdentity], name: str) -> None:
    refused(TrustList().add, name, some["a"], match="is no client id")


def test_a_list_is_full(some: dict[str, PublicIdentity], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CLIENTS", 2)
    known = TrustList([Entry("a", some["a"]), Entry("b", some["b"])])
    refused(known.add, "c", some["c"], match="more than 2 clients")
    assert len(known.entries) == 2


# ---------------------------------------------------------------- the file


def test_there_and_back(known: TrustList, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    known.save(path)
    again = TrustList.load(path)
    assert again.entries == known.entries
    data = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["list.json"]
    TrustList().save(path)
    assert TrustList.load(path).entries == ()


def test_the_file_is_readable(
    known: TrustList, some: dict[str, PublicIdentity], tmp_path: Path
) -> None:
    known.save(tmp_path / "list.json")
    document = json.loads((tmp_path / "list.json").read_text("utf-8"))
    assert document["schema"] == 1
    assert document["kind"] == "fedvtc-edge trust list"
    assert document["clients"][1] == {
        "id": "b",
        "status": "revoked",
        "fingerprint": some["b"].fingerprint,
        "suite": "x25519",
        "identity": base64.b64encode(some["b"].to_bytes()).decode(),
    }


def test_the_largest_list_fits(known: TrustList, tmp_path: Path) -> None:
    known.save(tmp_path / "list.json")
    entry = (tmp_path / "list.json").stat().st_size
    assert module.MAX_CLIENTS * entry < module._LARGEST_FILE
    assert max(len(e.identity.to_bytes()) for e in known.entries) * 4 / 3 < module._LONGEST_IDENTITY


def test_a_full_disk_keeps_the_old_list(
    known: TrustList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "list.json"
    known.save(path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(TrustList().save, path, match="No space left")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["list.json"]


def changes() -> dict[str, Callable[[Any], Any]]:
    """What a file may not say, by name: each takes the document and changes it."""

    def of(index: int, **fields: Any) -> Callable[[Any], Any]:
        return lambda document: document["clients"][index].update(fields)

    def swapped(document: Any) -> None:
        first, second = document["clients"]
        first["identity"], second["identity"] = second["identity"], first["identity"]

    def text(change: Callable[[str], str]) -> Callable[[Any], Any]:
        def apply(document: Any) -> None:
            document["clients"][0]["identity"] = change(document["clients"][0]["identity"])

        return apply

    return {
        "another schema": lambda document: document.update(schema=2),
        "another kind": lambda document: document.update(kind="recipe"),
        "no clients": lambda document: document.pop("clients"),
        "clients of another type": lambda document: document.update(clients=5),
        "a client of another type": lambda document: document["clients"].append("a"),
        "a client twice": lambda document: document["clients"].append(document["clients"][0]),
        "an id twice": of(1, id="a"),
        "an impossible id": of(0, id="a b"),
        "an id of another type": of(0, id=5),
        "another status": of(0, status="admired"),
        "a status of another type": of(0, status=["trusted"]),
        "another fingerprint": of(0, fingerprint="SHA256:" + "A" * 43),
        "another suite": of(0, suite="x25519"),
        "identities swapped": swapped,
        "an unknown key": of(0, note="hello"),
        "a key less": lambda document: document["clients"][0].pop("status"),
        "an identity of another type": of(0, identity=5),
        "no base64": text(lambda value: value[:-4] + "!!!!"),
        "spaces in base64": text(lambda value: value[:4] + "\n" + value[4:]),
        "a shorter identity": text(lambda value: value[:-8]),
        "a longer identity": text(lambda value: value[:-2] + "A" * 6),
        "a huge identity": of(0, identity="A" * 100_000),
        "another key": text(lambda value: value[:8] + "////" + value[12:]),
    }


@pytest.mark.parametrize("name", changes())
def test_a_changed_file_trusts_nobody(known: TrustList, tmp_path: Path, name: str) -> None:
    path = tmp_path / "list.json"
    known.save(path)
    document = json.loads(path.read_text("utf-8"))
    changes()[name](document)
    path.write_text(json.dumps(document))
    refused(TrustList.load, path, match="is not an intact|is no client id|already|has a key")


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"5", b"\xff\xfe", b'{"schema": 1,', b"[" * 100_000],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_list(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "list.json").write_bytes(data)
    refused(TrustList.load, tmp_path / "list.json", match="is not an intact trust list")


def test_a_key_twice_is_refused(known: TrustList, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    known.save(path)
    text = path.read_text("utf-8")
    path.write_text(text.replace('"status": "revoked"', '"status": "revoked", "status": "trusted"'))
    refused(TrustList.load, path, match="is not an intact trust list")


def test_what_is_no_file(tmp_path: Path) -> None:
    refused(TrustList.load, tmp_path / "absent", match="cannot read the trust list")
    refused(TrustList.load, tmp_path, match="cannot read the trust list")
    refused(TrustList().save, tmp_path / "absent" / "list", match="cannot write")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**34)
    refused(TrustList.load, tmp_path / "huge", match="too large for a trust list")


@hypothesis_settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_damage_is_refused_or_harmless(
    casts: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """One byte changed: an error, or the same clients with the same keys."""
    trusted = casts["x25519"].trusted
    path = tmp_path_factory.mktemp("damaged") / "list.json"
    trusted.save(path)
    changed = bytearray(path.read_bytes())
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    try:
        again = TrustList.load(path)
    except TrustError:
        return
    assert [e.identity for e in again.entries] == [e.identity for e in trusted.entries]
