"""Participation in a round: drawn from the public seed, and present by the virtual clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from fedvtc_edge.config import Config
from fedvtc_edge.devices import DeviceProfile
from fedvtc_edge.devices.clock import DeviceJob, Speed, Visit, closing, visit
from fedvtc_edge.errors import ServerError
from fedvtc_edge.federation.workload import StepCosts, Workload
from fedvtc_edge.masking import threshold_of
from fedvtc_edge.runs.records import ClockRecord, Line, RoundRecord
from fedvtc_edge.seeding import generator
from fedvtc_edge.training.client import Client

from .methods import Method
from .roster import ids_of
from .server import quorum_of

CALLS = 3
"""How often the opening calls a client that did not answer: what it knows is missed for good."""

_DIGITS = 6
"""Of a second: what a timeline is written with."""

_T = TypeVar("_T")


def drawn(config: Config, clients: Sequence[_T], number: int) -> list[_T]:
    """A fixed share of the clients, drawn anew in each round, in their order.

    Args:
        clients: All of them, or their ids.
        number: Round, from 1; in round 0 everybody is drawn.
    """
    if number == 0:
        return list(clients)
    order = torch.randperm(len(clients), generator=generator(config.seed, "cohort", number))
    return [clients[index] for index in sorted(order[: config.clients.per_round].tolist())]


@dataclass(frozen=True)
class RoundParticipation:
    """Participants of one round.

    Args:
        present: Ids of those that take part in all of it, in order.
        record: The round's part of the timeline, for metrics.jsonl; None without devices.
    """

    present: list[str]
    record: ClockRecord | None = None


class ParticipationSimulator:
    """Simulates each round on the virtual clock before it is run, and leaves out who would miss it.

    A client that misses a round has done nothing in it that counts: neither its upload
    nor its training. Without profiles everybody takes part and no time passes.

    Args:
        method: Knows what a round asks of a client.
        profiles: Devices by client id; all of the federation's clients, or nobody.
    """

    def __init__(self, method: Method, profiles: Mapping[str, DeviceProfile]) -> None:
        self._method = method
        self._config = method.federation.config
        self._profiles = profiles
        self._speeds = {name: Speed.training(profile) for name, profile in profiles.items()}
        self._costs = StepCosts()
        self.now = 0.0
        """Simulated seconds since the start of the run."""

    def resume(self, record: RoundRecord | None) -> None:
        """Set the clock to where the last round's record left it."""
        if self._profiles and record is not None:
            self.now = record.clock[-1].end

    def opening(self) -> tuple[list[str], list[RoundParticipation]]:
        """Everybody is called, and who does not answer is called again.

        Returns:
            Ids of clients that take part in the opening, in order; and one turn per call.

        Raises:
            ServerError: Too few answer.
        """
        clients = self._method.federation.clients
        everybody = ids_of(clients)
        if not self._profiles or not self._travels(0):
            return everybody, []
        turns: list[RoundParticipation] = []
        heard: set[str] = set()
        while len(heard) < len(everybody) and len(turns) < CALLS:
            absent = (client for client in clients if client.id not in heard)
            turns.append(self._play(0, absent, call=len(turns)))
            heard |= set(turns[-1].present)
        present = [name for name in everybody if name in heard]
        problem = self._too_few(len(present), len(everybody))
        if problem:
            raise ServerError(
                f"the opening failed after {CALLS} calls: {problem}",
                hint="lower server.quorum, or give devices a longer deadline_s",
            )
        return present, turns

    def round(self, number: int, cohort: Sequence[Client]) -> RoundParticipation:
        """Members of a round's cohort that finish it; nobody, where too few do."""
        if not self._profiles:
            return RoundParticipation(ids_of(cohort))
        turn = self._play(number, cohort)
        assert turn.record is not None
        problem = "" if turn.present else "nobody took part"
        if self._travels(number):
            problem = self._too_few(len(turn.present), len(cohort))
        turn.record.void = problem
        return RoundParticipation([], turn.record) if problem else turn

    def _play(self, number: int, cohort: Iterable[Client], *, call: int = 0) -> RoundParticipation:
        seed, visits, workload = self._config.seed, {}, Workload(self._method, number)
        for client in cohort:
            load = workload.of(client)
            compute = self._costs.seconds(client, load.tasks, self._speeds[client.id])
            stream = generator(seed, client.id, number, "clock", call)
            job = DeviceJob(load.down, compute, load.up)
            visits[client.id] = visit(self._profiles[client.id], job, stream)
        begin, length = self.now, closing(visits.values())
        self.now = round(begin + length, _DIGITS)  # as it is read back after a restart
        present = [name for name, one in visits.items() if one.outcome == "done"]
        lines = {name: _line(one, length) for name, one in visits.items()}
        return RoundParticipation(
            present, ClockRecord(begin=begin, end=self.now, void="", clients=lines)
        )

    def _travels(self, number: int) -> bool:
        """Whether the round has an upload, which a quorum is about."""
        return Workload(self._method, number).up > 0

    def _too_few(self, present: int, expected: int) -> str:
        """Why so few cannot close a round; empty where they can."""
        share = self._config.server.quorum
        least = 1 if share is None else quorum_of(share, expected)
        if self._config.transport.masking:
            least = max(least, threshold_of(self._config.smallest_sum))
        return f"{present} of {expected} clients, the quorum is {least}" * (present < least)


def _line(one: Visit, length: float) -> Line:
    """A client's stretch of the timeline, in seconds."""
    return Line(
        outcome=one.outcome,
        download=round(one.download, _DIGITS),
        compute=round(one.compute, _DIGITS),
        upload=round(one.upload, _DIGITS),
        wait=round(length - one.busy if one.outcome == "done" else 0.0, _DIGITS),
    )


def add_turn(spent: dict[str, Any], line: Line) -> None:
    """Add a client's stretch of the timeline to its totals: seconds at work, turns missed."""
    spent["busy"] = spent.get("busy", 0.0) + line.busy
    missed = spent.setdefault("missed", {})
    if line.outcome != "done":
        missed[line.outcome] = missed.get(line.outcome, 0) + 1
