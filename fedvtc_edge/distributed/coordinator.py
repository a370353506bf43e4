"""The server's side beyond one process: rounds of orders, of which it sees envelopes alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from fedvtc_edge.admission import ServerError, Witness, quorum_of
from fedvtc_edge.context import Context
from fedvtc_edge.engine.cohort import drawn
from fedvtc_edge.evaluation import ACCURACIES, TestSet, averages, share
from fedvtc_edge.masking import MaskingError
from fedvtc_edge.methods import Method
from fedvtc_edge.progress import Progress
from fedvtc_edge.runs import Checkpoint
from fedvtc_edge.sealing import TrustList
from fedvtc_edge.server import Server

from .collecting import Collector, Heard
from .orders import REPORT
from .phases import Phases
from .records import OrderError
from .register import Portrait, Register
from .reports import blank, merged, read_report

Keep = Callable[[Checkpoint], None]

OPENING_CALLS = 3
"""How often a client is asked for what it uploads only once."""

FAREWELL_S = 30.0
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
        register: Knows where they are.
        collector: Asks them.
        server: Makes the one that adds up a round.
        witness: Told of each message of a masked sum as the server sees it.
        test: Of the control, and what is published of it to clients that lack it.
        keep: Called with the state after each round.
        progress: Told of each round.
    """

    def __init__(
        self,
        method: Method,
        clients: Sequence[str],
        trusted: TrustList,
        register: Register,
        collector: Collector,
        *,
        server: Callable[[], Server],
        witness: Witness,
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
        self._register = register
        self._collector = collector
        self._server = server
        self._witness = witness
        self._test = test
        self._keep = keep
        self._progress = progress
        self._accuracies: dict[str, dict[str, Any]] = {name: {} for name in clients}
        self._opened = False
        self._void = 0

    @property
    def portraits(self) -> dict[str, Portrait]:
        """What clients said of themselves, by id."""
        return self._register.portraits

    def restore(self, state: Checkpoint) -> None:
        """Continue after ``state``'s round; 0 is the opening."""
        for name, spent in state.account.items():
            self.account[name] = dict(spent)
            if spent.get("portrait"):
                known = dict(spent["portrait"])
                known["class_counts"] = known["class_counts"] and tuple(known["class_counts"])
                self.portraits.setdefault(name, Portrait(**known))
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
            self._register.gather(self.clients, least, wait_s)
            self._phases(0, self.clients, calls=OPENING_CALLS).exchanges(self.clients)
            self._save(0)
        for number in range(len(self.records) + 1, rounds + 1):
            self._round(number)

    def farewell(self) -> None:
        """Send the clients home, once all that the run leaves is on the disk."""
        self._register.take_leave(self.config.method.rounds, FAREWELL_S)

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
            portraits=self.portraits,
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

    def _note(self, number: int, name: str, heard: Heard) -> None:
        """Take up a client's report; one that cannot be read is refused, and tells nothing."""
        try:
            report = read_report(heard.payload)
        except OrderError as error:
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
        for name, portrait in self.portraits.items():
            if name in self.account:
                self.account[name]["portrait"] = asdict(portrait)
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
