"""What travels: read back as it was written, or refused by a typed error."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvtc_edge.distributed.messages import (
    PROTOCOL,
    REPORT,
    MissingInput,
    RequestError,
    Status,
    TaskReply,
    TaskRequest,
    digest_of,
)
from fedvtc_edge.errors import ConfigError, DataError, FedVTCError, KeyFileError, RunError
from fedvtc_edge.masking import MaskingStep
from fedvtc_edge.transport.masked_sum import mask_kind
from fedvtc_edge.wire.context import Context

RUN = "0123456789abcdef" * 2
KINDS = st.from_regex(r"[a-z][a-z-]{0,15}", fullmatch=True)
TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
NUMBERS = st.integers(0, 2**31 - 1)
CONTEXTS = st.builds(
    Context,
    st.just(RUN),
    st.integers(0, 2**32 - 1),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    KINDS,
)


@st.composite
def requests(draw: st.DrawFn) -> TaskRequest:
    data = draw(st.dictionaries(KINDS, st.binary(max_size=20), max_size=8))
    sent = draw(st.sets(st.sampled_from(sorted(data)))) if data else set()
    return TaskRequest(
        draw(CONTEXTS),
        draw(NUMBERS),
        draw(NUMBERS),
        draw(st.binary(max_size=20)),
        {kind: digest_of(value) for kind, value in data.items()},
        {kind: data[kind] for kind in sent},
        draw(TEXT),
        draw(TEXT),
        draw(TEXT),
        draw(st.booleans()),
    )


def request(**changes: Any) -> TaskRequest:
    published = {"anchor": b"statistics", "test-set": b"images"}
    made = TaskRequest(
        Context(RUN, 3, "client-00", "features"),
        2,
        1,
        b"letter",
        {kind: digest_of(data) for kind, data in published.items()},
        published,
        "settings",
        "terms",
        "nonce",
    )
    return replace(made, **changes)


@settings(max_examples=50)
@given(requests())
def test_an_order_is_read_as_it_was_written(made: TaskRequest) -> None:
    read = TaskRequest.from_record(made.to_record())
    assert read == made
    assert read.digest == made.digest


@settings(max_examples=30)
@given(requests(), requests())
def test_orders_that_differ_have_other_digests(one: TaskRequest, other: TaskRequest) -> None:
    same = replace(one, published={}) == replace(other, published={})
    assert (one.digest == other.digest) is same


def test_a_digest_is_of_everything_but_what_is_sent_along() -> None:
    made = request()
    for same in ({}, {"anchor": b"statistics"}):
        assert request(published=same).digest == made.digest
    changes: list[dict[str, Any]] = [
        {"context": replace(made.context, round=4)},
        {"context": replace(made.context, run=RUN[::-1])},
        {"context": replace(made.context, sender="client-01")},
        {"context": replace(made.context, kind=REPORT)},
        {"phase": 3},
        {"step": 2},
        {"phase": 1, "step": 2},
        {"message": b"other"},
        {"message": b""},
        {"digests": {}},
        {"digests": {"anchor": made.digests["anchor"]}},
        {"digests": {**made.digests, "anchor": digest_of(b"other")}},
        {"settings": "settingsterms", "terms": ""},
        {"terms": "other"},
        {"nonce": ""},
        {"last": True},
    ]
    digests = {request(**change).digest for change in changes}
    assert len(digests | {made.digest}) == len(changes) + 1


DAMAGE: dict[str, tuple[Any, ...]] = {
    "context": (b"", b"\n" * 100, bytes(100), "text", 1),
    "phase": (-1, 2**31, 1.0, True, "1"),
    "step": (-1, 2**31, 1.0, True, "1"),
    "letter": ("text", 1),
    "digests": (
        b"bytes",
        "anchor",
        "anchor short",
        f"anchor  {'a' * 64}",
        f"Anchor {'a' * 64}",
        f"anchor {'A' * 64}",
        f"anchor {'a' * 64}\n",
        f"anchor {'a' * 64}\nanchor {'b' * 64}",
        f"a=b {'a' * 64}",
        "\n".join(f"{c} {'a' * 64}" for c in "abcdefghi"),
        "\n" * 100_000,
    ),
    "settings": (b"bytes", "x" * 1_000_001, "half a \ud800"),
    "terms": (b"bytes", "x" * 1_000_001, "half a \ud800"),
    "nonce": (7, "half a \ud800"),
    "last": (1, "true", b""),
    "published/anchor": (b"other", "statistics", 1),
    "published/unknown": (b"what no digest is of",),
    "published/": (b"",),
}


@pytest.mark.parametrize("field", DAMAGE)
def test_a_damaged_order_is_refused(field: str) -> None:
    record = request().to_record()
    for value in DAMAGE[field]:
        with pytest.raises(FedVTCError) as refused:
            TaskRequest.from_record({**record, field: value})
        assert refused.value.hint
        assert len(str(refused.value)) < 400
    if field in record and not field.startswith("published/"):
        with pytest.raises(FedVTCError):
            TaskRequest.from_record({key: value for key, value in record.items() if key != field})


@given(st.dictionaries(st.text(max_size=9), st.one_of(st.binary(), st.text(), st.integers())))
def test_no_record_does_more_than_be_refused(record: dict[str, Any]) -> None:
    for read in (TaskRequest.from_record, TaskReply.from_record):
        with pytest.raises(FedVTCError):
            read(record)
        with pytest.raises(FedVTCError):
            read({**record, "protocol": PROTOCOL, "context": b"no"})


def test_large_bytes_are_refused_before_they_are_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedvtc_edge.distributed.messages.MAX_ENVELOPE_BYTES", 150)
    record = request(published={}, digests={}).to_record()
    monkeypatch.setattr(hashlib, "sha256", None)
    for field in ("letter", "published/anchor"):
        with pytest.raises(RequestError, match="151 bytes, expected 150 at most"):
            TaskRequest.from_record({**record, field: b"x" * 151})


@pytest.mark.parametrize("spoken", [PROTOCOL + 1, 0, True, 1.0, "1", None])
def test_another_protocol_is_named_on_both_sides(spoken: object) -> None:
    for made, here in ((request().to_record(), "client"), (TaskReply("a").to_record(), "server")):
        record: dict[str, Any] = {**made, "protocol": spoken}
        read = TaskRequest.from_record if here == "client" else TaskReply.from_record
        with pytest.raises(RequestError) as refused:
            read(record)
        assert f"speaks protocol {spoken!r}, this {here} {PROTOCOL}" in str(refused.value)
        assert "same version" in refused.value.hint


def test_an_order_in_words() -> None:
    base = request().context
    assert request().words == "round 3, features"
    assert request(context=replace(base, round=0, kind="anchor")).words == "opening, anchor"
    assert request(context=replace(base, kind=REPORT)).words == "round 3, training"
    masked = mask_kind("features", MaskingStep.MASK)
    assert (
        request(context=replace(base, kind=masked)).words == "round 3, features, masked sum 3 of 5"
    )


@given(st.binary(max_size=9), TEXT, st.sampled_from(Status))
def test_an_answer_is_read_as_it_was_written(sealed: bytes, said: str, status: Status) -> None:
    read = TaskReply.from_record(TaskReply("client-00", sealed, said, status).to_record())
    assert (read.client, read.envelope, read.status) == ("client-00", sealed, status)
    assert len(read.problem) == len(said)
    assert read.problem.isprintable()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("client", (b"a", 1, "a" * 65, "a\x1b[2J", "a\nb", "\ud800")),
        ("envelope", ("text", 1, None)),
        ("problem", (b"bytes", 1, "x" * 1_000_001)),
        ("trouble", ("", 0, "angry", b"busy")[1:]),
    ],
)
def test_a_damaged_answer_is_refused(field: str, values: tuple[Any, ...]) -> None:
    record = TaskReply("client-00", b"sealed").to_record()
    for value in values:
        with pytest.raises(RequestError):
            TaskReply.from_record({**record, field: value})
    with pytest.raises(RequestError):
        TaskReply.from_record({key: value for key, value in record.items() if key != field})


def test_a_terminal_is_told_no_control_characters() -> None:
    record = TaskReply("client-00", problem="\x1b]0;owned\x07" + "x" * 999).to_record()
    said = TaskReply.from_record(record).problem
    assert len(said) == 300
    assert said.isprintable()


@pytest.mark.parametrize(
    ("error", "aloud"),
    [
        (RequestError("round 9 of 3 is asked for", hint="no"), True),
        (MissingInput("the client lacks anchor", hint="no"), True),
        (ConfigError("another version's key", hint="no"), True),
        (ConfigError("/home/me/settings.toml: no such file", hint="no"), False),
        (DataError("label 11 in patients.npz", hint="no"), False),
        (RunError("disk full", hint="no"), False),
        (KeyFileError("my.key is locked", hint="no"), False),
    ],
)
def test_a_refusal_tells_the_server_nothing_of_data_and_files(
    error: FedVTCError, aloud: bool
) -> None:
    here = TaskReply.refusal("client-00", error)
    there = TaskReply.from_record(here.to_record())
    assert there.status is Status.REFUSED
    assert here.problem == f"{error} (no)"
    assert (there.problem == here.problem) is aloud
    if not aloud:
        assert str(error) not in there.problem
        assert type(error).__name__ in there.problem
    openly = TaskReply.from_record(TaskReply.refusal("client-00", error, openly=True).to_record())
    assert openly.problem == here.problem
