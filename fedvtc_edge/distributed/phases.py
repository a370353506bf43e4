"""The phases of one round: uploads one by one or as a masked sum, and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedvtc_edge.admission import Witness
from fedvtc_edge.context import Context
from fedvtc_edge.errors import PrivacyError
from fedvtc_edge.masked import mask_kind
from fedvtc_edge.masking import MaskingError, MaskingServer, Plan, Step, threshold_of
from fedvtc_edge.methods import Method
from fedvtc_edge.methods.steps import Exchange, Summable
from fedvtc_edge.releases import SERVER
from fedvtc_edge.sealing import TrustList

from .belongings import TEST
from .collecting import Collector, Heard
from .orders import REPORT, Order, digest_of
from .register import Portrait


class Phases:
    """Takes one round through its phases, in order.

    Args:
        method: Knows the exchanges.
        trusted: The clients' keys.
        collector: Asks clients.
        witness: Told of each message of a masked sum as the server sees it.
        test: What is published of the test set to clients that lack it, or None.
        number: The round.
        cohort: Who is invited.
        least: So many must be heard in each exchange.
        calls: How often the silent are asked.
        account: Running totals by client; bytes are entered here.
        portraits: What clients said of themselves.
    """

    def __init__(
        self,
        method: Method,
        trusted: TrustList,
        collector: Collector,
        witness: Witness,
        test: bytes | None,
        *,
        number: int,
        cohort: Sequence[str],
        least: int,
        calls: int,
        account: Mapping[str, dict[str, Any]],
        portraits: Mapping[str, Portrait],
    ) -> None:
        self._method = method
        self._federation = method.federation
        self._config = method.federation.config
        self._known = trusted.before_revocations()
        self._collector = collector
        self._witness = witness
        self._test = test
        self._number = number
        self._cohort = cohort
        self._least = least
        self._calls = calls
        self._account = account
        self._portraits = portraits
        self._phase = 0
        self._once: dict[str, bytes] = {}

    def exchanges(self, members: Sequence[str]) -> list[str]:
        """All exchanges of the round; the method learns what each publishes.

        Args:
            members: Who begins.

        Returns:
            Who was heard in all of them.

        Raises:
            ServerError: Too few were heard in one.
            MaskingError: A masked sum did not come out.
        """
        for index, step in enumerate(self._method.steps(self._number)):
            exchange = step.exchange
            if exchange is None:
                continue
            if self._config.transport.masking and isinstance(exchange, Summable):
                data, members = self._sum(index, exchange, members)
            else:
                data, members = self._one_by_one(index, exchange, members)
            for name in self._account if exchange.for_all else members:
                self._account[name]["down"] += len(data)
            self._once = {} if exchange.for_all else {exchange.kind: data}
            self._method.learn(exchange.kind, data, [])
        return list(members)

    def reports(self, members: Sequence[str]) -> dict[str, Heard]:
        """What is left to do, and how it went; whoever is late is not waited for twice."""
        steps = self._method.steps(self._number)
        last = len(steps) - 1 if steps and steps[-1].exchange is None else len(steps)
        return self._collect(last, REPORT, dict.fromkeys(members, b""), 1, self._least)

    def _one_by_one(
        self, index: int, exchange: Exchange, members: Sequence[str]
    ) -> tuple[bytes, list[str]]:
        federation, counted = self._federation, []
        letters = dict.fromkeys(members, b"")
        for name, heard in self._collect(index, exchange.kind, letters, self._least).items():
            context = self._context(name, exchange.kind)
            fingerprint = self._known.lookup(name).fingerprint
            try:
                federation.record(context, heard.payload)
            except PrivacyError as error:
                federation.server.refuse(context, error, fingerprint)
                continue
            if exchange.receive(
                federation, heard.payload, context=context, fingerprint=fingerprint
            ):
                counted.append(name)
        return exchange.close(federation, self._number, self._least), counted

    def _sum(
        self, index: int, exchange: Summable, members: Sequence[str]
    ) -> tuple[bytes, list[str]]:
        federation = self._federation
        # All who are invited, present or not: thresholds and noise are made for so many. One
        # that was revoked meanwhile is among them, and is not heard: it drops out.
        keys = {name: self._known.lookup(name).key for name in self._cohort}
        size, context = exchange.size(federation), self._context(SERVER, exchange.kind)
        server = MaskingServer(Plan(context, keys, size, exchange.bound))
        least = max(self._least, threshold_of(len(self._cohort)))
        letters = dict.fromkeys(members, b"")
        for step in Step:
            kind = mask_kind(exchange.kind, step)
            for name, heard in self._collect(index, kind, letters, least).items():
                self._account[name]["down"] += len(letters[name])
                self._take(server, step, name, exchange.kind, heard.payload)
            if step is not Step.UNMASK:
                letters = server.advance()
        total = server.finish()
        data = exchange.close_sum(federation, total.total, total.survivors, least)
        return data, list(letters)

    def _take(
        self, server: MaskingServer, step: Step, name: str, kind: str, message: bytes
    ) -> None:
        """One message of a masked sum; one that is refused is as good as none."""
        federation, own = self._federation, self._context(name, mask_kind(kind, step))
        self._witness(self._number, name, own.kind, message)
        try:
            if step is Step.MASK:
                federation.record(self._context(name, kind), message)
            server.receive(message, sender=name)
        except (MaskingError, PrivacyError) as error:
            federation.server.refuse(own, error, self._known.lookup(name).fingerprint)

    def _collect(
        self,
        index: int,
        kind: str,
        letters: Mapping[str, bytes],
        least: int,
        enough: int | None = None,
    ) -> dict[str, Heard]:
        last = self._number == self._config.method.rounds and kind == REPORT
        orders = {}
        for name, letter in letters.items():
            published = {**self._method.published, **self._once}
            known = self._portraits.get(name)
            if self._test is not None and known is not None and known.wants_test:
                published[TEST] = self._test
            digests = {each: digest_of(data) for each, data in published.items()}
            context = self._context(name, kind)
            orders[name] = Order(context, self._phase, index, letter, digests, published, last=last)
        answers = self._collector.collect(
            self._phase, orders, least=least, enough=enough, calls=self._calls
        )
        self._phase += 1
        for name, heard in answers.items():
            self._account[name]["up"] += heard.size if kind != REPORT else 0
        return answers

    def _context(self, sender: str, kind: str) -> Context:
        return Context(self._federation.run, self._number, sender, kind)
