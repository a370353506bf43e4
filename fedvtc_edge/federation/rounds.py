"""The embedded engine: every client in turn, in this process, checkpointed per round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from fedvtc_edge.models.tensors import from_tensors, to_tensors
from fedvtc_edge.progress import Progress
from fedvtc_edge.runs.directory import Checkpoint
from fedvtc_edge.training.client import Client

from .cohort import drawn
from .evaluation import TestSet, averages, evaluate
from .methods import Method
from .participation import ParticipationSimulator, RoundParticipation, attended

Keep = Callable[[Checkpoint], None]


class LocalEngine:
    """Runs the rounds of one method.

    Args:
        method: What happens in a round.
        baselines: Local-only doubles of the clients; trained beside them as the control.
        test: Read after each round.
        attendance: Who takes part in which round.
        keep: Called with the state after each round.
        progress: Told of each round.
    """

    def __init__(
        self,
        method: Method,
        baselines: Sequence[Client],
        test: TestSet,
        *,
        attendance: ParticipationSimulator | None = None,
        keep: Keep,
        progress: Progress,
    ) -> None:
        self.method = method
        self.federation = method.federation
        self.baselines = baselines
        self.test = test
        self.attendance = attendance or ParticipationSimulator(method, {})
        self.records: list[dict[str, Any]] = []
        self._keep = keep
        self._progress = progress
        self._earlier: dict[str, Any] = {}

    @property
    def account(self) -> dict[str, Any]:
        """Running totals: seconds, images and bytes per client."""
        traffic = self.federation.traffic
        return {
            client.id: {
                "seconds": client.seconds,
                "samples": client.samples_seen,
                "up": traffic[client.id].up,
                "down": traffic[client.id].down,
            }
            for client in self.federation.clients
        }

    def restore(self, state: Checkpoint) -> None:
        """Continue after ``state``'s round.

        Raises:
            RunError: The checkpoint is of other networks.
        """
        from_tensors(
            state.tensors,
            self._modules(),
            whose="the checkpoint",
            hint="was an architecture changed? start a new run",
        )
        for client in self.federation.clients:
            spent = state.account[client.id]
            client.seconds, client.samples_seen = spent["seconds"], spent["samples"]
            traffic = self.federation.traffic[client.id]
            traffic.up, traffic.down = spent["up"], spent["down"]
        self.records = list(state.records)
        self.attendance.resume(self.records)
        self.method.done = len(self.records)
        self.method.restore(state.published)

    def run(self) -> None:
        """All rounds that are not done yet."""
        rounds = self.federation.config.method.rounds
        done = len(self.records)
        self._progress.start(rounds, "rounds")
        for record in self.records:
            self._progress.advance(_note(record))
        for number in range(done + 1, rounds + 1):
            before, begin = self.account, time.perf_counter()
            opening = self._open() if number == 1 else []
            cohort = drawn(self.federation.config, self.federation.clients, number)
            turn = self.attendance.round(number, cohort)
            self.federation.missing = turn.missing
            if turn.present:
                self.method.round(number, turn.present)
            self.method.done = number
            members = {client.id for client in turn.present}
            for baseline in self.baselines:
                if baseline.id in members:
                    baseline.train(number)
            self._finish_round(number, opening, turn, before, time.perf_counter() - begin)

    def _open(self) -> list[RoundParticipation]:
        present, turns = self.attendance.opening()
        self.federation.missing = len(self.federation.clients) - len(present)
        self.method.open(present)
        return turns

    def _finish_round(
        self,
        number: int,
        opening: Sequence[RoundParticipation],
        turn: RoundParticipation,
        before: dict[str, Any],
        seconds: float,
    ) -> None:
        clients, control = evaluate(self.method, self.baselines, self.test)
        after, members = self.account, {client.id for client in turn.present}
        for record in clients:
            old, new = before[record["id"]], after[record["id"]]
            record["took_part"] = record["id"] in members
            record["upload_bytes"] = new["up"] - old["up"]
            record["download_bytes"] = new["down"] - old["down"]
            record["seconds"] = round(new["seconds"] - old["seconds"], 4)
            record["epsilon"] = self.method.epsilon()
        record = {
            "round": number,
            **averages(clients),
            "accuracy_control": control,
            "seconds": round(seconds, 4),
            "clients": clients,
        }
        if turn.record is not None:
            record["clock"] = [*(one.record for one in opening), turn.record]
        self.records.append(record)
        tensors = to_tensors(self._modules())
        self._keep(Checkpoint(number, self.records, self.method.published, after, tensors))
        self.federation.transport.close(number)
        self._progress.advance(_note(record))

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        for client in self.federation.clients:
            modules[f"{client.id}/classifier"] = client.model
            if client.decoder is not None:
                modules[f"{client.id}/decoder"] = client.decoder
        for baseline in self.baselines:
            modules[f"{baseline.id}/local"] = baseline.model
        return modules


def _note(record: dict[str, Any]) -> str:
    parts = [
        f"{label} {100 * record[key]:.1f} %"
        for label, key in (
            ("f_k", "accuracy_mean"),
            ("calibrated", "accuracy_calibrated_mean"),
            ("control", "accuracy_control"),
            ("local-only", "accuracy_local_only_mean"),
        )
        if record.get(key) is not None
    ]
    return ", ".join(parts + attended(record))
