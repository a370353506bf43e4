"""Messages between server and clients of several processes: task requests and replies.

Both travel as one flat record of named scalars, which any carrier can take; both are
untrusted where they arrive. An order asks for one *phase* of a round: for the work of a
step and what it uploads, for one of the five messages of a masked sum, or for the report
that ends a round.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fedvtc_edge.errors import ConfigError, FedVTCError, PrivacyError, TrustError
from fedvtc_edge.sealing import MAX_ENVELOPE_BYTES
from fedvtc_edge.transport.masked_sum import mask_step
from fedvtc_edge.wire.context import Context

# ---------------------------------------------------------------- section
# Flat records of named scalars as untrusted bytes: each field's type and size before its use.

Scalar = int | float | str | bytes | bool
Record = Mapping[str, Scalar]

PROTOCOL = 2
"""Changes with whatever a client of the other version would misunderstand."""

_LARGEST_TEXT = 1_000_000


class RequestError(FedVTCError):
    """An order that cannot be followed, or an answer that cannot be read."""


def check_protocol(record: Record, there: str, here: str) -> None:
    """Refuse a record of another protocol than :data:`PROTOCOL`.

    Args:
        there: What the other side is, in words.

    Raises:
        OrderError: Another protocol.
    """
    protocol = record.get("protocol")
    if type(protocol) is not int or protocol != PROTOCOL:
        raise RequestError(
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
        raise RequestError(
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
        raise RequestError(f"{name} {value}, expected 0 or more", hint="the message is damaged")
    return value


def text_of(record: Record, name: str) -> str:
    """A field of text: valid Unicode, a million characters at most.

    Raises:
        OrderError: Missing, of another type, too long or no Unicode.
    """
    value = field_of(record, name, str)
    assert isinstance(value, str)
    if len(value) > _LARGEST_TEXT:
        raise RequestError(
            f"{name}: {len(value)} characters, expected {_LARGEST_TEXT} at most",
            hint="the message is damaged",
        )
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair, which would fail wherever it is written
        raise RequestError(f"{name} is no Unicode", hint="the message is damaged") from None
    return value


def bytes_of(record: Record, name: str) -> bytes:
    """A field of bytes, as many as an envelope may have at most.

    Raises:
        OrderError: Missing, of another type or too long.
    """
    value = field_of(record, name, bytes)
    assert isinstance(value, bytes)
    if len(value) > MAX_ENVELOPE_BYTES:
        raise RequestError(
            f"{name}: {len(value)} bytes, expected {MAX_ENVELOPE_BYTES} at most",
            hint="the message is damaged",
        )
    return value


HELLO, REPORT, SHUTDOWN, DISMISSAL = "hello", "report", "farewell", "dismissal"
"""Kinds that are no uploads: who is there, how a round went, good-bye, and why not."""

_PUBLISHED = "published/"
_MOST_PUBLISHED = 8
_DIGEST = re.compile(r"([a-z][a-z-]{0,15}) ([0-9a-f]{64})")
_LONGEST_NAME = 64


class MissingInput(RequestError):  # noqa: N818  (it is asked for again, and no more)
    """An order that leaves out what the client has not got."""


class Status(StrEnum):
    """Why there is no envelope; ``AWAY`` is a carrier's word, that a node cannot be reached."""

    NONE = ""
    UNREACHABLE = "away"
    BUSY = "busy"
    MISSING_INPUT = "lacking"
    REFUSED = "refused"


@dataclass(frozen=True)
class TaskRequest:
    """One phase of one client's round.

    Args:
        context: Run, round, client and kind that the answer must be of; the sender of a
            hello's is the server, which does not know yet whom it asks, and of a dismissal's.
        phase: Number of the phase in its round, from 0.
        step: Number of the step in :meth:`~fedvtc_edge.federation.methods.Method.steps`.
        message: The server's message of a masked sum, or why it dismisses; empty elsewhere.
        digests: SHA-256 in hexadecimal of what is published by now, by kind.
        published: Of these, what the client may lack.
        settings: The run's configuration, TOML; with a hello alone.
        terms: Classes and shapes, JSON; with a hello alone.
        nonce: Comes back in the answer to a hello.
        number: Of the run, from which and the settings its name follows; with a hello alone.
        last: Whether nothing follows this phase in the run.
    """

    context: Context
    phase: int
    step: int
    message: bytes = b""
    digests: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, bytes] = field(default_factory=dict)
    settings: str = ""
    terms: str = ""
    nonce: str = ""
    last: bool = False
    number: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal of the request; the same when it is sent again.

        Without :attr:`published`, which a client that has it already is not sent.
        """
        hashed = hashlib.sha256(self.context.to_bytes())
        parts = [
            *(str(number) for number in (PROTOCOL, self.phase, self.step, int(self.last))),
            *(f"{kind}={self.digests[kind]}" for kind in sorted(self.digests)),
            hashlib.sha256(self.message).hexdigest(),
            *(self.settings, self.terms, self.nonce, self.number),
        ]
        for part in parts:
            hashed.update(len(part.encode()).to_bytes(8, "big") + part.encode())
        return hashed.hexdigest()

    @property
    def words(self) -> str:
        """The request in words, for a terminal."""
        number, kind = self.context.round, self.context.kind
        when = f"round {number}" if number else "opening"
        masked = mask_step(kind)
        if masked is not None:
            return f"{when}, {masked[0]}, masked sum {masked[1] + 1} of 5"
        return f"{when}, {'training' if kind == REPORT else kind}"

    def to_record(self) -> dict[str, Scalar]:
        """Record that travels."""
        record: dict[str, Scalar] = {
            "protocol": PROTOCOL,
            "context": self.context.to_bytes(),
            "phase": self.phase,
            "step": self.step,
            "letter": self.message,
            "digests": "\n".join(f"{k} {v}" for k, v in sorted(self.digests.items())),
            "settings": self.settings,
            "terms": self.terms,
            "nonce": self.nonce,
            "last": self.last,
            "number": self.number,
        }
        return record | {f"{_PUBLISHED}{kind}": data for kind, data in self.published.items()}

    @classmethod
    def from_record(cls, record: Record) -> TaskRequest:
        """Read what :meth:`to_record` wrote.

        Raises:
            OrderError: Another protocol, or a field that is missing, of another type or size.
            ContextError: A context that none can be.
        """
        check_protocol(record, "server", "client")
        digests = _digests(text_of(record, "digests"))
        published = {
            name.removeprefix(_PUBLISHED): bytes_of(record, name)
            for name in record
            if name.startswith(_PUBLISHED)
        }
        for kind, data in published.items():
            if hashlib.sha256(data).hexdigest() != digests.get(kind):
                raise RequestError(
                    f"what was published as {kind!r:.20} is not what its digest says",
                    hint="the order is damaged; the server sends it again",
                )
        return cls(
            Context.from_bytes(bytes_of(record, "context")),
            number_of(record, "phase"),
            number_of(record, "step"),
            bytes_of(record, "letter"),
            digests,
            published,
            text_of(record, "settings"),
            text_of(record, "terms"),
            text_of(record, "nonce"),
            field_of(record, "last", bool) is True,
            text_of(record, "number"),
        )


@dataclass(frozen=True)
class TaskReply:
    """Reply of a client: one envelope, or why there is none.

    Args:
        client: Who says so; whether it is, the envelope tells.
        envelope: Sealed to the server and bound to the order's context; empty with a problem.
        problem: One sentence of the client's: of one that was made here, all of it for this
            client's own terminal; of one that came, what the client told.
        status: What the server is to make of it.
        aloud: What of the problem travels; None is all of it.
    """

    client: str
    envelope: bytes = b""
    problem: str = ""
    status: Status = Status.NONE
    aloud: str | None = None

    @classmethod
    def refusal(cls, client: str, error: FedVTCError, *, openly: bool = False) -> TaskReply:
        """Why a client takes no part.

        What goes wrong with a client's data and files says something of them, if only
        where they lie. Unless it speaks openly, a server hears the whole sentence of what
        is about settings, orders and keys, and of anything else its kind.

        Args:
            client: Its id, or empty where even that is not known.
            openly: Whether all of it may travel.
        """
        problem, aloud = f"{error} ({error.hint})", None
        about_both = isinstance(error, (RequestError, ConfigError, PrivacyError, TrustError))
        if not openly and (os.sep in str(error) or not about_both):
            aloud = f"{type(error).__name__}: the client's own terminal says more"
        return cls(client, problem=problem, status=Status.REFUSED, aloud=aloud)

    def to_record(self) -> dict[str, Scalar]:
        """Record that travels."""
        return {
            "protocol": PROTOCOL,
            "client": self.client,
            "envelope": self.envelope,
            "problem": self.problem if self.aloud is None else self.aloud,
            "trouble": self.status.value,
        }

    @classmethod
    def from_record(cls, record: Record) -> TaskReply:
        """Read what :meth:`to_record` wrote.

        Raises:
            OrderError: Another protocol, or a field that is missing, of another type or size.
        """
        check_protocol(record, "client", "server")
        problem = "".join(c if c.isprintable() else " " for c in text_of(record, "problem")[:300])
        status = text_of(record, "trouble")
        if status not in set(Status):
            raise RequestError(f"trouble {status!r:.20}", hint="the message is damaged")
        client = text_of(record, "client")
        if len(client) > _LONGEST_NAME or not client.isprintable():
            raise RequestError(f"client {client!r:.80}", hint="the message is damaged")
        return cls(client, bytes_of(record, "envelope"), problem, Status(status))


def digest_of(data: bytes) -> str:
    """Digest by which a request names what was published."""
    return hashlib.sha256(data).hexdigest()


def _digests(text: str) -> dict[str, str]:
    lines = text.split("\n") if text else []
    found = [_DIGEST.fullmatch(line) for line in lines[: _MOST_PUBLISHED + 1]]
    digests = {match[1]: match[2] for match in found if match is not None}
    # One line each, no kind twice: two readings of an order would be two orders.
    if len(digests) != len(lines) or len(digests) > _MOST_PUBLISHED:
        raise RequestError(
            f"digests {text!r:.80}, expected up to {_MOST_PUBLISHED} lines of a kind and SHA-256",
            hint="the order is damaged, or not of fedvtc-edge",
        )
    return digests
