"""The inbox: acknowledged means stored, once, also across ``kill -9``."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.errors import EnvelopeError, ReplayError, RunError
from fedvtc_edge.sealing import Identity, Inbox, Receipt, TrustList, seal
from fedvtc_edge.wire.context import Context

RUN = "00112233445566778899aabbccddeeff"
PAYLOAD = b"statistics"


@pytest.fixture
def cast(quick_cast: Any) -> Any:
    """In round 0, where an inbox starts."""
    context = dataclasses.replace(quick_cast.context, round=0)
    return dataclasses.replace(quick_cast, context=context)


@pytest.fixture
def inbox(cast: Any, tmp_path: Path) -> Inbox:
    return opened(cast, tmp_path)


def opened(cast: Any, tmp_path: Path, **changed: Any) -> Inbox:
    words = {"run": RUN, "recipient": cast.server, "trusted": cast.trusted}
    return Inbox(tmp_path / "inbox", **(words | changed))


def sealed(cast: Any, payload: bytes = PAYLOAD, **changed: Any) -> bytes:
    words = {"recipient": cast.server.public, "sender": cast.a, "context": cast.context}
    return seal(payload, **(words | changed))


def stored(inbox: Inbox) -> set[str]:
    return {path.name for path in inbox.folder.iterdir()} - {"journal"}


def name_of(envelope: bytes) -> str:
    return hashlib.sha256(envelope).hexdigest() + ".envelope"


# ---------------------------------------------------------------- what is received


def test_received_once(inbox: Inbox, cast: Any) -> None:
    envelope = sealed(cast)
    assert inbox.receive(cast.context, envelope) == Receipt(PAYLOAD, new=True)
    assert inbox.receive(cast.context, envelope) == Receipt(PAYLOAD, new=False)
    with pytest.raises(ReplayError, match="another features of client-a counts"):
        inbox.receive(cast.context, sealed(cast))
    assert stored(inbox) == {name_of(envelope)}
    assert list(inbox.uploads()) == [(cast.context, PAYLOAD)]
    file = inbox.folder / name_of(envelope)
    assert file.read_bytes() == envelope
    assert os.name != "posix" or stat.S_IMODE(file.stat().st_mode) == 0o600


def test_after_a_restart(inbox: Inbox, cast: Any, tmp_path: Path) -> None:
    other = dataclasses.replace(cast.context, sender="client-b", kind="decoder")
    first, second = sealed(cast), sealed(cast, b"paint", sender=cast.b, context=other)
    inbox.receive(other, second)
    inbox.receive(cast.context, first)
    again = opened(cast, tmp_path)
    assert list(again.uploads()) == [(cast.context, PAYLOAD), (other, b"paint")]
    assert not again.receive(cast.context, first).new
    with pytest.raises(ReplayError):
        again.receive(cast.context, sealed(cast))


def test_a_closed_round_takes_nothing_and_keeps_nothing(
    inbox: Inbox, cast: Any, tmp_path: Path
) -> None:
    envelope = sealed(cast)
    inbox.receive(cast.context, envelope)
    inbox.close(0)
    assert (stored(inbox), list(inbox.uploads()), inbox.round) == (set(), [], 1)
    for box in (inbox, opened(cast, tmp_path)):
        with pytest.raises(ReplayError, match="open is round 1"):
            box.receive(cast.context, envelope)
    later = dataclasses.replace(cast.context, round=1)
    with pytest.raises(EnvelopeError, match="cannot be opened"):  # replayed into the next round
        inbox.receive(later, envelope)
    assert inbox.receive(later, sealed(cast, context=later)).new


def test_nothing_is_stored_before_it_is_believed(inbox: Inbox, cast: Any) -> None:
    journal = (inbox.folder / "journal").read_bytes()
    stranger = dataclasses.replace(cast.context, sender="stranger")
    hostile = [
        (cast.context, b""),
        (cast.context, b"garbage" * 1000),
        (cast.context, sealed(cast)[:-1]),
        (cast.context, sealed(cast, sender=cast.b)),
        (cast.context, sealed(cast, sender=cast.stranger)),
        (stranger, sealed(cast, sender=cast.stranger, context=stranger)),
        (dataclasses.replace(cast.context, run="0" * 32), sealed(cast)),
        (dataclasses.replace(cast.context, round=1), sealed(cast)),
    ]
    future = dataclasses.replace(cast.context, round=9)
    hostile.append((future, sealed(cast, context=future)))
    for context, envelope in hostile:
        with pytest.raises(EnvelopeError):
            inbox.receive(context, envelope)
    assert stored(inbox) == set()
    assert (inbox.folder / "journal").read_bytes() == journal
    assert inbox.receive(cast.context, sealed(cast)).new


def test_only_what_is_collected(cast: Any, tmp_path: Path) -> None:
    inbox = opened(cast, tmp_path, kinds=["features"])
    odd = dataclasses.replace(cast.context, kind="novel")
    with pytest.raises(EnvelopeError, match="novel is not collected"):
        inbox.receive(odd, sealed(cast, context=odd))
    assert stored(inbox) == set()
    assert inbox.receive(cast.context, sealed(cast)).new


def test_what_a_check_refuses_may_be_sent_better(inbox: Inbox, cast: Any) -> None:
    def check(payload: bytes) -> None:
        if payload != PAYLOAD:
            raise ValueError(payload)

    with pytest.raises(ValueError, match="rubbish"):
        inbox.receive(cast.context, sealed(cast, b"rubbish"), check=check)
    assert stored(inbox) == set()
    assert inbox.receive(cast.context, sealed(cast), check=check).new


def test_a_key_is_replaced_within_a_round(inbox: Inbox, cast: Any, tmp_path: Path) -> None:
    fresh = Identity.generate("x25519")
    other = dataclasses.replace(cast.context, sender="client-b")
    old = sealed(cast)
    assert inbox.receive(cast.context, old).new
    inbox.recipient = [fresh, cast.server]
    late = dataclasses.replace(cast.context, kind="decoder")
    assert inbox.receive(other, sealed(cast, sender=cast.b, context=other, recipient=fresh.public))
    assert inbox.receive(late, sealed(cast, context=late)).new  # not yet told of the new key
    assert len(list(inbox.uploads())) == 3
    inbox.close(0)
    inbox.recipient = fresh
    following = dataclasses.replace(cast.context, round=1)
    with pytest.raises(EnvelopeError, match="which is not ours"):
        inbox.receive(following, sealed(cast, context=following))
    again = opened(cast, tmp_path, recipient=fresh)
    assert again.receive(following, sealed(cast, context=following, recipient=fresh.public)).new


def test_a_retired_key_is_missed(inbox: Inbox, cast: Any) -> None:
    """Dropped within the round, it leaves envelopes that count and cannot be read."""
    inbox.receive(cast.context, sealed(cast))
    inbox.recipient = Identity.generate("x25519")
    with pytest.raises(EnvelopeError, match="which is not ours"):
        list(inbox.uploads())


def test_the_revoked_are_left_out(inbox: Inbox, cast: Any) -> None:
    inbox.receive(cast.context, sealed(cast))
    cast.trusted.revoke("client-a")
    assert list(inbox.uploads()) == []
    with pytest.raises(EnvelopeError, match="was revoked"):
        inbox.receive(dataclasses.replace(cast.context, kind="decoder"), sealed(cast))


def test_what_something_followed_from_is_found_though_its_sender_was_revoked(
    inbox: Inbox, cast: Any
) -> None:
    inbox.receive(cast.context, sealed(cast))
    found = inbox.find(cast.context)
    assert found is not None
    cast.trusted.revoke("client-a")
    assert inbox.find(cast.context) is None
    assert inbox.find(cast.context, counted=True) == found


def test_threads_share_it(inbox: Inbox, cast: Any) -> None:
    envelopes = [sealed(cast, bytes([number])) for number in range(8)]
    news: list[bool] = []

    def send(envelope: bytes) -> None:
        try:
            news.append(inbox.receive(cast.context, envelope).new)
        except ReplayError:
            news.append(False)

    threads = [threading.Thread(target=send, args=(e,)) for e in envelopes * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(news) == [False] * 15 + [True]
    assert len(stored(inbox)) == 1


# ---------------------------------------------------------------- the disk


def test_a_full_disk_acknowledges_nothing(
    inbox: Inbox, cast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the flushes fails: the envelope's, its folder's, the journal's."""
    real, envelope = os.fsync, sealed(cast)
    for allowed in range(3):
        left = [allowed]

        def fsync(descriptor: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fsync)
            with pytest.raises(RunError, match="No space left"):
                inbox.receive(cast.context, envelope)
        assert list(inbox.uploads()) == []
        assert list(opened(cast, tmp_path).uploads()) == []
    assert inbox.receive(cast.context, envelope).new
    assert list(opened(cast, tmp_path).uploads()) == [(cast.context, PAYLOAD)]


def test_what_nobody_was_told_of_is_swept(inbox: Inbox, cast: Any, tmp_path: Path) -> None:
    envelope = sealed(cast)
    inbox.receive(cast.context, envelope)
    leftovers = [
        name_of(b"orphan"),
        f".{name_of(b'orphan')}.abc123",
        f".{name_of(envelope)}.abc123",
        ".journal.abc123",
    ]
    for name in [*leftovers, "notes.txt"]:
        (inbox.folder / name).write_bytes(b"half")
    assert stored(opened(cast, tmp_path)) == {name_of(envelope), "notes.txt"}


@pytest.mark.parametrize("damage", ["missing", "changed", "shorter", "huge", "folder"])
def test_a_lost_envelope_is_not_passed_over(
    inbox: Inbox, cast: Any, tmp_path: Path, damage: str
) -> None:
    envelope = sealed(cast)
    inbox.receive(cast.context, envelope)
    path = inbox.folder / name_of(envelope)
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "huge":
        with path.open("wb") as file:
            file.truncate(2**34)
    elif damage != "missing":
        path.write_bytes(envelope[:-1] + (b"\0\0" if damage == "changed" else b""))
    for read in (lambda: opened(cast, tmp_path), lambda: list(inbox.uploads())):
        with pytest.raises(RunError, match="is not the envelope that was acknowledged") as caught:
            read()
        assert caught.value.hint


def test_where_no_inbox_can_be(cast: Any, tmp_path: Path) -> None:
    (tmp_path / "inbox").write_text("a file")
    with pytest.raises(RunError, match="cannot write"):
        opened(cast, tmp_path)


def test_another_runs_inbox(inbox: Inbox, cast: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not say what run 0000"):
        opened(cast, tmp_path, run="0" * 32)


# ---------------------------------------------------------------- kill -9

SERVER = """
import json, os, sys
from pathlib import Path
from fedvtc_edge.wire.context import Context
from fedvtc_edge.sealing import Identity, Inbox, TrustList

folder = Path(sys.argv[1])
run = sys.argv[2]
inbox = Inbox(
    folder / "inbox",
    run=run,
    recipient=Identity.load(folder / "server"),
    trusted=TrustList.load(folder / "list.json"),
)
for line in sys.stdin:
    sender, envelope = json.loads(line)
    new = inbox.receive(Context(run, 0, sender, "features"), bytes.fromhex(envelope)).new
    os.write(1, (json.dumps([sender, new]) + "\\n").encode())
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_killed_at_any_moment(made_of: Callable[[str, str], Identity], tmp_path: Path) -> None:
    """Whatever was acknowledged is there once, the rest at most once; then all retry."""
    draw = random.Random(20)
    server = made_of("server", "x25519")
    server.save(tmp_path / "server")
    trusted, lines, truth = TrustList(), [], {}

    for number in range(60):
        name = f"client-{number:02}"
        client = made_of(name, "x25519")
        trusted.add(name, client.public)
        payload = f"statistics of {name}".encode()
        context = Context(RUN, 0, name, "features")
        envelope = seal(payload, recipient=server.public, sender=client, context=context)
        lines.append((json.dumps([name, envelope.hex()]) + "\n").encode())
        truth[name] = payload
    trusted.save(tmp_path / "list.json")

    acknowledged: set[str] = set()
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(tmp_path), RUN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        draw.shuffle(lines)
        process.stdin.write(b"".join(lines))
        process.stdin.flush()
        answers = [process.stdout.readline() for _ in range(draw.randrange(1, 25))]
        time.sleep(draw.uniform(0, 0.004))  # within a write, a flush, a rename
        process.send_signal(signal.SIGKILL)
        process.stdin.close()
        answers += process.stdout.readlines()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        for answer in answers:
            if answer.endswith(b"\n"):
                name, new = json.loads(answer)
                assert not (new and name in acknowledged)  # never counted twice
                acknowledged.add(name)
        inbox = Inbox(tmp_path / "inbox", run=RUN, recipient=server, trusted=trusted)
        found = [(context.sender, payload) for context, payload in inbox.uploads()]
        assert len(found) == len(dict(found))
        assert acknowledged <= set(dict(found)) <= set(truth)
        assert all(truth[sender] == payload for sender, payload in found)
        assert len(stored(inbox)) == len(found)

    inbox = Inbox(tmp_path / "inbox", run=RUN, recipient=server, trusted=trusted)
    for line in lines:
        name, envelope = json.loads(line)
        receipt = inbox.receive(Context(RUN, 0, name, "features"), bytes.fromhex(envelope))
        assert not (receipt.new and name in acknowledged)
    assert {context.sender: payload for context, payload in inbox.uploads()} == truth
