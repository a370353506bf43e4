"""The server: it opens, checks, adds and publishes, and never sees raw data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from fedvtc_edge.errors import FedVTCError, PrivacyError, ServerError
from fedvtc_edge.runs.directory import REFUSALS
from fedvtc_edge.storage.atomic import OWNER_ONLY, append_line
from fedvtc_edge.transport.channel import Delivery
from fedvtc_edge.transport.masked_sum import Integers
from fedvtc_edge.wire.context import Context

from .exchange import Exchange, Part, SecureAggregatable
from .robustness import CheckError

MAX_REASON = 300
"""Characters of a reason that are kept: what a stranger sent decides how long it is."""

UploadRecorder = Callable[[int, str, str, bytes], None]
"""Told of each upload: round, sender, kind, bytes."""

Refuse = Callable[[Context, FedVTCError, str | None], None]
"""Told of each refusal: whose upload, why, and its key's fingerprint if there is one."""


class Refusals:
    """The log of refused uploads of one run; a round that is repeated repeats its refusals.

    Args:
        run: The run directory, laid out before the first refusal.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "server" / REFUSALS

    def note(self, context: Context, error: FedVTCError, fingerprint: str | None = None) -> None:
        """Append one line of JSON; on disk when the round's checkpoint is.

        Args:
            context: What the upload was expected to belong to; its sender is the client.
            fingerprint: Of the key that signed it, or None where nothing is signed.
        """
        line = {
            "round": context.round,
            "client": context.sender,
            "kind": context.kind,
            "fingerprint": fingerprint,
            "error": type(error).__name__,
            "reason": str(error)[:MAX_REASON],
        }
        append_line(self.path, json.dumps(line).encode(), durable=False, mode=OWNER_ONLY)


def telling(refuse: Refuse, say: Callable[[str], None]) -> Refuse:
    """Note refusals, and tell the server's operator of those that came of its checks."""

    def both(context: Context, error: FedVTCError, fingerprint: str | None) -> None:
        refuse(context, error, fingerprint)
        if isinstance(error, CheckError):
            say(f"{context.sender}, {context.kind}: {error!s:.{MAX_REASON}}")

    return both


def discard_upload(round_: int, sender: str, kind: str, data: bytes) -> None:
    """Keep nothing of an upload."""


def ignore_refusal(context: Context, error: FedVTCError, fingerprint: str | None) -> None:
    """Note no refusal."""


def quorum_of(share: float, cohort: int) -> int:
    """Share of a cohort as a number of clients, rounded up; 1 at least."""
    return max(1, math.ceil(share * cohort - 1e-9))  # 0.07 · 100 is 7.000000000000001


class Server:
    """Adds and publishes one exchange after the other; it keeps nothing in between.

    An upload that is refused is noted and does not count; the round goes on with the
    others as long as there are enough.

    Args:
        recorder: Called with every upload before it is opened, for the audit.
        refuse: Called with every refusal.
    """

    def __init__(
        self, recorder: UploadRecorder = discard_upload, refuse: Refuse = ignore_refusal
    ) -> None:
        self.recorder = recorder
        self._refuse = refuse
        self._last_refusal = ""

    def aggregate(
        self,
        exchange: Exchange[Part],
        context: Context,
        uploads: Iterable[tuple[Context, Delivery]],
        *,
        number: int,
        quorum: int,
    ) -> tuple[bytes, set[str]]:
        """Check and add the uploads of one exchange, and publish what comes out.

        Where the exchange compares uploads all are kept until the end; else none once it is
        added. Who is set aside was heard all the same, and is among them.

        Args:
            context: Of the publication.
            uploads: What arrived, and whose it is: one of a sender. Sums have the same bits in
                whatever order; what is compared or trimmed is in the order of the senders.
            number: How many there may be.
            quorum: Least number of uploads that count; fewer publish nothing.

        Returns:
            What is published, and whose uploads are in it.

        Raises:
            ServerError: Fewer than ``quorum``, or than the settings' contributors.
        """
        counted: dict[str, str | None] = {}
        parts = self._accepted(exchange, uploads, counted, quorum)
        if exchange.compares(number):
            parts = self._compared(exchange, context, parts, counted)
        elif exchange.ordered:
            parts = (part for _, part in _in_order(parts, counted))
        return exchange.aggregate(parts, context), set(counted)

    def publish_sum(
        self,
        exchange: SecureAggregatable[Part],
        total: Integers,
        clients: int,
        *,
        quorum: int,
    ) -> bytes:
        """Publish a sum over so many clients, whose parts the server never saw.

        Raises:
            ServerError: As :meth:`aggregate`.
        """
        self._check_quorum(clients, max(quorum, exchange.least))
        try:
            return exchange.from_sum(total, clients)
        except (CheckError, PrivacyError) as error:
            raise ServerError(str(error), hint=error.hint) from None

    def refuse(self, context: Context, error: FedVTCError, fingerprint: str | None) -> None:
        """Note that an upload does not count, and why."""
        self._last_refusal = f"; refused {context.sender}: {error}"
        self._refuse(context, error, fingerprint)

    def _accepted(
        self,
        exchange: Exchange[Part],
        uploads: Iterable[tuple[Context, Delivery]],
        counted: dict[str, str | None],
        quorum: int,
    ) -> Iterator[Part]:
        for own, upload in uploads:
            sender = own.sender
            self.recorder(own.round, sender, own.kind, upload.payload)
            try:
                if sender in counted:
                    raise ServerError(
                        f"{sender} uploads twice in round {own.round}", hint="one upload counts"
                    )
                part = exchange.decode(upload.payload, own)
            except FedVTCError as error:
                self.refuse(own, error, upload.fingerprint)
                continue
            counted[sender] = upload.fingerprint
            yield part
        self._check_quorum(len(counted), max(quorum, exchange.least))

    def _compared(
        self,
        exchange: Exchange[Part],
        context: Context,
        parts: Iterator[Part],
        counted: Mapping[str, str | None],
    ) -> Iterator[Part]:
        """Uploads as they count once all are compared; what is changed is noted."""
        kept = _in_order(parts, counted)
        doubts = exchange.doubts([part for _, part in kept])
        for index, (sender, part) in enumerate(kept):
            doubt = doubts.get(index)
            if doubt is None:
                yield part
                continue
            self._refuse(replace(context, sender=sender), doubt.why, counted[sender])
            if doubt.counts is not None:
                yield doubt.counts

    def _check_quorum(self, counted: int, quorum: int) -> None:
        """Refuse to publish what too few contributed to; name the last refusal."""
        refusal, self._last_refusal = self._last_refusal, ""
        if counted < max(quorum, 1):
            raise ServerError(
                f"{counted} uploads, the quorum is {quorum}{refusal}",
                hint="wait for more clients, or lower the quorum (to 1 at least)",
            )


def _in_order(parts: Iterable[Part], counted: Mapping[str, str | None]) -> list[tuple[str, Part]]:
    """All parts with their senders, by the names of these.

    Args:
        counted: Senders in the order of the parts, complete once all parts are read.
    """
    kept = list(parts)
    return sorted(zip(counted, kept, strict=True), key=lambda pair: pair[0])
