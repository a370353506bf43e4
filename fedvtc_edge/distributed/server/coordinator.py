"""The server's side beyond one process: rounds of orders, of which it sees envelopes alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fedvtc_edge.distributed.messages import REPORT, RequestError, TaskRequest, digest_of
from fedvtc_edge.errors import PrivacyError
from fedvtc_edge.federation.cohort import drawn
from fedvtc_edge.federation.evaluation import ACCURACIES, TestSet, averages, share
from fedvtc_edge.federation.exchange import Exchange, SecureAggregatable
from fedvtc_edge.federation.methods import Method
from fedvtc_edge.federation.server import Server, ServerError, UploadRecorder, quorum_of
from fedvtc_edge.masking import MaskingError, MaskingPlan, MaskingServer, MaskingStep, threshold_of
from fedvtc_edge.privacy.release_store import SERVER
from fedvtc_edge.progress import Progress
from fedvtc_edge.runs.directory import Checkpoint
from fedvtc_edge.runs.test_set import TEST
from fedvtc_edge.sealing import TrustList
from fedvtc_edge.transport.masked_sum import mask_kind
from fedvtc_edge.wire.context import Context

from .collector import Collector, Response
from .registry import ClientInfo, Registry, blank, merged, read_report

Keep = Callable[[Checkpoint], None]

OPENING_CALLS = 3
"""How often a client is asked for what it uploads only once."""

SHUTDOWN_S = 30.0
"""So long clients may take to hear that the run is done."""

MOST_VOID = 3
"""Rounds in a row in which too few took part: then the run stops, to be resumed."""


class Coordinator:
    """Runs the rounds of one method with clients elsewhere.

    The method is the same object that the embedded engine has, with a federation of no
    clients: only the server's half of its exchanges is used here.

    Args:
        method: What happens in a round.
        clients: Ids of all clients, in their order.
        trusted: Their keys.
        registry: Knows where they are.
        collector: Asks them.
        server: Makes the one that adds up a round.
        recorder: Told of each message of a masked sum as the server sees it.
        test: Of the control, and what is published of it to clients that lack it.
        keep: Called with the state after each round.
        progress: Told of each round.
    """

    def __init__(
        self,
        method: Method,
        clients: Sequence[str],
        trusted: TrustList,
        registry: Registry,
        collector: Collector,
        *,
        server: Callable[[], Server],
        recorder: UploadRecorder,
        test: tuple[TestSet, bytes] | None,
        keep: Keep,
        progress: Progress,
    ) -> None:
        self.method = method
        self.config = method.federation.config
        self.clients = list(clients)
        self.records: list[dict[str, Any]] = []
        self.account = {name: blank() for name in clients}
        self._trusted = trusted
        self._registry = registry
        self._collector = collector
        self._server = server
        self._witness = recorder
        self._test = test
        self._keep = keep
        self._progress = progress
        self._accuracies: dict[str, dict[str, Any]] = {name: {} for name in clients}
        self._opened = False
        self._void = 0

    @property
    def client_info(self) -> dict[str, ClientInfo]:
        """What clients said of themselves, by id."""
        return self._registry.client_info

    def restore(self, state: Checkpoint) -> None:
        """Continue after ``state``'s round; 0 is the opening."""
        for name, spent in state.account.items():
            self.account[name] = dict(spent)
            if spent.get("portrait"):
                known = dict(spent["portrait"])
                known["class_counts"] = known["class_counts"] and tuple(known["class_counts"])
                self.client_info.setdefault(name, ClientInfo(**known))
        self.records, self._opened = list(state.records), True
        for record in self.records:
            for line in record["clients"]:
                self._accuracies[line["id"]] = {
                    key: value for key, value in line.items() if key.startswith("accuracy")
                }
        self.method.done = len(self.records)
        self.method.restore(state.published)
        self._collector.inbox.close(state.round)  # it may have been killed before that

    def run(self) -> None:
        """All rounds that are not done yet.

        Raises:
            ServerError: Too few clients in the opening, or in :data:`MOST_VOID` rounds.
            MaskingError: The opening's masked sum did not come out.
        """
        rounds = self.config.method.rounds
        self._progress.start(rounds, "rounds")
        for record in self.records:
            self._progress.advance(_note(record))
        if not self._opened:
            wait_s, least = self._collector.deadline_s, self._least(self.clients)
            self._registry.gather(self.clients, least, wait_s)
            self._phases(0, self.clients, calls=OPENING_CALLS).exchanges(self.clients)
            self._save(0)
        for number in range(len(self.records) + 1, rounds + 1):
            self._round(number)

    def shutdown(self) -> None:
        """Send the clients home, once all that the run leaves is on the disk."""
        self._registry.shutdown_clients(self.config.method.rounds, SHUTDOWN_S)

    def _round(self, number: int) -> None:
        # The opening's bytes are the first round's.
        before = {n: dict(spent) if number > 1 else blank() for n, spent in self.account.items()}
        begin = time.perf_counter()
        cohort = drawn(self.config, self.clients, number)
        problem, took_part = "", set[str]()
        try:
            took_part = self._go(number, cohort)
            self._void = 0
        except (ServerError, MaskingError) as error:
            self._void += 1
            if self._void >= MOST_VOID:
                raise
            problem = str(error)
            self._progress.say(f"round {number} is void: {problem}")
        self.method.done = number
        self._finish_round(number, took_part, problem, before, time.perf_counter() - begin)

    def _phases(self, number: int, cohort: Sequence[str], *, calls: int = 1) -> Phases:
        # A void round leaves in a server what it received; the next one begins with nothing.
        self.method.federation.server = self._server()
        return Phases(
            self.method,
            self._trusted,
            self._collector,
            self._witness,
            None if self._test is None else self._test[1],
            number=number,
            cohort=cohort,
            least=self._least(cohort),
            calls=calls,
            account=self.account,
            client_info=self.client_info,
        )

    def _go(self, number: int, cohort: Sequence[str]) -> set[str]:
        """One round; returns the clients whose work counts."""
        phases = self._phases(number, cohort)
        reports = phases.reports(phases.exchanges(cohort))
        for name, heard in reports.items():
            self._note(number, name, heard)
        return set(reports)

    def _least(self, cohort: Sequence[str]) -> int:
        """So many of a cohort must be heard: all, or the settings' share."""
        wanted = self.config.server.quorum
        return len(cohort) if wanted is None else quorum_of(wanted, len(cohort))

    def _note(self, number: int, name: str, heard: Response) -> None:
        """Take up a client's report; one that cannot be read is refused, and tells nothing."""
        try:
            report = read_report(heard.payload)
        except RequestError as error:
            context = Context(self.method.federation.run, number, name, REPORT)
            self.method.federation.server.refuse(context, error, None)
            return
        self._accuracies[name] = {k: v for k, v in report.items() if k.startswith("accuracy")}
        merged(self.account[name], report)

    def _finish_round(
        self,
        number: int,
        took_part: set[str],
        problem: str,
        before: dict[str, dict[str, Any]],
        seconds: float,
    ) -> None:
        lines = []
        for name in self.clients:
            old, new = before[name], self.account[name]
            lines.append(
                {
                    "id": name,
                    **dict.fromkeys(ACCURACIES),
                    **self._accuracies[name],
                    "took_part": name in took_part,
                    "upload_bytes": new["up"] - old["up"],
                    "download_bytes": new["down"] - old["down"],
                    "seconds": round(new["seconds"] - old["seconds"], 4),
                    "epsilon": self.method.epsilon(),
                }
            )
        self.records.append(
            {
                "round": number,
                **averages(lines),
                "accuracy_control": self._control(),
                "seconds": round(seconds, 4),
                "void": problem,
                "clients": lines,
            }
        )
        self._save(number)
        self._progress.advance(_note(self.records[-1]))

    def _control(self) -> float | None:
        if self._test is None:
            return None
        test = self._test[0]
        scores = self.method.control(test.images)
        return None if scores is None else share(scores.argmax(1) == test.labels)

    def _save(self, number: int) -> None:
        """The state on the disk, then the round's envelopes away."""
        for name, info in self.client_info.items():
            if name in self.account:
                self.account[name]["portrait"] = asdict(info)
        self._keep(Checkpoint(number, self.records, self.method.published, self.account, {}))
        self._collector.inbox.close(number)


def _note(record: dict[str, Any]) -> str:
    """A round in words, for its line of progress."""
    heard = sum(line["took_part"] for line in record["clients"])
    parts = [f"{heard} of {len(record['clients'])} took part"]
    parts += [
        f"{label} {100 * record[key]:.1f} %"
        for label, key in (
            ("f_k", "accuracy_mean"),
            ("calibrated", "accuracy_calibrated_mean"),
            ("control", "accuracy_control"),
            ("local-only", "accuracy_local_only_mean"),
        )
        if record[key] is not None
    ]
    return ", ".join(parts + ["void"] * bool(record["void"]))


# ---------------------------------------------------------------- section
# The phases of one round: uploads one by one or as a masked sum, and reports.


class Phases:
    """Takes one round through its phases, in order.

    Args:
        method: Knows the exchanges.
        trusted: The clients' keys.
        collector: Asks clients.
        recorder: Told of each message of a masked sum as the server sees it.
        test: What is published of the test set to clients that lack it, or None.
        number: The round.
        cohort: Who is invited.
        least: So many must be heard in each exchange.
        calls: How often the silent are asked.
        account: Running totals by client; bytes are entered here.
        client_info: What clients said of themselves.
    """

    def __init__(
        self,
        method: Method,
        trusted: TrustList,
        collector: Collector,
        recorder: UploadRecorder,
        test: bytes | None,
        *,
        number: int,
        cohort: Sequence[str],
        least: int,
        calls: int,
        account: Mapping[str, dict[str, Any]],
        client_info: Mapping[str, ClientInfo],
    ) -> None:
        self._method = method
        self._federation = method.federation
        self._config = method.federation.config
        self._known = trusted.before_revocations()
        self._collector = collector
        self._witness = recorder
        self._test = test
        self._number = number
        self._cohort = cohort
        self._least = least
        self._calls = calls
        self._account = account
        self._portraits = client_info
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
            if self._config.transport.masking and isinstance(exchange, SecureAggregatable):
                data, members = self._sum(index, exchange, members)
            else:
                data, members = self._one_by_one(index, exchange, members)
            for name in self._account if exchange.for_all else members:
                self._account[name]["down"] += len(data)
            self._once = {} if exchange.for_all else {exchange.kind: data}
            self._method.learn(exchange.kind, data, [])
        return list(members)

    def reports(self, members: Sequence[str]) -> dict[str, Response]:
        """What is left to do, and how it went; whoever is late is not waited for twice."""
        steps = self._method.steps(self._number)
        last = len(steps) - 1 if steps and steps[-1].exchange is None else len(steps)
        return self._collect(last, REPORT, dict.fromkeys(members, b""), 1, self._least)

    def _one_by_one(
        self, index: int, exchange: Exchange, members: Sequence[str]
    ) -> tuple[bytes, list[str]]:
        federation, counted = self._federation, []
        messages = dict.fromkeys(members, b"")
        for name, heard in self._collect(index, exchange.kind, messages, self._least).items():
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
        self, index: int, exchange: SecureAggregatable, members: Sequence[str]
    ) -> tuple[bytes, list[str]]:
        federation = self._federation
        # All who are invited, present or not: thresholds and noise are made for so many. One
        # that was revoked meanwhile is among them, and is not heard: it drops out.
        keys = {name: self._known.lookup(name).key for name in self._cohort}
        size, context = exchange.size(federation), self._context(SERVER, exchange.kind)
        server = MaskingServer(MaskingPlan(context, keys, size, exchange.bound))
        least = max(self._least, threshold_of(len(self._cohort)))
        messages = dict.fromkeys(members, b"")
        for step in MaskingStep:
            kind = mask_kind(exchange.kind, step)
            for name, heard in self._collect(index, kind, messages, least).items():
                self._account[name]["down"] += len(messages[name])
                self._take(server, step, name, exchange.kind, heard.payload)
            if step is not MaskingStep.UNMASK:
                messages = server.advance()
        total = server.finish()
        data = exchange.close_sum(federation, total.total, total.survivors, least)
        return data, list(messages)

    def _take(
        self, server: MaskingServer, step: MaskingStep, name: str, kind: str, message: bytes
    ) -> None:
        """One message of a masked sum; one that is refused is as good as none."""
        federation, own = self._federation, self._context(name, mask_kind(kind, step))
        self._witness(self._number, name, own.kind, message)
        try:
            if step is MaskingStep.MASK:
                federation.record(self._context(name, kind), message)
            server.receive(message, sender=name)
        except (MaskingError, PrivacyError) as error:
            federation.server.refuse(own, error, self._known.lookup(name).fingerprint)

    def _collect(
        self,
        index: int,
        kind: str,
        messages: Mapping[str, bytes],
        least: int,
        enough: int | None = None,
    ) -> dict[str, Response]:
        last = self._number == self._config.method.rounds and kind == REPORT
        requests = {}
        for name, message in messages.items():
            published = {**self._method.published, **self._once}
            known = self._portraits.get(name)
            if self._test is not None and known is not None and known.wants_test:
                published[TEST] = self._test
            digests = {each: digest_of(data) for each, data in published.items()}
            context = self._context(name, kind)
            requests[name] = TaskRequest(
                context, self._phase, index, message, digests, published, last=last
            )
        replies = self._collector.collect(
            self._phase, requests, least=least, enough=enough, calls=self._calls
        )
        self._phase += 1
        for name, heard in replies.items():
            self._account[name]["up"] += heard.size if kind != REPORT else 0
        return replies

    def _context(self, sender: str, kind: str) -> Context:
        return Context(self._federation.run, self._number, sender, kind)
