"""Uploads on their way: sealed by the right party, counted once, and gone when it is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvtc_edge.config import TransportSettings
from fedvtc_edge.errors import EnvelopeError, KeyFileError, RunError
from fedvtc_edge.sealing import Identity, overhead
from fedvtc_edge.transport.channel import INBOX, Delivery, Plain, Sealed, transport_of
from fedvtc_edge.transport.keyring import SECRET, TRUST, KeyRing
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
    assert [path.name for path in folder.iterdir()] == [SECRET]
    assert (folder / SECRET).stat().st_mode & 0o077 == 0
    assert (
        {entry.client for entry in again.trusted.entries} == set(again.trusted.clients) == set(IDS)
    )
    other = KeyRing(IDS, tmp_path / "other")
    assert not {other.clients[name].fingerprint for name in IDS} & set(prints)
    with pytest.raises(KeyError):
        again.clients["client-02"]


def test_who_takes_no_part_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    derive = Identity.derive

    def noting(secret: bytes, name: str) -> Identity:
        made.append(name)
        return derive(secret, name)

    monkeypatch.setattr(Identity, "derive", noting)
    ring = KeyRing([f"client-{index:05d}" for index in range(10_000)], None)
    transport = Sealed(ring, RUN, None)
    transport.carry(b"payload", context(0, "client-00007"))
    assert len(ring.clients) == len(ring.trusted.clients) == 10_000
    assert made == ["client-00007", "server"]


def test_a_damaged_secret_is_named(tmp_path: Path) -> None:
    (tmp_path / SECRET).write_bytes(b"short")
    with pytest.raises(KeyFileError, match="5 bytes, expected 32"):
        _ = KeyRing(IDS, tmp_path).server


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


def test_several_travel_like_each(tmp_path: Path) -> None:
    """One that is refused keeps none of the others, and what was kept is not sent again."""
    folder = tmp_path / "parties"
    trusted = KeyRing(IDS, folder).trusted
    trusted.revoke("client-01")
    trusted.save(folder / TRUST)
    batch = [(context(0, name, kind), name.encode()) for kind in ("a", "b") for name in IDS]
    for transport in (sealed(folder), sealed(folder)):
        found = transport.carry_all(batch)
        payloads = [one.payload if isinstance(one, Delivery) else type(one) for one in found]
        assert payloads == [b"client-00", EnvelopeError] * 2
    assert len([*(folder / INBOX).glob("*.envelope")]) == 2
    assert Plain().carry_all(batch)[3] == (b"client-01", 9, None)


def test_a_batch_waits_for_the_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"client-{index:02d}" for index in range(20)]
    folder = tmp_path / "parties"
    transport = Sealed(KeyRing(names, folder), RUN, folder)
    assert transport.inbox is not None
    waits: list[object] = []
    monkeypatch.setattr("fedvtc_edge.storage.atomic._sync_file_system", waits.append)
    monkeypatch.setattr("os.fsync", waits.append)
    transport.carry_all([(context(0, name), b"payload") for name in names])
    assert len(waits) == 2  # envelopes, then the journal


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
