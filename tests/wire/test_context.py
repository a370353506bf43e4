"""One context, one string of bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.wire.context import CONTEXT_BYTES, Context, ContextError

RUN = "00112233445566778899aabbccddeeff"
GOOD: dict[str, Any] = {"run": RUN, "round": 3, "sender": "client-07", "kind": "anchor"}

contexts = st.builds(
    Context,
    run=st.from_regex(r"\A[0-9a-f]{32}\Z"),
    round=st.integers(0, 2**32 - 1),
    sender=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
    kind=st.from_regex(r"\A[a-z][a-z-]{0,15}\Z"),
)


def test_golden_bytes() -> None:
    names = b"client-07".ljust(64, b"\0") + b"anchor".ljust(16, b"\0")
    assert Context(**GOOD).to_bytes() == bytes.fromhex(RUN) + b"\0\0\0\3" + names


@given(contexts)
def test_there_and_back(context: Context) -> None:
    data = context.to_bytes()
    assert len(data) == CONTEXT_BYTES
    assert Context.from_bytes(data) == context


@given(contexts, contexts)
def test_no_two_are_alike(one: Context, other: Context) -> None:
    assert (one == other) == (one.to_bytes() == other.to_bytes())


@given(st.binary(max_size=2 * CONTEXT_BYTES) | st.binary(min_size=100, max_size=100))
def test_any_bytes_are_refused_or_canonical(data: bytes) -> None:
    try:
        context = Context.from_bytes(data)
    except ContextError:
        return
    assert context.to_bytes() == data


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run", RUN[:-1]),
        ("run", RUN.upper()),
        ("run", RUN + "\n"),
        ("run", 5),
        ("round", -1),
        ("round", 2**32),
        ("round", 1.0),
        ("round", True),
        ("sender", ""),
        ("sender", "a" * 65),
        ("sender", "../x"),
        ("sender", ".hidden"),
        ("sender", "a\0"),
        ("sender", "é"),
        ("kind", ""),
        ("kind", "a" * 17),
        ("kind", "Anchor"),
    ],
)
def test_what_no_upload_has(key: str, value: Any) -> None:
    with pytest.raises(ContextError, match="kind"):
        Context(**{**GOOD, key: value})
