"""Which client is at which node, and what it says of itself."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedvtc_edge.config import Config
from fedvtc_edge.context import Context, ContextError
from fedvtc_edge.errors import EnvelopeError
from fedvtc_edge.releases import SERVER
from fedvtc_edge.sealing import Identity, TrustList, unseal

from .orders import HELLO, Answer, Order, OrderError
from .post import Post, Reply

_LARGEST = 1_000_000
_PAUSE_S = 0.5


@dataclass(frozen=True)
class Portrait:
    """What a client says of itself in its hello; counts only where it tells them.

    Args:
        client: Its id.
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


class Register:
    """Asks unknown nodes who they are, and believes their envelopes alone.

    Args:
        config: The settings.
        run: Public name of the run.
        settings: The same settings as TOML.
        terms: Classes and shapes, JSON.
        classes: Number C of classes.
        ring: The server's identity, and previous ones while a key is replaced.
        trusted: The clients.
        post: Carries hellos.
        say: Told what happens, in words.
    """

    def __init__(
        self,
        config: Config,
        run: str,
        settings: str,
        terms: str,
        classes: int,
        ring: Sequence[Identity],
        trusted: TrustList,
        post: Post,
        say: Callable[[str], None],
    ) -> None:
        self.portraits: dict[str, Portrait] = {}
        self._config = config
        self._run = run
        self._settings = settings
        self._terms = terms
        self._classes = classes
        self._ring = ring
        self._trusted = trusted
        self._post = post
        self._say = say
        self._nodes: dict[str, int] = {}
        self._clients: dict[int, str] = {}
        self._asked: dict[int, str] = {}

    def node(self, client: str) -> int | None:
        """Where a client is, if it is connected."""
        node = self._nodes.get(client)
        return node if node in self._post.nodes() else None

    def client(self, node: int) -> str | None:
        """Who is at a node."""
        return self._clients.get(node)

    def gather(
        self, number: int, wanted: Sequence[str], least: int, wait_s: float, *, patient: bool
    ) -> list[str]:
        """Clients that are there, of those that are wanted.

        Args:
            number: Round that they are wanted for.
            wanted: Ids.
            least: How many are enough.
            wait_s: So long it waits: for all if it is patient, else for enough.
            patient: Whether it goes on waiting for enough after that.
        """
        until, told = time.monotonic() + wait_s, time.monotonic()
        while True:
            self._ask_strangers(number)
            here = [name for name in wanted if self.node(name) is not None]
            strangers = any(node not in self._clients for node in self._post.nodes())
            enough, late = len(here) >= least, time.monotonic() >= until
            if (
                len(here) == len(wanted)
                or (enough and (late if patient else not strangers))
                or (late and not patient)
            ):
                return here
            if time.monotonic() - told >= 10.0:
                told = time.monotonic()
                absent = [name for name in wanted if name not in here]
                self._say(f"waiting for {some(absent)} to connect")
            for reply in self._post.receive(_PAUSE_S):
                self.hear(reply)

    def hear(self, reply: Reply) -> None:
        """Take up the answer to a hello; anything else is not for the register."""
        order, answer = reply.order, reply.answer
        if order.context.kind != HELLO or self._asked.get(reply.node) != order.nonce:
            return
        del self._asked[reply.node]
        try:
            portrait = self._read(order, answer)
        except (EnvelopeError, OrderError, ContextError) as error:
            # Asked no more: a client that cannot take part is not asked twice a second.
            self._clients[reply.node] = ""
            self._say(f"node {reply.node} ({answer.client:.64}) does not take part: {error}")
            return
        name = portrait.client
        self._clients.pop(self._nodes.get(name, -1), None)
        self._nodes[name], self._clients[reply.node] = reply.node, name
        self.portraits[name] = portrait
        self._say(f"{name} is here ({portrait.architecture})")

    def _ask_strangers(self, number: int) -> None:
        here = self._post.nodes()
        for gone in set(self._asked) - here:
            del self._asked[gone]
        for gone in [node for node, name in self._clients.items() if not name and node not in here]:
            del self._clients[gone]  # it may come back with what it lacked
        strangers = here - set(self._clients) - set(self._asked)
        orders = {}
        for node in sorted(strangers):
            nonce = self._asked[node] = secrets.token_hex(16)
            context = Context(self._run, number, SERVER, HELLO)
            orders[node] = Order(
                context, 0, 0, settings=self._settings, terms=self._terms, nonce=nonce
            )
        if orders:
            self._post.send(orders)

    def _read(self, order: Order, answer: Answer) -> Portrait:
        if not answer.envelope:
            raise OrderError(answer.problem or "no answer", hint="see the client's terminal")
        context = replace(order.context, sender=answer.client)
        payload = unseal(
            answer.envelope, recipient=self._ring, trusted=self._trusted, context=context
        )
        try:
            found = json.loads(payload) if len(payload) <= _LARGEST else {}
            if found["nonce"] != order.nonce:
                raise ValueError("an old hello")
            return self._portrait(answer.client, found)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise OrderError(
                "its hello is none", hint="install the same version of fedvtc-edge on both sides"
            ) from None

    def _portrait(self, client: str, found: dict[str, Any]) -> Portrait:
        counts, name = found.get("class_counts"), str(found["architecture"])
        if not name.isprintable() or len(name) > 64:
            raise ValueError("architecture")
        if counts is None:
            return Portrait(client, name, found["wants_test"] is True)
        whole = tuple(int(count) for count in counts)
        if len(whole) != self._classes or min(whole) < 0 or sum(whole) > 2**40:
            raise ValueError("class_counts")
        return Portrait(client, name, found["wants_test"] is True, sum(whole), whole)


def some(names: Sequence[str]) -> str:
    """Up to three names, and how many more."""
    shown, more = ", ".join(names[:3]), len(names) - 3
    return f"{shown} and {more} more" if more > 0 else shown
