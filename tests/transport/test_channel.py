"""Uploads on their way: sealed by the right party, counted once, and gone when it is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvtc_edge.config import TransportSettings
from fedvtc_edge.errors import EnvelopeError, RunError
from fedvtc_edge.sealing import TrustList, overhead
from fedvtc_edge.transport.channel import INBOX, Plain, Sealed, transport_of
from fedvtc_edge.transport.keyring import TRUST, KeyRing
from fedvtc_edge.wire.context import Context

RUN = "00112233445566778899aabbccddeeff"
IDS = ("client-00", "client-01")


def context(round_: int = 0, sender: str = "client-00", kind: str = "anchor") -> Context:
    return Context(RUN, round_, sender, kind)


def sealed(folder: Path | None) -> Sealed:
    return Sealed(KeyRing(IDS, folder), RUN, folder)


def test_plain_is_plain(tmp_path: Path) -> None:
    plain = Plain()
    assert plain.carry(b"bytes", context()) == (b"bytes", 5, None)
    assert plain.relay(b"bytes", context()) == (b"bytes", 5, None)
    plain.close(0)
    plain.end()


@pytest.mark.parametrize("kept", [True, False])
def test_an_upload_arrives_longer_by_its_envelope(tmp_path: Path, kept: bool) -> None:
    transport = sealed(tmp_path / "parties" if kept else None)
    for way in (transport.carry, transport.relay):
        delivery = way(b"payload", context(0, "client-01"))
        assert delivery.payload == b"payload"
        assert delivery.size == 7 + overhead(transport.parties.server.public)
        assert delivery.fingerprint == transport.parties.clients["client-01"].fingerprint


def test_keys_are_the_owners_alone_and_outlive_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "parties"
    first = KeyRing(IDS, folder)
    prints = [first.server.fingerprint, *(first.clients[name].fingerprint for name in IDS)]
    assert len(set(prints)) == 3
    again = KeyRing(IDS, folder)
    assert prints == [again.server.fingerprint, *(again.clients[n].fingerprint for n in IDS)]
    keys = sorted(folder.glob("*.key"))
    assert [path.name for path in keys] == ["client-00.key", "client-01.key", "server.key"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in keys)
    assert {entry.client for entry in again.trusted.entries} == set(IDS)
    assert {e.client for e in TrustList.load(folder / TRUST).entries} == set(IDS)


def test_a_public_half_that_a_kill_left_alone_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "parties"
    folder.mkdir()
    (folder / "server.key.pub").write_bytes(b"half")
    parties = KeyRing(IDS, folder)
    assert parties.server.fingerprint == KeyRing(IDS, folder).server.fingerprint


def test_what_was_acknowledged_is_not_sent_again(tmp_path: Path) -> None:
    """A restarted round: the server has the envelope, another one would be refused."""
    first = sealed(tmp_path / "parties").carry(b"payload", context())
    again = sealed(tmp_path / "parties")
    stored = sorted((tmp_path / "parties" / INBOX).glob("*.envelope"))
    assert again.carry(b"payload computed anew", context()) == first
    assert sorted((tmp_path / "parties" / INBOX).glob("*.envelope")) == stored
    assert len(stored) == 1


def test_a_new_round_closes_the_old_one(tmp_path: Path) -> None:
    transport = sealed(tmp_path / "parties")
    transport.carry(b"zero", context(0))
    transport.carry(b"two", context(2))
    assert transport.carry(b"two again", context(2)).payload == b"two"
    with pytest.raises(EnvelopeError):
        transport.carry(b"late", context(0, "client-01"))
    transport.close(2)
    assert not list((tmp_path / "parties" / INBOX).glob("*.envelope"))


def test_messages_of_the_moment_are_not_kept(tmp_path: Path) -> None:
    transport = sealed(tmp_path / "parties")
    for text in (b"one", b"two"):
        assert transport.relay(text, context()).payload == text
    assert not (tmp_path / "parties" / INBOX).exists()


def test_a_revoked_client_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "parties"
    trusted = KeyRing(IDS, folder).trusted
    trusted.revoke("client-01")
    trusted.save(folder / TRUST)
    transport = sealed(folder)
    assert transport.carry(b"payload", context()).payload == b"payload"
    for way in (transport.carry, transport.relay):
        with pytest.raises(EnvelopeError, match="revoked"):
            way(b"payload", context(0, "client-01"))


def test_a_lost_envelope_is_noticed(tmp_path: Path) -> None:
    sealed(tmp_path / "parties").carry(b"payload", context())
    next((tmp_path / "parties" / INBOX).glob("*.envelope")).unlink()
    with pytest.raises(RunError, match="acknowledged"):
        sealed(tmp_path / "parties").carry(b"payload", context())


def test_nothing_is_left_when_it_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "parties"
    transport = sealed(folder)
    transport.carry(b"payload", context())
    transport.end()
    assert not folder.exists()
    transport.end()


def test_a_method_that_uploads_nothing_makes_no_keys(tmp_path: Path) -> None:
    transport = sealed(tmp_path / "parties")
    transport.close(1)
    transport.end()
    assert not (tmp_path / "parties").exists()


@pytest.mark.parametrize(("seal", "kind"), [(True, Sealed), (False, Plain)])
def test_the_settings_decide(seal: bool, kind: type) -> None:
    made = transport_of(TransportSettings(seal=seal), KeyRing(IDS, None), RUN, None)
    assert type(made) is kind
