"""One round loop for every engine; an executor knows where the clients live."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from fedvtc_edge.config import Config
from fedvtc_edge.errors import EnvelopeError, ServerError
from fedvtc_edge.masking import MaskingError, in_groups, threshold_of
from fedvtc_edge.models.tensors import from_tensors, to_tensors
from fedvtc_edge.privacy.release_store import SERVER
from fedvtc_edge.progress import Progress
from fedvtc_edge.runs.directory import Checkpoint
from fedvtc_edge.runs.records import ClientRecord, ClockRecord, RoundRecord, averages
from fedvtc_edge.training.client import Client
from fedvtc_edge.transport.channel import Delivery
from fedvtc_edge.transport.masked_sum import Integers, Total
from fedvtc_edge.wire.context import Context

from .evaluation import ControlFigures, TestSet, evaluate
from .exchange import Exchange, SecureAggregatable
from .methods import Method
from .participation import ParticipationSimulator, drawn
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
    config, records = executor.config, executor.records

    def save(number: int) -> None:
        account, tensors = executor.totals(), executor.tensors()
        keep(Checkpoint(number, records, method.published, account, tensors))
        executor.close(number)

    progress.start(config.method.rounds, "rounds")
    for record in records:
        progress.advance(record.words())
    begin, void = time.perf_counter(), 0
    nothing = {name: blank() for name in executor.clients}
    if not executor.opened:
        everybody = executor.invite(0, executor.clients)
        take_steps(method, executor, 0, everybody, missing=len(nothing) - len(everybody))
        if executor.keeps_opening:
            save(0)
            begin = time.perf_counter()
    for number in range(len(records) + 1, config.method.rounds + 1):
        # What the opening cost is the first round's.
        before = executor.totals() if number > 1 else nothing
        cohort, problem, took_part = drawn(config, executor.clients, number), "", []
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
        lines, control = executor.evaluate()
        _add_costs(lines, before, executor.totals(), took_part, method.epsilon())
        record = RoundRecord(
            round=number,
            **averages(lines),
            accuracy_control=control.accuracy,
            recall_control=control.recall,
            seconds=round(seconds, 4),
            clients=lines,
        )
        executor.remark(record, problem)
        records.append(record)
        save(number)
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
        for client in executor.here(members):  # others work when they are asked to upload
            if step.work is not None:
                step.work(client)
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
        for name in executor.clients if exchange.for_all else members:
            executor.account[name]["down"] += len(data)
        executor.learn(exchange, data, members)
    return members


def _add_costs(
    lines: Iterable[ClientRecord],
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
    took_part: Collection[str],
    epsilon: float | None,
) -> None:
    """Complete the clients' records of a round: bytes and seconds are differences of totals."""
    for line in lines:
        old, new = before[line.id], after[line.id]
        line.took_part = line.id in took_part
        line.upload_bytes = new["up"] - old["up"]
        line.download_bytes = new["down"] - old["down"]
        line.seconds = round(new["seconds"] - old["seconds"], 4)
        line.epsilon = epsilon


class Executor(ABC):
    """Interface between the round loop and the place where clients are.

    Args:
        clients: Ids of all clients, in their order.

    Attributes:
        account: Running totals per client: seconds, images, bytes up and down.
        records: Lines of metrics.jsonl of the rounds that are done.
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
        self.account: dict[str, dict[str, Any]] = {name: blank() for name in self.clients}
        self.records: list[RoundRecord] = []
        self.opened = False

    def restore(self, state: Checkpoint) -> None:
        """Continue after ``state``'s round; 0 is the opening.

        Raises:
            RunError: The checkpoint is of other networks.
        """
        for name, spent in state.account.items():
            self.account[name] = dict(spent)
        self.records, self.opened = list(state.records), True
        self.method.done = len(self.records)
        self.method.restore(state.published)

    def quorum(self, present: int, missing: int = 0) -> int:
        """Least number of uploads that count: of all present, or a share of all a round is for."""
        share = self.config.server.quorum
        return present if share is None else quorum_of(share, present + missing)

    def totals(self) -> dict[str, dict[str, Any]]:
        """A copy of the running totals, up to date."""
        return {name: dict(spent) for name, spent in self.account.items()}

    @abstractmethod
    def invite(self, number: int, cohort: Sequence[str]) -> list[str]:
        """Begin a round; who of its cohort takes part, in order.

        Raises:
            ServerError: Too few are there for the opening, which is round 0.
        """

    def here(self, members: Sequence[str]) -> list[Client]:
        """Those of the members that are in this process, in order."""
        return [client for client in self.federation.clients if client.id in members]

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
        self.method.learn(exchange.kind, data, self.here(members))

    @abstractmethod
    def finish(self, number: int, members: Sequence[str]) -> list[str]:
        """End a round's work; the clients that took part in all of it."""

    @abstractmethod
    def evaluate(self) -> tuple[list[ClientRecord], ControlFigures]:
        """A record of accuracies per client, and the figures of statistics only."""

    @abstractmethod
    def remark(self, record: RoundRecord, problem: str) -> None:
        """Add what else a round's record says; ``problem`` is why it is void, or empty."""

    def tensors(self) -> dict[str, Tensor]:
        """Weights for the checkpoint, by ``client/module/parameter``."""
        return {}

    @abstractmethod
    def close(self, number: int) -> None:
        """Forget what round ``number`` received: its result is on the disk."""


class LocalExecutor(Executor):
    """All clients in this process, in turn; who takes part is simulated by the virtual clock.

    Args:
        baselines: Local baselines of the clients, trained beside them.
        test: Read after each round; None where no whole round is run.
        attendance: Who takes part in which round; None is everybody.
    """

    def __init__(
        self,
        method: Method,
        baselines: Sequence[Client] = (),
        test: TestSet | None = None,
        *,
        attendance: ParticipationSimulator | None = None,
    ) -> None:
        super().__init__(method, (client.id for client in method.federation.clients))
        self.baselines = baselines
        self._test = test
        self._attendance = attendance or ParticipationSimulator(method, {})
        self._here = {client.id: client for client in method.federation.clients}
        self._clock: list[ClockRecord] = []

    def restore(self, state: Checkpoint) -> None:
        """Continue after ``state``'s round, with the clients' networks."""
        from_tensors(
            state.tensors,
            self._modules(),
            whose="the checkpoint",
            hint="was an architecture changed? start a new run",
        )
        super().restore(state)
        for name, client in self._here.items():
            client.seconds = self.account[name]["seconds"]
            client.samples_seen = self.account[name]["samples"]
        self._attendance.resume(self.records)

    def totals(self) -> dict[str, dict[str, Any]]:
        """A copy of the running totals, with what clients counted themselves."""
        for name, client in self._here.items():
            self.account[name] |= {"seconds": client.seconds, "samples": client.samples_seen}
        return super().totals()

    def invite(self, number: int, cohort: Sequence[str]) -> list[str]:
        """Clients that finish the round by the virtual clock; nobody, where too few do."""
        if number == 0:
            present, turns = self._attendance.opening()
        else:
            turns = [self._attendance.round(number, [self._here[name] for name in cohort])]
            present = turns[0].present
        self._clock += [turn.record for turn in turns if turn.record is not None]
        return [client.id for client in present]

    def uploads(
        self, exchange: Exchange[Any], context: Context, senders: Sequence[str]
    ) -> Iterator[tuple[Context, Delivery]]:
        """Encoded, into the ledger, and on their way."""
        federation = self.federation
        contexts = (replace(context, sender=name) for name in senders)
        encoded = ((own, exchange.encode(self._here[own.sender], own)) for own in contexts)
        for batch in in_batches(encoded, lambda upload: len(upload[1])):
            federation.enter(batch)
            carried = federation.transport.carry_all(batch)
            for (own, _), delivery in zip(batch, carried, strict=True):
                if isinstance(delivery, EnvelopeError):
                    federation.server.refuse(own, delivery, None)
                    continue
                self.account[own.sender]["up"] += delivery.size
                yield own, delivery

    def masked_sum(
        self,
        index: int,
        exchange: SecureAggregatable[Any],
        context: Context,
        members: list[str],
        quorum: int,
    ) -> tuple[Integers, int, list[str]]:
        """All parties of the masked sums of all groups.

        Of too few one would show more of each than was agreed on: it is left out.
        """
        config, there = self.config, set(members)
        total, heard = np.zeros(exchange.size, np.int64), 0
        for group in in_groups(self.clients, config.sums):
            present = [name for name in group if name in there]
            if len(present) >= threshold_of(len(group)):
                found = self._sum_of(exchange, context, present)
                total += found.vector
                heard += len(found.heard)
        if not heard:
            sums = "a masked sum" if config.sums == 1 else f"{config.sums} masked sums"
            raise MaskingError(
                f"{len(members)} of {config.group} clients in {sums}, expected "
                f"{threshold_of(config.smallest_sum)} in one",
                hint="two thirds must be there: masks and shares of noise are made for so many",
            )
        return total, heard, members

    def _sum_of(
        self, exchange: SecureAggregatable[Any], context: Context, present: Sequence[str]
    ) -> Total:
        """The masked sum of one group, whose releases are in the ledger before it begins."""
        federation, vectors = self.federation, dict[str, Integers]()
        assert federation.masked is not None
        noted = []
        for name in present:
            own = replace(context, sender=name)
            vectors[name], digested = exchange.vector(self._here[name], own)
            noted.append((own, digested))
        federation.enter(noted)
        total = federation.masked.add(vectors, context, bound=exchange.bound)
        for name, spent in total.traffic.items():
            self.account[name]["up"] += spent.up
            self.account[name]["down"] += spent.down
        return total

    def finish(self, number: int, members: Sequence[str]) -> list[str]:
        """Train the local baselines of those that took part."""
        for baseline in self.baselines:
            if baseline.id in members:
                baseline.train(number)
        return list(members)

    def evaluate(self) -> tuple[list[ClientRecord], ControlFigures]:
        """Read all clients on the test set."""
        assert self._test is not None
        return evaluate(self.method, self.baselines, self._test)

    def remark(self, record: RoundRecord, problem: str) -> None:
        """Add the timeline of a round with devices."""
        if self._clock:
            record.clock, self._clock = self._clock, []

    def tensors(self) -> dict[str, Tensor]:
        """All networks, the local baselines' too."""
        return to_tensors(self._modules())

    def close(self, number: int) -> None:
        """Empty the inbox, if uploads are sealed."""
        self.federation.transport.close(number)

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        for name, client in self._here.items():
            modules[f"{name}/classifier"] = client.model
            if client.decoder is not None:
                modules[f"{name}/decoder"] = client.decoder
        for baseline in self.baselines:
            modules[f"{baseline.id}/local"] = baseline.model
        return modules


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


def blank() -> dict[str, Any]:
    """Totals of a client that has done nothing yet."""
    return {"seconds": 0.0, "samples": 0, "up": 0, "down": 0}
