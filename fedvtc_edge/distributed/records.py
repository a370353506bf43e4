"""Flat records of named scalars as untrusted bytes: each field's type and size before its use."""

from __future__ import annotations

from collections.abc import Mapping

from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.sealing import MAX_ENVELOPE_BYTES

Scalar = int | float | str | bytes | bool
Record = Mapping[str, Scalar]

PROTOCOL = 1
"""Changes with whatever a client of the other version would misunderstand."""

_LARGEST_TEXT = 1_000_000


class OrderError(FedVTCError):
    """An order that cannot be followed, or an answer that cannot be read."""


def check_protocol(record: Record, there: str, here: str) -> None:
    """Refuse a record of another protocol than :data:`PROTOCOL`.

    Args:
        record: As it came.
        there: What the other side is, in words.
        here: What this side is.

    Raises:
        OrderError: Another protocol.
    """
    protocol = record.get("protocol")
    if type(protocol) is not int or protocol != PROTOCOL:
        raise OrderError(
            f"the {there} speaks protocol {protocol!r:.20}, this {here} {PROTOCOL}",
            hint="install the same version of fedvtc-edge on both sides",
        )


def field_of(record: Record, name: str, kind: type) -> object:
    """A field of exactly the type ``kind``.

    Raises:
        OrderError: Missing, or of another type.
    """
    value = record.get(name)
    if type(value) is not kind:
        raise OrderError(
            f"{name}: {type(value).__name__}, expected {kind.__name__}",
            hint="the message is damaged, or not of fedvtc-edge",
        )
    return value


def number_of(record: Record, name: str) -> int:
    """A field that counts: an int in [0, 2**31).

    Raises:
        OrderError: Missing, of another type or out of range.
    """
    value = field_of(record, name, int)
    assert isinstance(value, int)
    if not 0 <= value < 2**31:
        raise OrderError(f"{name} {value}, expected 0 or more", hint="the message is damaged")
    return value


def text_of(record: Record, name: str) -> str:
    """A field of text: valid Unicode, a million characters at most.

    Raises:
        OrderError: Missing, of another type, too long or no Unicode.
    """
    value = field_of(record, name, str)
    assert isinstance(value, str)
    if len(value) > _LARGEST_TEXT:
        raise OrderError(
            f"{name}: {len(value)} characters, expected {_LARGEST_TEXT} at most",
            hint="the message is damaged",
        )
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair, which would fail wherever it is written
        raise OrderError(f"{name} is no Unicode", hint="the message is damaged") from None
    return value


def bytes_of(record: Record, name: str) -> bytes:
    """A field of bytes, as many as an envelope may have at most.

    Raises:
        OrderError: Missing, of another type or too long.
    """
    value = field_of(record, name, bytes)
    assert isinstance(value, bytes)
    if len(value) > MAX_ENVELOPE_BYTES:
        raise OrderError(
            f"{name}: {len(value)} bytes, expected {MAX_ENVELOPE_BYTES} at most",
            hint="the message is damaged",
        )
    return value
