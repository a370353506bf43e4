"""Context of an upload: run, round, sender and kind, as one fixed string of bytes."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from fedvtc_edge.errors import UsageError

CONTEXT_BYTES = 100
"""Length of :meth:`Context.to_bytes`: the same for every upload, so that it tells nothing."""

_RUN = re.compile(r"[0-9a-f]{32}")
_SENDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KIND = re.compile(r"[a-z][a-z-]{0,15}")
_LAYOUT = struct.Struct(">16sI64s16s")


class ContextError(UsageError):
    """A run, round, sender or kind that no upload can have."""


@dataclass(frozen=True)
class Context:
    """Run, round, sender and kind of an upload; known to both sides and bound into its bytes.

    Args:
        run: Public name of the run: 32 lower-case hexadecimal digits.
        round: 0 (before the first) to 2³² - 1.
        sender: Id of the client: letters, digits, ``.``, ``_`` and ``-``, 64 at most.
        kind: What is uploaded, such as ``anchor`` or ``decoder``; 16 characters at most.

    Raises:
        ContextError: A value out of range.
    """

    run: str
    round: int
    sender: str
    kind: str

    def __post_init__(self) -> None:
        number = type(self.round) is int and 0 <= self.round < 2**32
        named = all(
            isinstance(value, str) and pattern.fullmatch(value)
            for pattern, value in ((_RUN, self.run), (_SENDER, self.sender), (_KIND, self.kind))
        )
        if not (number and named):
            raise ContextError(
                f"run {self.run!r:.80}, round {self.round!r:.80}, sender {self.sender!r:.80}, "
                f"kind {self.kind!r:.80}",
                hint="expected 32 hexadecimal digits, a round from 0, a client id and a kind",
            )

    def to_bytes(self) -> bytes:
        """100 bytes: run (16), round (4, big-endian), sender (64) and kind (16), zero-padded.

        No two contexts have the same bytes: names hold no zero byte.
        """
        return _LAYOUT.pack(
            bytes.fromhex(self.run), self.round, self.sender.encode(), self.kind.encode()
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Context:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ContextError: Another length, or values that no context has.
        """
        if len(data) != CONTEXT_BYTES:
            raise ContextError(
                f"{len(data)} bytes, expected {CONTEXT_BYTES}", hint="the upload is damaged"
            )
        run, number, *names = _LAYOUT.unpack(data)
        # Latin-1 takes any byte; what is no name is refused by the constructor.
        sender, kind = (name.rstrip(b"\0").decode("latin-1") for name in names)
        return cls(run.hex(), number, sender, kind)
