"""Envelopes: opened by the right party in the right place, and refused byte by byte elsewhere."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge import sealing
from fedvtc_edge.errors import EnvelopeError, FedVTCError, GateError
from fedvtc_edge.sealing import Identity, PublicIdentity, TrustList, overhead, seal, signing, unseal
from fedvtc_edge.sealing import envelope as module
from fedvtc_edge.wire.context import Context

PAYLOAD = b"statistics of class 7"
HEADER_BYTES = 14
OVERHEAD = {"hybrid": 1214, "x25519": 126}
VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text("utf-8"))


def sealed(cast: Any, payload: bytes = PAYLOAD, **changed: Any) -> bytes:
    words = {"recipient": cast.server.public, "sender": cast.a, "context": cast.context}
    return seal(payload, **(words | changed))


def opened(cast: Any, envelope: bytes, **changed: Any) -> bytes:
    words = {"recipient": cast.server, "trusted": cast.trusted, "context": cast.context}
    return unseal(envelope, **(words | changed))


def refused(
    cast: Any, envelope: bytes, match: str | None = "cannot be opened", **changed: Any
) -> None:
    with pytest.raises(EnvelopeError, match=match) as caught:
        opened(cast, envelope, **changed)
    assert type(caught.value) is EnvelopeError
    assert caught.value.hint
    assert "\n" not in f"{caught.value}{caught.value.hint}"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def hand_made(cast: Any, signed: bytes, sender: PublicIdentity | None = None) -> bytes:
    """What an attacker seals who knows all that is public: ``signed`` is up to them."""
    public = cast.server.public
    header = module._header(public)
    info = module.hpke_info(header, cast.context, sender or cast.a.public, public)
    return header + public.scheme.hpke.encrypt(signed, public.sealing_key, info)


# ---------------------------------------------------------------- there and back


@hypothesis_settings(deadline=None, max_examples=30)
@given(
    payload=st.binary(max_size=3000),
    run=st.from_regex(r"\A[0-9a-f]{32}\Z"),
    number=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["anchor", "features", "decoder"]),
    suites=st.tuples(*[st.sampled_from(["hybrid", "x25519"])] * 2),
)
def test_there_and_back(
    casts: Any, payload: bytes, run: str, number: int, kind: str, suites: tuple[str, str]
) -> None:
    """Also between parties of different suites: the recipient's seals."""
    server, client = casts[suites[0]].server, casts[suites[1]].a
    context = Context(run, number, "client-a", kind)
    envelope = seal(payload, recipient=server.public, sender=client, context=context)
    assert len(envelope) == len(payload) + overhead(server.public)
    assert payload not in envelope or len(payload) < 4
    trusted = casts[suites[1]].trusted
    assert unseal(envelope, recipient=server, trusted=trusted, context=context) == payload


def test_the_size_is_the_payloads_and_the_suites_alone(cast: Any) -> None:
    suite = cast.server.public.suite
    assert overhead(cast.server.public) == OVERHEAD[suite] <= 1300
    for size in (0, 1, 1000):
        for context in (cast.context, Context("0" * 32, 0, "b", "x")):
            envelope = sealed(cast, bytes(size), context=context)
            assert len(envelope) == size + OVERHEAD[suite]


def test_no_two_envelopes_are_equal(cast: Any) -> None:
    assert len({sealed(cast)[HEADER_BYTES:] for _ in range(5)}) == 5


def test_the_clear_part_names_the_recipient_alone(cast: Any) -> None:
    envelope = sealed(cast)
    assert envelope[:4] == b"FVTE"
    assert envelope[4:6] == bytes([1, {"hybrid": 1, "x25519": 2}[cast.server.public.suite]])
    assert envelope[6:HEADER_BYTES] == cast.server.public.digest[:8]
    for secret in (cast.a.public.digest[:8], cast.a.public.verifying, b"client-a", b"features"):
        assert secret not in envelope


# ---------------------------------------------------------------- refused


def test_every_changed_byte_is_refused(cast: Any) -> None:
    envelope = sealed(cast)
    for place in range(len(envelope)):
        for mask in (1, 0x80, 0xFF):
            changed = bytearray(envelope)
            changed[place] ^= mask
            refused(cast, bytes(changed), None if place < HEADER_BYTES else "cannot be opened")
    assert opened(cast, envelope) == PAYLOAD


def test_every_shorter_or_longer_one_is_refused(cast: Any) -> None:
    envelope = sealed(cast)
    for size in range(len(envelope)):
        refused(cast, envelope[:size], None if size < HEADER_BYTES else "cannot be opened")
    for tail in (b"\0", b"\xff" * 100, envelope):
        refused(cast, envelope + tail)
    refused(cast, b"\0" + envelope, "no envelope")


@hypothesis_settings(deadline=None, max_examples=200)
@given(
    data=st.binary(max_size=2000),
    head=st.sampled_from(["", "magic", "header"]),
    suite=st.sampled_from(["hybrid", "x25519"]),
)
def test_hostile_bytes_raise_nothing_else(casts: Any, data: bytes, head: str, suite: str) -> None:
    cast = casts[suite]
    if head:
        data = module._header(cast.server.public)[: 4 if head == "magic" else None] + data
    refused(cast, data, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [("run", "f" * 32), ("round", 2), ("round", 4), ("sender", "client-b"), ("kind", "decoder")],
)
def test_any_other_place_is_refused(cast: Any, key: str, value: Any) -> None:
    other = dataclasses.replace(cast.context, **{key: value})
    refused(cast, sealed(cast), context=other)
    refused(cast, sealed(cast, context=other))


def test_another_sender_is_refused(cast: Any) -> None:
    """A trusted client speaks for itself alone, a stranger for nobody."""
    refused(cast, sealed(cast, sender=cast.b))
    refused(cast, sealed(cast, sender=cast.stranger))


def test_another_recipient_cannot_open_it(cast: Any) -> None:
    refused(cast, sealed(cast), "which is not ours", recipient=cast.stranger)
    refused(cast, sealed(cast, recipient=cast.stranger.public), "which is not ours")
    refused(cast, sealed(cast), "which is not ours", recipient=[])


def message_of(cast: Any, payload: bytes = PAYLOAD, **changed: Any) -> bytes:
    public = cast.server.public
    parts = {
        "header": module._header(public),
        "context": cast.context,
        "sender": cast.a.public,
        "recipient": public,
        "payload": payload,
    } | changed
    return module.signed_message(**parts)


def test_hand_made_ones_are_like_real_ones(cast: Any) -> None:
    """The forgeries below fail for what they change and nothing else."""
    signature = signing.sign(cast.a.signing_key, message_of(cast))
    assert opened(cast, hand_made(cast, signature + PAYLOAD)) == PAYLOAD


def test_unsigned_ones_are_refused(cast: Any) -> None:
    """HPKE itself takes them: everyone knows the recipient's public key."""
    for signed in (b"", PAYLOAD, b"\0" * 64, b"\0" * 64 + PAYLOAD, b"\0" * 63):
        refused(cast, hand_made(cast, signed))


def test_signatures_of_others_and_of_other_things_are_refused(cast: Any) -> None:
    header = module._header(cast.server.public)
    messages = [
        PAYLOAD,
        message_of(cast)[:-1],
        message_of(cast, payload=PAYLOAD + b"\0"),
        message_of(cast, context=dataclasses.replace(cast.context, round=2)),
        message_of(cast, recipient=cast.stranger.public),
        message_of(cast, sender=cast.b.public),
        message_of(cast, header=bytes([header[0] ^ 1]) + header[1:]),
    ]
    for message in messages:
        signature = signing.sign(cast.a.signing_key, message)
        refused(cast, hand_made(cast, signature + PAYLOAD))
    for key in (cast.b.signing_key, cast.stranger.signing_key, cast.server.signing_key):
        refused(cast, hand_made(cast, signing.sign(key, message_of(cast)) + PAYLOAD))


def test_who_opens_it_cannot_pass_it_on(cast: Any) -> None:
    """A server re-seals what it received to another server: the signature names the first."""
    public = cast.stranger.public
    signature = signing.sign(cast.a.signing_key, message_of(cast))
    header = module._header(public)
    info = module.hpke_info(header, cast.context, cast.a.public, public)
    passed = header + public.scheme.hpke.encrypt(signature + PAYLOAD, public.sealing_key, info)
    refused(cast, passed, recipient=cast.stranger)


def test_no_suite_can_be_asked_for(casts: Any, made_of: Callable[..., Identity]) -> None:
    """Even two identities that share their X25519 key do not open each other's envelopes."""
    hybrid, plain = made_of("server", "hybrid"), made_of("server", "x25519")
    assert hybrid.public.sealing[:32] == plain.public.sealing
    cast = casts["hybrid"]
    envelope = sealed(cast, recipient=plain.public)
    refused(cast, envelope, "which is not ours", recipient=hybrid)
    refused(cast, sealed(cast), "which is not ours", recipient=plain)
    header = module._header(hybrid.public)
    refused(cast, header[:5] + b"\2" + header[6:] + envelope[14:], "which is not ours")
    refused(cast, header + envelope[14:])
    refused(cast, header + envelope[14:] + bytes(2000))


def test_unknown_and_revoked_senders_are_refused(cast: Any) -> None:
    envelope = sealed(cast)
    refused(cast, envelope, "not in the trust list", trusted=TrustList())
    cast.trusted.revoke("client-a")
    refused(cast, envelope, "client-a was revoked")


# ---------------------------------------------------------------- bounds


def test_a_huge_envelope_is_refused_unread(quick_cast: Any, monkeypatch: Any) -> None:
    limit = 500
    monkeypatch.setattr(module, "MAX_ENVELOPE_BYTES", limit)
    largest = bytes(limit - overhead(quick_cast.server.public))
    envelope = sealed(quick_cast, largest)
    assert len(envelope) == limit
    assert opened(quick_cast, envelope) == largest
    with pytest.raises(EnvelopeError, match="501 bytes, expected at most 500"):
        sealed(quick_cast, largest + b"\0")
    monkeypatch.setattr(module, "hpke_info", None)  # nothing is decrypted any more
    refused(quick_cast, envelope + b"\0", "501 bytes, expected at most 500")


def test_errors_have_their_place() -> None:
    assert issubclass(EnvelopeError, GateError)
    assert issubclass(EnvelopeError, FedVTCError)
    assert sealing.MAX_ENVELOPE_BYTES == 64 * 2**20


def test_another_version_says_so(quick_cast: Any) -> None:
    envelope = sealed(quick_cast)
    refused(quick_cast, envelope[:4] + b"\2" + envelope[5:], "version 2, expected 1")


# ---------------------------------------------------------------- a key is replaced


def test_two_keys_are_open_while_one_replaces_the_other(cast: Any) -> None:
    fresh = Identity.generate(cast.server.public.suite)
    old, new = sealed(cast), sealed(cast, recipient=fresh.public)
    for ring in ([fresh, cast.server], (cast.server, fresh)):
        assert opened(cast, old, recipient=ring) == PAYLOAD
        assert opened(cast, new, recipient=ring) == PAYLOAD
    with pytest.raises(EnvelopeError, match="which is not ours") as caught:
        opened(cast, old, recipient=[fresh])
    assert "retired" in caught.value.hint
    assert opened(cast, new, recipient=[fresh]) == PAYLOAD


# ---------------------------------------------------------------- golden vectors


@pytest.mark.parametrize("suite", ["hybrid", "x25519"])
def test_golden_bytes(casts: Any, suite: str) -> None:
    """A change here is a new version of the format: see docs/envelope-format.md."""
    cast, vector = casts[suite], VECTORS[suite]
    payload = bytes.fromhex(vector["payload"])
    header = module._header(cast.server.public)
    info = module.hpke_info(header, cast.context, cast.a.public, cast.server.public)
    message = message_of(cast, payload=payload)
    envelope = base64.b64decode(vector["envelope"])
    assert cast.server.public.fingerprint == vector["recipient"]
    assert cast.a.public.fingerprint == vector["sender"]
    assert header.hex() == vector["header"]
    assert info.hex() == vector["info"]
    assert message.hex() == vector["signed"]
    assert signing.sign(cast.a.signing_key, message).hex() == vector["signature"]
    assert envelope.startswith(header)
    assert opened(cast, envelope) == payload


def test_the_layout_in_other_words(cast: Any) -> None:
    """A slow twin of the two strings, written from the page."""
    server, a = cast.server.public, cast.a.public
    number = {"hybrid": 1, "x25519": 2}[server.suite]
    header = b"FVTE" + bytes([1, number]) + server.digest[:8]
    context = cast.context.to_bytes()
    info = b"fedvtc-edge envelope v1: info\0" + header + context + a.digest + server.digest
    assert module.hpke_info(module._header(server), cast.context, a, server) == info
    message = b"fedvtc-edge envelope v1: signature\0"
    for part in (header, context, a.digest, server.digest, hashlib.sha256(PAYLOAD).digest()):
        message += struct.pack(">Q", len(part)) + part
    assert message_of(cast) == message
