"""One round loop for every engine; an executor knows where the clients live."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fedvtc_edge.config import Config
from fedvtc_edge.errors import ServerError
from fedvtc_edge.masking import MaskingError
from fedvtc_edge.privacy.release_store import SERVER
from fedvtc_edge.progress import Progress
from fedvtc_edge.runs.directory import Checkpoint
from fedvtc_edge.runs.records import ClientRecord, RoundRecord
from fedvtc_edge.training.client import Client
from fedvtc_edge.transport.channel import Delivery
from fedvtc_edge.transport.masked_sum import Integers
from fedvtc_edge.wire.context import Context

from .account import Account, blank
from .evaluation import ControlFigures
from .exchange import Exchange, RoundStep, SecureAggregatable
from .figures import NOTHING, Figures
from .methods import Method
from .participation import drawn
from .server import quorum_of

Item = TypeVar("Item")

Keep = Callable[[Checkpoint], None]

BATCH_BYTES = 2**22
"""Bytes of uploads from which on those at hand are put on the disk and sent: enough that waiting
for the disk is nothing beside the work, and little in memory."""


def run_rounds(method: Method, executor: Executor, *, keep: Keep, progress: Progress) -> None:
    """All rounds of a method that are not done yet.

    Args:
        executor: Where the clients are; it was restored if the run was cut off.
        keep: Called with the state after each round, before anybody is told of it.
        progress: Told of each round.

    Raises:
        ServerError: Too few clients, in the opening or in more rounds than may be void.
        MaskingError: A masked sum did not come out, where that may not be.
        PrivacyError: A budget is spent.
    """
    config, figures, account = executor.config, executor.figures, executor.account

    def save(number: int, record: RoundRecord | None) -> None:
        keep(executor.checkpoint(number, record))
        executor.close(number)

    progress.start(config.method.rounds, "rounds")
    for number in range(1, executor.done + 1):
        last = executor.record if number == executor.done else None
        progress.advance(last.words() if last else "")
    begin, void = time.perf_counter(), 0
    if not executor.opened:
        everybody = executor.invite(0, executor.clients)
        take_steps(method, executor, 0, everybody, missing=len(executor.clients) - len(everybody))
        if executor.keeps_opening:
            save(0, None)
            begin = time.perf_counter()
    for number in range(executor.done + 1, config.method.rounds + 1):
        cohort, problem, took_part = drawn(config, executor.clients, number), "", []
        # What the opening cost is the first round's.
        before = {name: executor.spent(name) if number > 1 else blank() for name in cohort}
        up, down = (account.up, account.down) if number > 1 else (0, 0)
        try:
            members = executor.invite(number, cohort)
            if members:
                missing = len(cohort) - len(members)
                members = take_steps(method, executor, number, members, missing=missing)
                took_part = executor.finish(number, members)
            void = 0
        except (ServerError, MaskingError) as error:
            void += 1
            if void >= executor.most_void:
                raise
            problem = str(error)
            progress.say(f"round {number} is void: {problem}")
        method.done, seconds = number, time.perf_counter() - begin
        found = executor.measure(number, took_part)
        measured, control = found is not None, found or ControlFigures()
        record = RoundRecord(
            round=number,
            **(figures if measured else Figures()).means(),
            accuracy_control=control.accuracy,
            recall_control=control.recall,
            seconds=round(seconds, 4),
            upload_bytes=account.up - up,
            download_bytes=account.down - down,
            clients=_lines(executor, before, took_part, measured),
        )
        executor.remark(record, problem)
        executor.end_round(record)
        save(number, record)
        progress.advance(record.words())
        begin = time.perf_counter()


def take_steps(
    method: Method, executor: Executor, number: int, members: Sequence[str], *, missing: int = 0
) -> list[str]:
    """One round's work and exchanges; the method learns what each of them publishes.

    Args:
        executor: Where the clients are.
        number: Round; 0 is what happens once, before the first.
        missing: How many more the round is for.

    Returns:
        Those that still take part at its end.

    Raises:
        ServerError: Too few uploads count.
        MaskingError: A masked sum did not come out, or a number does not fit its grid.
        PrivacyError: A budget is spent.
    """
    federation, server = method.federation, method.federation.server
    quorum, members = executor.quorum(len(members), missing), list(members)
    for index, step in enumerate(method.steps(number)):
        executor.work(index, step, members)
        exchange = step.exchange
        if exchange is None:
            continue
        context = federation.context(SERVER, number, exchange.kind)
        if executor.config.transport.masking and isinstance(exchange, SecureAggregatable):
            total, heard, members = executor.masked_sum(index, exchange, context, members, quorum)
            data = server.publish_sum(exchange, total, heard, quorum=quorum)
        else:
            senders = sorted(executor.collect(index, context, members, quorum))
            uploads = executor.uploads(exchange, context, senders)
            data, counted = server.aggregate(
                exchange, context, uploads, number=len(senders), quorum=quorum
            )
            members = executor.remaining(members, counted)
        if exchange.for_all:
            executor.account.downloaded_by_all(len(data))
        for name in () if exchange.for_all else members:
            executor.account.downloaded(name, len(data))
        executor.learn(exchange, data, members)
    return members


def evaluates(config: Config, number: int) -> bool:
    """True for rounds that measure accuracies: one in so many, and the last."""
    return number % config.engine.evaluate_every == 0 or number == config.method.rounds


def _lines(
    executor: Executor,
    before: Mapping[str, Mapping[str, Any]],
    took_part: Collection[str],
    measured: bool,
) -> list[ClientRecord]:
    """Records of a round's cohort: bytes and seconds are differences of totals.

    Args:
        before: Totals at the beginning of the round, of the whole cohort.
        measured: Whether the round tells accuracies: each client's last ones.
    """
    figures, epsilon, heard = executor.figures, executor.method.epsilon(), set(took_part)
    lines = []
    for name, old in before.items():
        new = executor.spent(name)
        lines.append(
            ClientRecord(
                id=name,
                **(figures.of(name) if measured else NOTHING),
                took_part=name in heard,
                evaluated_round=figures.round_of(name) if measured else None,
                upload_bytes=new["up"] - old["up"],
                download_bytes=new["down"] - old["down"],
                seconds=round(new["seconds"] - old["seconds"], 4),
                epsilon=epsilon,
            )
        )
    return lines


class Executor(ABC):
    """Interface between the round loop and the place where clients are.

    Args:
        clients: Ids of all clients, in their order.

    Attributes:
        account: Running totals per client: seconds, images, bytes up and down.
        figures: Last accuracies of each client.
        record: Line of metrics.jsonl of the last round that is done, or None.
        done: Rounds that are done.
        seconds: Time that they took.
        opened: Whether what happens once, before the first round, is behind.
        keeps_opening: Whether there is a checkpoint between the opening and the first round.
        most_void: So many rounds in a row in which too few take part stop the run.
    """

    keeps_opening = False
    most_void = 1

    def __init__(self, method: Method, clients: Iterable[str]) -> None:
        self.method = method
        self.federation = method.federation
        self.config: Config = method.federation.config
        self.clients = list(clients)
        self.account = Account(self.clients)
        self.figures = Figures()
        self.record: RoundRecord | None = None
        self.done = 0
        self.seconds = 0.0
        self.opened = False
        self._unmeasured: set[str] = set()

    def restore(self, state: Checkpoint) -> None:
        """Continue after ``state``'s round; 0 is the opening.

        Raises:
            RunError: The checkpoint is of other networks.
        """
        accounts = {name: kept["account"] for name, kept in state.clients.items()}
        self.account.restore(accounts, state.totals["account"])
        for name, kept in state.clients.items():
            if kept["figures"] is not None:
                self.figures.enter(kept["figures"]["round"], name, kept["figures"]["last"])
            if kept["unmeasured"]:
                self._unmeasured.add(name)
        self.record, self.done, self.opened = state.record, state.round, True
        self.seconds = state.totals["seconds"]
        self.method.done = self.done
        self.method.restore(state.published)

    def checkpoint(self, number: int, record: RoundRecord | None) -> Checkpoint:
        """State after a round: of the clients that changed in it, and what is of all."""
        states = {name: self.state_of(name) for name in sorted(self.changed())}
        self.account.changed = set()
        totals = {"account": self.account.totals(), "seconds": self.seconds}
        return Checkpoint(number, record, self.method.published, states, totals)

    def changed(self) -> set[str]:
        """Clients whose state is not that of the last checkpoint."""
        return self.account.changed

    def state_of(self, name: str) -> dict[str, Any]:
        """State of one client for a checkpoint, as a JSON object."""
        number = self.figures.round_of(name)
        figures = {"round": number, "last": self.figures.of(name)}
        return {
            "account": dict(self.account.of(name)),
            "figures": None if number is None else figures,
            "unmeasured": name in self._unmeasured,
        }

    def end_round(self, record: RoundRecord) -> None:
        """Take up the record of a round that is done."""
        self.record, self.done = record, record.round
        self.seconds += record.seconds or 0.0

    def quorum(self, present: int, missing: int = 0) -> int:
        """Least number of uploads that count: of all present, or a share of all a round is for."""
        share = self.config.server.quorum
        return present if share is None else quorum_of(share, present + missing)

    def spent(self, name: str) -> dict[str, Any]:
        """A copy of a client's running totals, up to date."""
        return self.account.total(name)

    @abstractmethod
    def invite(self, number: int, cohort: Sequence[str]) -> list[str]:
        """Begin a round; who of its cohort takes part, in order.

        Raises:
            ServerError: Too few are there for the opening, which is round 0.
        """

    def here(self, members: Sequence[str]) -> Sequence[Client]:
        """Those of the members that are in this process, in order, about to change."""
        return []

    def work(self, index: int, step: RoundStep, members: Sequence[str]) -> None:
        """Let the members that are in this process do their work of step ``index``.

        Those elsewhere do it when they are asked to upload.
        """
        if step.work is not None:
            for client in self.here(members):
                step.work(client)

    def collect(
        self, index: int, context: Context, members: list[str], quorum: int
    ) -> Iterable[str]:
        """Ask for the uploads of step ``index``; who has one that can be fetched."""
        return members

    @abstractmethod
    def uploads(
        self, exchange: Exchange[Any], context: Context, senders: Sequence[str]
    ) -> Iterator[tuple[Context, Delivery]]:
        """The uploads of an exchange in the order of their senders, a batch in memory at a time.

        Each is in the ledger and counted; those that are refused on the way are left out.

        Raises:
            PrivacyError: The budget of a client in this process is spent.
        """

    @abstractmethod
    def masked_sum(
        self,
        index: int,
        exchange: SecureAggregatable[Any],
        context: Context,
        members: list[str],
        quorum: int,
    ) -> tuple[Integers, int, list[str]]:
        """A sum that hides its parts, of how many clients, and who still takes part.

        Raises:
            MaskingError: The sum did not come out.
            PrivacyError: A budget is spent.
        """

    def remaining(self, members: list[str], counted: set[str]) -> list[str]:
        """Clients that still take part after an exchange in which ``counted`` were heard."""
        return members

    def learn(self, exchange: Exchange[Any], data: bytes, members: Sequence[str]) -> None:
        """Take up what was published at the end of an exchange."""
        self.method.learn(exchange.publication, data, self.here(members))

    @abstractmethod
    def finish(self, number: int, members: Sequence[str]) -> list[str]:
        """End a round's work; the clients that took part in all of it."""

    def measure(self, number: int, took_part: Sequence[str]) -> ControlFigures | None:
        """Measure accuracies, and take them up, in a round that does so.

        Those of the round's participants; in the last round also of all that have worked since
        they were measured. The others keep their last figures.

        Returns:
            The figures of statistics only; None in a round that measures nothing.
        """
        self._unmeasured |= set(took_part)
        if not evaluates(self.config, number):
            return None
        last = number == self.config.method.rounds
        names = [name for name in self.clients if name in self._unmeasured] if last else took_part
        control = self.evaluate(number, names)
        self._unmeasured -= set(names)
        return control

    @abstractmethod
    def evaluate(self, number: int, names: Sequence[str]) -> ControlFigures:
        """Take up accuracies of these clients; the figures of statistics only."""

    @abstractmethod
    def remark(self, record: RoundRecord, problem: str) -> None:
        """Add what else a round's record says; ``problem`` is why it is void, or empty."""

    @abstractmethod
    def close(self, number: int) -> None:
        """Forget what round ``number`` received: its result is on the disk."""


def in_batches(items: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Items in order, in lists of :data:`BATCH_BYTES` or a little more."""
    batch, size = list[Item](), 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
