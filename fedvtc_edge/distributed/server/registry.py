"""Registry of clients: their nodes, their info, and their reports of finished rounds."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedvtc_edge.config import Config
from fedvtc_edge.distributed.mailbox import Mailbox, NodeReply
from fedvtc_edge.distributed.messages import (
    DISMISSAL,
    HELLO,
    SHUTDOWN,
    RequestError,
    Status,
    TaskReply,
    TaskRequest,
)
from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import EnvelopeError
from fedvtc_edge.privacy.release_store import SERVER
from fedvtc_edge.runs.records import ACCURACIES
from fedvtc_edge.sealing import Identity, TrustList, unseal
from fedvtc_edge.wire.context import Context, ContextError

_LARGEST = 1_000_000
_MOST = 2**40
_PAUSE_S = 0.5
_BUSY_S = 5.0
_RETURN_S = 60.0
_NOBODY = ""
"""At a node that takes no part; it is asked again when it has connected anew."""


@dataclass(frozen=True)
class ClientInfo:
    """Client info from its hello; class counts only where it shares them.

    Args:
        architecture: Of its network, as it calls it.
        wants_test: Whether it needs the server's test set.
        samples: Number of its examples, or None.
        class_counts: Per class, [C], or None.
    """

    client: str
    architecture: str
    wants_test: bool
    samples: int | None = None
    class_counts: tuple[int, ...] | None = None


class ClientRegistry:
    """Asks unknown nodes who they are, and believes their envelopes alone.

    Args:
        run: Public name of the run.
        number: Its random number, from which and the settings the name follows.
        settings: The same settings as TOML.
        terms: Classes and shapes, JSON.
        classes: Number C of classes.
        ring: The server's identity, and previous ones while a key is replaced.
    """

    def __init__(
        self,
        config: Config,
        run: str,
        number: str,
        settings: str,
        terms: str,
        classes: int,
        ring: Sequence[Identity],
        trusted: TrustList,
        mailbox: Mailbox,
        say: Callable[[str], None],
    ) -> None:
        self.client_info: dict[str, ClientInfo] = {}
        self._config = config
        self._run = run
        self._number = number
        self._settings = settings
        self._terms = terms
        self._classes = classes
        self._ring = ring
        self._trusted = trusted
        self._mailbox = mailbox
        self._say = say
        self._nodes: dict[str, int] = {}
        self._clients: dict[int, str] = {}
        self._asked: dict[int, str] = {}
        self._again: dict[int, float] = {}
        self._begun = time.monotonic()

    def node(self, client: str) -> int | None:
        """Node of a client, if it is connected."""
        node = self._nodes.get(client)
        return node if node in self._mailbox.nodes() else None

    def are_gone(self, clients: Iterable[str]) -> bool:
        """True if none of the clients is connected, and nobody is who might be one of them.

        One that was not seen at all is given a minute: after a restart of the server its
        clients come back one after the other.
        """
        here = self._mailbox.nodes()
        if here - self._clients.keys():
            return False
        patience_s = min(_RETURN_S, self._config.server.deadline_s)
        given_up = time.monotonic() - self._begun >= patience_s
        return all(
            self._nodes[client] not in here if client in self._nodes else given_up
            for client in clients
        )

    def gather(self, wanted: Sequence[str], least: int, wait_s: float) -> None:
        """Wait until all that are wanted are there; after a while, until enough are.

        Args:
            wait_s: So long it waits for all.
        """
        until, told = time.monotonic() + wait_s, time.monotonic()
        while True:
            self.identify_nodes(0)
            here = [name for name in wanted if self.node(name) is not None]
            if len(here) == len(wanted) or (len(here) >= least and time.monotonic() >= until):
                return
            if time.monotonic() - told >= 10.0:
                told = time.monotonic()
                absent = [name for name in wanted if name not in here]
                self._say(f"waiting for {some(absent)} to connect")
            for arrived in self._mailbox.receive(_PAUSE_S):
                self.handle_reply(arrived)

    def handle_reply(self, arrived: NodeReply) -> None:
        """Take up the answer to a hello; anything else is not for the register."""
        request, reply = arrived.request, arrived.reply
        if request.context.kind != HELLO or self._asked.get(arrived.node) != request.nonce:
            return
        if reply.status in (Status.UNREACHABLE, Status.BUSY):
            self._again[arrived.node] = time.monotonic() + _BUSY_S
            return
        del self._asked[arrived.node]
        try:
            info = self._read(request, reply)
        except (EnvelopeError, RequestError, ContextError) as error:
            # Asked no more: a client that cannot take part is not asked twice a second.
            self._clients[arrived.node] = _NOBODY
            self._say(f"node {arrived.node} ({reply.client:.64}) does not take part: {error}")
            if reply.envelope:  # it believes that it does
                self._dismiss(arrived.node, request.context, str(error))
            return
        name, before = info.client, self._nodes.get(info.client)
        if before is not None and before != arrived.node:
            # The newer one counts. Two that live would otherwise be asked in turn for ever.
            self._clients[before] = _NOBODY
            self._say(f"{name} was at node {before} and is at node {arrived.node} now")
            self._dismiss(before, request.context, f"{name} has joined from elsewhere")
        self._nodes[name], self._clients[arrived.node] = arrived.node, name
        self.client_info[name] = info
        self._say(f"{name} is here ({info.architecture})")

    def shutdown_clients(self, number: int, wait_s: float) -> None:
        """Tell all that are here that the run is done, and its results on the disk.

        Args:
            wait_s: So long their answers are waited for, so that they have left.
        """
        requests = {
            node: TaskRequest(Context(self._run, number, name, SHUTDOWN), 0, 0)
            for name, node in self._nodes.items()
            if node in self._mailbox.nodes()
        }
        self._mailbox.send(requests)
        until = time.monotonic() + wait_s
        while requests and time.monotonic() < until:
            for arrived in self._mailbox.receive(_PAUSE_S):
                if arrived.request.context.kind == SHUTDOWN:
                    requests.pop(arrived.node, None)

    def identify_nodes(self, number: int) -> None:
        """Send a hello, of round ``number``, to each node of which nothing is known.

        One that does not answer is asked again after a while: hellos may be lost, too.
        """
        here = self._mailbox.nodes()
        for gone in set(self._asked) - here:
            del self._asked[gone]
        for gone in [n for n, name in self._clients.items() if name == _NOBODY and n not in here]:
            del self._clients[gone]  # it may come back with what it lacked
        now, requests = time.monotonic(), {}
        for node in sorted(here - set(self._clients)):
            if node in self._asked and now < self._again[node]:
                continue
            # The nonce of before: whichever of two answers comes first counts.
            nonce = self._asked.setdefault(node, secrets.token_hex(16))
            self._again[node] = now + self._config.server.deadline_s
            context = Context(self._run, number, SERVER, HELLO)
            requests[node] = TaskRequest(
                context,
                0,
                0,
                settings=self._settings,
                terms=self._terms,
                nonce=nonce,
                number=self._number,
            )
        if requests:
            self._mailbox.send(requests)

    def _dismiss(self, node: int, hello: Context, why: str) -> None:
        """Say so to a node that is not taken; its answer is not waited for."""
        context = replace(hello, kind=DISMISSAL)
        self._mailbox.send({node: TaskRequest(context, 0, 0, message=why.encode())})

    def _read(self, request: TaskRequest, reply: TaskReply) -> ClientInfo:
        if not reply.envelope:
            raise RequestError(reply.problem or "no answer", hint="see the client's terminal")
        context = replace(request.context, sender=reply.client)
        payload = unseal(
            reply.envelope, recipient=self._ring, trusted=self._trusted, context=context
        )
        try:
            found = parse_json(payload) if len(payload) <= _LARGEST else {}
            if found["nonce"] != request.nonce:
                raise ValueError("an old hello")
            return self._client_info(reply.client, found)
        except (ValueError, KeyError, TypeError):
            raise RequestError(
                "its hello is none", hint="install the same version of fedvtc-edge on both sides"
            ) from None

    def _client_info(self, client: str, found: dict[str, Any]) -> ClientInfo:
        counts, name = found.get("class_counts"), str(found["architecture"])
        if not name.isprintable() or len(name) > 64:
            raise ValueError("architecture")
        if counts is None:
            return ClientInfo(client, name, found["wants_test"] is True)
        if any(type(count) is not int or not 0 <= count <= _MOST for count in counts):
            raise ValueError("class_counts")
        if len(counts) != self._classes:
            raise ValueError("classes")
        return ClientInfo(client, name, found["wants_test"] is True, sum(counts), tuple(counts))


def some(names: Sequence[str]) -> str:
    """Up to three names, and how many more."""
    shown, more = ", ".join(names[:3]), len(names) - 3
    return f"{shown} and {more} more" if more > 0 else shown


_LARGEST_REPORT = 262_144
"""Bytes; a recall for each of 10,000 classes takes a third of it."""

_TOTALS = {"seconds": 1e9, "samples_seen": 2**53, "parameters": 2**40, "peak_memory_mb": 1e9}

_TOLD = {
    "samples": "samples_seen",
    "parameters": "parameters",
    "peak_memory_mb": "peak_memory_mb",
}
"""Totals that not every client tells, and what a report calls them."""


def read_report(payload: bytes, *, classes: int) -> dict[str, Any]:
    """A client's report: accuracies in [0, 1] or None, and totals, as it says.

    Args:
        classes: Number C of classes, of each of which it may tell a recall.

    Raises:
        OrderError: Not JSON, too large, or a number that none can be.
    """
    try:
        found = parse_json(payload) if len(payload) <= _LARGEST_REPORT else {}
        report: dict[str, Any] = {key: found.get(key) for key in ACCURACIES}
        report |= {key: found.get(key) for key in _TOTALS}
        recall = report["recall"]
        if recall is not None and not (isinstance(recall, list) and len(recall) == classes):
            raise ValueError("recall")
        figures = [(key, value) for key, value in report.items() if key != "recall"]
        for key, value in [*figures, *(("recall", value) for value in recall or ())]:
            most = _TOTALS.get(key, 1.0)
            if value is not None and not (type(value) in (int, float) and 0 <= value <= most):
                raise ValueError(key)
        if report["seconds"] is None:
            raise ValueError("seconds")
    except (ValueError, AttributeError):
        raise RequestError(
            "its report is none", hint="install the same version of fedvtc-edge on both sides"
        ) from None
    return report


def merged(account: dict[str, Any], report: dict[str, Any]) -> None:
    """Enter a report's totals in a client's account."""
    account["seconds"] = report["seconds"]
    for key, told in _TOLD.items():
        if report[told] is not None:
            account[key] = report[told]
