"""The executor of rounds whose clients live elsewhere: requests out, sealed envelopes in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar, cast

import numpy as np

from fedvtc_edge.data.own import TEST
from fedvtc_edge.distributed.messages import REPORT, RequestError, TaskRequest, digest_of
from fedvtc_edge.errors import PrivacyError
from fedvtc_edge.federation.account import Account
from fedvtc_edge.federation.evaluation import ControlFigures, TestSet, control_figures
from fedvtc_edge.federation.exchange import Exchange, SecureAggregatable
from fedvtc_edge.federation.figures import NOTHING
from fedvtc_edge.federation.methods import Method
from fedvtc_edge.federation.rounds import Executor, in_batches
from fedvtc_edge.masking import (
    MaskingError,
    MaskingPlan,
    MaskingServer,
    MaskingStep,
    in_groups,
    threshold_of,
)
from fedvtc_edge.privacy.release_store import SERVER
from fedvtc_edge.runs.directory import Checkpoint
from fedvtc_edge.runs.records import ACCURACIES, Accuracies, RoundRecord
from fedvtc_edge.sealing import TrustList
from fedvtc_edge.transport.channel import Delivery
from fedvtc_edge.transport.masked_sum import Integers, mask_kind
from fedvtc_edge.wire.context import Context

from .collector import Collector
from .registry import ClientInfo, ClientRegistry, merged, read_report

Found = TypeVar("Found")

OPENING_CALLS = 3
"""Times that a client is asked for what it uploads only once."""

SHUTDOWN_S = 30.0
"""So long clients may take to hear that the run is done."""

MOST_VOID = 3
"""Rounds in a row in which too few took part: then the run stops, to be resumed."""


class RemoteExecutor(Executor):
    """Takes each round through its phases, of which the server sees envelopes alone.

    The method is the same object that the local engine has, with a federation of no
    clients: only the server's half of its exchanges is used here.

    Args:
        clients: Ids of all clients, in their order.
        registry: Knows where they are.
        test: Of the control, and what is published of it to clients that lack it.
    """

    keeps_opening = True
    most_void = MOST_VOID

    def __init__(
        self,
        method: Method,
        clients: Sequence[str],
        trusted: TrustList,
        registry: ClientRegistry,
        collector: Collector,
        *,
        test: tuple[TestSet, bytes] | None,
    ) -> None:
        super().__init__(method, clients)
        self.account = Account(clients, {"parameters": None, "peak_memory_mb": None})
        self._clients = frozenset(clients)
        self._known = trusted.before_revocations()
        self._registry = registry
        self._collector = collector
        self._test = test
        self._reported: dict[str, Accuracies] = {}
        self._cohort: list[str] = []
        self._phase = 0
        self._once: dict[str, bytes] = {}

    @property
    def client_info(self) -> dict[str, ClientInfo]:
        """Client info, by id."""
        return self._registry.client_info

    def restore(self, state: Checkpoint) -> None:
        """Continue after ``state``'s round, with what clients have told by then."""
        super().restore(state)
        for name in state.clients:
            told = self.account.total(name).get("portrait")
            if told:
                known = dict(told)
                known["class_counts"] = known["class_counts"] and tuple(known["class_counts"])
                self.client_info.setdefault(name, ClientInfo(**known))
        self._collector.inbox.close(state.round)  # it may have been killed before that

    def checkpoint(self, number: int, record: RoundRecord | None) -> Checkpoint:
        """State after a round, with what clients said of themselves."""
        for name, info in self.client_info.items():
            if name in self._clients:
                told = asdict(info)
                if self.account.total(name).get("portrait") != told:
                    self.account.of(name)["portrait"] = told
        return super().checkpoint(number, record)

    def shutdown(self) -> None:
        """Send the clients home, once all that the run leaves is on the disk."""
        self._registry.shutdown_clients(self.config.method.rounds, SHUTDOWN_S)

    def invite(self, number: int, cohort: Sequence[str]) -> list[str]:
        """Begin with the whole cohort; for the opening wait until it has connected."""
        if number == 0:
            self._registry.gather(cohort, self.quorum(len(cohort)), self._collector.deadline_s)
        self._cohort, self._phase, self._once = list(cohort), 0, {}
        return list(cohort)

    def collect(
        self, index: int, context: Context, members: list[str], quorum: int
    ) -> Iterable[str]:
        """One phase, for the uploads of a step; they lie in the inbox."""
        return self._ask(index, context, dict.fromkeys(members, b""), quorum)

    def uploads(
        self, exchange: Exchange[Any], context: Context, senders: Sequence[str]
    ) -> Iterator[tuple[Context, Delivery]]:
        """Uploads from the inbox, in the ledger; refused where the budget is spent."""
        contexts = (replace(context, sender=name) for name in senders)
        received = ((own, self._received(own)) for own in contexts)
        for batch in in_batches(received, lambda upload: len(upload[1].payload)):
            try:
                self.federation.enter([(own, delivery.payload) for own, delivery in batch])
            except PrivacyError:
                batch = [upload for upload in batch if self._within_budget(*upload)]
            yield from batch

    def _received(self, context: Context) -> Delivery:
        fingerprint = self._known.lookup(context.sender).fingerprint
        return Delivery(*self._collector.received(context), fingerprint)

    def _within_budget(self, context: Context, delivery: Delivery) -> bool:
        """Enter one upload in the ledger, or refuse it."""
        try:
            self.federation.enter([(context, delivery.payload)])
        except PrivacyError as error:
            self.federation.server.refuse(context, error, delivery.fingerprint)
            return False
        return True

    def masked_sum(
        self,
        index: int,
        exchange: SecureAggregatable[Any],
        context: Context,
        members: list[str],
        quorum: int,
    ) -> tuple[Integers, int, list[str]]:
        """One phase for each step of the masked sums; who is silent in one has dropped out."""
        # All who are invited, present or not: thresholds and noise are made for so many. One
        # that was revoked meanwhile is among them, and is not heard: it drops out.
        sums = _GroupSums(self._cohort, self.config.sums, self._known, exchange, context)
        least = max(quorum, threshold_of(self.config.smallest_sum))
        messages = dict.fromkeys(members, b"")
        for step in MaskingStep:
            asked = replace(context, kind=mask_kind(context.kind, step))
            for name in self._ask(index, asked, messages, least):
                self.account.downloaded(name, len(messages[name]))
                self._take(sums.server_of[name], step, name, context, asked)
            if step is not MaskingStep.UNMASK:
                messages = sums.advance()
        total, heard = sums.finish()
        return total, heard, list(messages)

    def remaining(self, members: list[str], counted: set[str]) -> list[str]:
        """Those that were heard."""
        return [name for name in members if name in counted]

    def learn(self, exchange: Exchange[Any], data: bytes, members: Sequence[str]) -> None:
        """Tell the method; clients are told with the next request."""
        self._once = {} if exchange.for_all else {exchange.publication: data}
        super().learn(exchange, data, members)

    def finish(self, number: int, members: Sequence[str]) -> list[str]:
        """Ask for what is left to do, and how it went; nobody is waited for twice."""
        steps = self.method.steps(number)
        last = len(steps) - 1 if steps and steps[-1].exchange is None else len(steps)
        least = self.quorum(len(self._cohort))
        context = self.federation.context(SERVER, number, REPORT)
        reported = self._ask(last, context, dict.fromkeys(members, b""), 1, least)
        for name in reported:
            self._read_report(self.federation.context(name, number, REPORT))
        return list(reported)

    def evaluate(self, number: int, names: Sequence[str]) -> ControlFigures:
        """Take up what clients reported; statistics only on the server's test set."""
        for name in names:
            self.figures.enter(number, name, self._reported.pop(name, NOTHING))
            self.account.of(name)
        return control_figures(self.method, self._test and self._test[0])

    def remark(self, record: RoundRecord, problem: str) -> None:
        """Say why the round is void."""
        record.void = problem

    def close(self, number: int) -> None:
        """Put the round's envelopes away."""
        self._collector.inbox.close(number)

    def _take(
        self, server: MaskingServer, step: MaskingStep, name: str, context: Context, asked: Context
    ) -> None:
        """One message of a masked sum; one that is refused is as good as none."""
        federation = self.federation
        own = federation.context(name, asked.round, asked.kind)
        message, _ = self._collector.received(own)
        federation.server.recorder(own.round, name, own.kind, message)
        try:
            if step is MaskingStep.MASK:
                federation.enter([(federation.context(name, own.round, context.kind), message)])
            server.receive(message, sender=name)
        except (MaskingError, PrivacyError) as error:
            federation.server.refuse(own, error, self._known.lookup(name).fingerprint)

    def _read_report(self, context: Context) -> None:
        """Take up a client's report; one that cannot be read is refused, and tells nothing."""
        try:
            payload = self._collector.received(context)[0]
            report = read_report(payload, classes=self.federation.classes)
        except RequestError as error:
            self.federation.server.refuse(context, error, None)
            return
        told = {key: report[key] for key in ACCURACIES}
        self._reported[context.sender] = cast(Accuracies, told)
        merged(self.account.of(context.sender), report)

    def _ask(
        self,
        index: int,
        context: Context,
        messages: Mapping[str, bytes],
        least: int,
        enough: int | None = None,
    ) -> list[str]:
        """One phase: a request to each client that has a message; those that replied, in order."""
        number, kind = context.round, context.kind
        last = number == self.config.method.rounds and kind == REPORT
        requests = {}
        # Made once: what is published is the same for all, but for the test set.
        everything = {**self.method.sent(), **self._once}
        if self._test is not None:
            everything[TEST] = self._test[1]
        digest = {each: digest_of(data) for each, data in everything.items()}
        for name, message in messages.items():
            known = self.client_info.get(name)
            published = dict(everything)
            if known is None or not known.wants_test:
                published.pop(TEST, None)
            digests = {each: digest[each] for each in published}
            own = self.federation.context(name, number, kind)
            requests[name] = TaskRequest(
                own, self._phase, index, message, digests, published, last=last
            )
        calls = 1 if number else OPENING_CALLS
        sizes = self._collector.collect(
            self._phase, requests, least=least, enough=enough, calls=calls
        )
        self._phase += 1
        for name, size in sizes.items():
            self.account.uploaded(name, size if kind != REPORT else 0)
        return list(sizes)


class _GroupSums:
    """The masked sums of all groups of an exchange; a group in which too few are left is left out.

    Args:
        cohort: All who are invited, in order.
        number: Of groups.
    """

    def __init__(
        self,
        cohort: Sequence[str],
        number: int,
        known: TrustList,
        exchange: SecureAggregatable[Any],
        context: Context,
    ) -> None:
        self.server_of: dict[str, MaskingServer] = {}
        self._open: list[MaskingServer] = []
        for group in in_groups(cohort, number):
            keys = {name: known.lookup(name).key for name in group}
            server = MaskingServer(MaskingPlan(context, keys, exchange.size, exchange.bound))
            self.server_of |= dict.fromkeys(group, server)
            self._open.append(server)

    def advance(self) -> dict[str, bytes]:
        """Close a step in all groups; what to send, by client.

        Raises:
            MaskingError: Too few are left in each of them.
        """
        messages: dict[str, bytes] = {}
        for replies in self._each(MaskingServer.advance):
            messages |= replies
        return messages

    def finish(self) -> tuple[Integers, int]:
        """The sum of all groups' sums, and over how many clients it is.

        Raises:
            MaskingError: None of them came out.
        """
        found = self._each(MaskingServer.finish)
        total: Integers = np.sum([one.total for one in found], axis=0)
        return total, sum(len(one.survivors) for one in found)

    def _each(self, take: Callable[[MaskingServer], Found]) -> list[Found]:
        """A step of all groups that are left, without those in which it fails."""
        found, left, failed = [], [], MaskingError("no sum", hint="begin a new round")
        for server in self._open:
            try:
                found.append(take(server))
                left.append(server)
            except MaskingError as error:
                failed = error
        self._open = left
        if not left:
            raise failed
        return found
