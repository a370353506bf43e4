"""The executor of rounds whose clients are all in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedvtc_edge.errors import EnvelopeError
from fedvtc_edge.masking import MaskingError, in_groups, threshold_of
from fedvtc_edge.runs.directory import Checkpoint
from fedvtc_edge.runs.records import Accuracies, ClockRecord, RoundRecord
from fedvtc_edge.training.client import Client
from fedvtc_edge.transport.channel import Delivery
from fedvtc_edge.transport.masked_sum import Integers, Total
from fedvtc_edge.wire.context import Context

from .evaluation import ControlFigures, Evaluator, TestSet
from .exchange import Exchange, RoundStep, SecureAggregatable
from .methods import Method
from .participation import ParticipationSimulator, add_turn
from .roster import Roster
from .rounds import Executor, in_batches

_TOGETHER = 16
"""Clients that are looked at together, fewer than are live."""


class LocalExecutor(Executor):
    """All clients in this process, in turn; who takes part is simulated by the virtual clock.

    Args:
        method: Of a federation whose clients are a :class:`Roster`.
        test: Read after each round; None where no whole round is run.
        baselines: Whether local baselines are trained beside the clients that take part.
        attendance: Who takes part in which round; None is everybody.
    """

    def __init__(
        self,
        method: Method,
        test: TestSet | None = None,
        *,
        baselines: bool = False,
        attendance: ParticipationSimulator | None = None,
    ) -> None:
        roster = method.federation.clients
        assert isinstance(roster, Roster)
        super().__init__(method, roster.ids)
        self.roster = roster
        self._baselines = baselines and method.trains and not method.is_own_control
        self._evaluator = Evaluator(method, test)
        self._attendance = attendance or ParticipationSimulator(method, {})
        self._clock: list[ClockRecord] = []

    def restore(self, state: Checkpoint) -> None:
        """Continue after ``state``'s round, with the clients' networks."""
        super().restore(state)
        self.roster.restore({name: kept["kept"] for name, kept in state.clients.items()})
        self._attendance.resume(self.record)

    def changed(self) -> set[str]:
        """Clients whose state is not that of the last checkpoint."""
        return super().changed() | self.roster.changed_now()

    def state_of(self, name: str) -> dict[str, Any]:
        """State of one client for a checkpoint; its weights are kept by then."""
        weights = self.roster.keep(name)
        seconds, samples = self.roster.spent(name)
        kept = {"weights": weights, "seconds": seconds, "samples": samples}
        return {**super().state_of(name), "kept": kept}

    def spent(self, name: str) -> dict[str, Any]:
        """A copy of a client's running totals, with what it counted itself."""
        seconds, samples = self.roster.spent(name)
        return super().spent(name) | {"seconds": seconds, "samples": samples}

    def invite(self, number: int, cohort: Sequence[str]) -> list[str]:
        """Clients that finish the round by the virtual clock; nobody, where too few do."""
        if number == 0:
            present, turns = self._attendance.opening()
        else:
            turns = [self._attendance.round(number, self.roster.some(cohort))]
            present = turns[0].present
        for record in (turn.record for turn in turns if turn.record is not None):
            self._clock.append(record)
            for name, line in record.clients.items():
                add_turn(self.account.of(name), line)
        return present

    def here(self, members: Sequence[str]) -> Sequence[Client]:
        """The members, each live when it is its turn."""
        return self.roster.some(members, at_work=True)

    def work(self, index: int, step: RoundStep, members: Sequence[str]) -> None:
        """Let the members work in turn; on a GPU together, as many as may be live at a time."""
        if step.together is None or not self.federation.compute.stacks:
            super().work(index, step, members)
            return
        for clients in self.roster.live_together(members):
            step.together(clients)

    def uploads(
        self, exchange: Exchange[Any], context: Context, senders: Sequence[str]
    ) -> Iterator[tuple[Context, Delivery]]:
        """Encoded, into the ledger, and on their way."""
        federation = self.federation
        contexts = (replace(context, sender=name) for name in self._prepared(exchange, senders))
        encoded = ((own, exchange.encode(self.roster.client(own.sender), own)) for own in contexts)
        for batch in in_batches(encoded, lambda upload: len(upload[1])):
            federation.enter(batch)
            carried = federation.transport.carry_all(batch)
            for (own, _), delivery in zip(batch, carried, strict=True):
                if isinstance(delivery, EnvelopeError):
                    federation.server.refuse(own, delivery, None)
                    continue
                self.account.uploaded(own.sender, delivery.size)
                yield own, delivery

    def _prepared(self, exchange: Exchange[Any], senders: Sequence[str]) -> Iterator[str]:
        """The senders, their features of the common extractor computed some clients at a time."""
        anchor = getattr(self.method, "anchor", None)
        for begin in range(0, len(senders), _TOGETHER):
            names = senders[begin : begin + _TOGETHER]
            clients = [self.roster.client(name) for name in names]
            if anchor is not None and exchange.kind == "anchor":
                anchor.embed_together([client.images for client in clients])
            yield from names

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
            vectors[name], digested = exchange.vector(self.roster.client(name), own)
            noted.append((own, digested))
        federation.enter(noted)
        total = federation.masked.add(vectors, context, bound=exchange.bound)
        for name, spent in total.traffic.items():
            self.account.uploaded(name, spent.up)
            self.account.downloaded(name, spent.down)
        return total

    def finish(self, number: int, members: Sequence[str]) -> list[str]:
        """Train the local baselines of those that took part."""
        for name in members if self._baselines else ():
            self.roster.baseline(name, at_work=True).train(number)
        return list(members)

    def evaluate(self, number: int, names: Sequence[str]) -> ControlFigures:
        """Read these clients on the test set."""
        for name in names:
            baseline = self.roster.baseline(name) if self._baselines else None
            self._enter(number, name, self._evaluator.of(self.roster.client(name), baseline))
        return self._evaluator.control()

    def _enter(self, number: int, name: str, measured: Accuracies) -> None:
        self.figures.enter(number, name, measured)
        self.account.of(name)  # its state has changed

    def remark(self, record: RoundRecord, problem: str) -> None:
        """Add the timeline of a round with devices."""
        if self._clock:
            record.clock, self._clock = self._clock, []

    def close(self, number: int) -> None:
        """Empty the inbox, if uploads are sealed, and forget weights of the round before."""
        self.federation.transport.close(number)
        self.roster.forget_old()
