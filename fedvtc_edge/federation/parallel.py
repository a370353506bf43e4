"""The local engine with several processes: clients of a cohort train at the same time.

A process does one client's work at a time, and no client's draws depend on another's: results are
the same bits with any number of processes. Exchanges, ledger and records stay with the process
that was started; it reads weights from the same files that a checkpoint names.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from fedvtc_edge.config import Config
from fedvtc_edge.data import Dataset
from fedvtc_edge.privacy.release_store import ReleaseStore
from fedvtc_edge.runs.checkpoint import encode
from fedvtc_edge.runs.records import Accuracies

from .evaluation import ControlFigures, TestSet
from .exchange import RoundStep
from .local import LocalExecutor
from .methods import Method
from .participation import ParticipationSimulator
from .processes import ProcessPool
from .rounds import evaluates
from .worker import ARRAYS


class WorkerPool(ProcessPool):
    """Processes that do the work of clients, and a folder of what they share.

    Args:
        number: Of processes, each of which loads torch at once.

    Attributes:
        folder: Shared files: data, published statistics, and releases of a run without a
            directory.
    """

    def __init__(self, number: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fedvtc-"))
        self._shared = 0
        super().__init__("fedvtc_edge.federation.worker", number)

    def __exit__(self, *_: object) -> None:
        super().__exit__(*_)
        shutil.rmtree(self.folder, ignore_errors=True)

    def set_up(
        self,
        config: Config,
        data: Dataset,
        run: str,
        *,
        weights: Path,
        releases: Path | None,
        baselines: bool,
    ) -> None:
        """Tell all processes what the run is.

        Args:
            run: Its public name.
            weights: Folder of clients' weights.
            releases: Folder of the run, where releases are kept; None is a shared one.
            baselines: Whether local baselines are trained.
        """
        for name in ARRAYS:
            array = getattr(data, name)
            if array is not None:
                np.save(self.folder / f"{name}.npy", array)
        setup = {
            "config": config.model_dump(mode="json", exclude_none=True),
            "run": run,
            "class_names": data.class_names,
            "data": str(self.folder),
            "weights": str(weights.absolute()),
            "releases": str((releases or self.folder).absolute()),
            "baselines": baselines,
        }
        self.tell(setup)

    def share(self, published: Mapping[str, bytes]) -> str:
        """Write what was published, for jobs to name; the file of before goes."""
        before, self._shared = self._shared, self._shared + 1
        path = self.folder / f"published-{self._shared}.safetensors"
        path.write_bytes(encode({}, published, {}))
        (self.folder / f"published-{before}.safetensors").unlink(missing_ok=True)
        return str(path)


class ParallelExecutor(LocalExecutor):
    """Clients of the local engine in several processes; exchanges go on in this one.

    Args:
        pool: Was set up for the same run.
        method: Of a federation whose clients are a :class:`~fedvtc_edge.federation.roster.Roster`.
        test: Read after each round.
        baselines: Whether local baselines are trained beside the clients that take part.
        attendance: Who takes part in which round.
    """

    def __init__(
        self,
        pool: WorkerPool,
        method: Method,
        test: TestSet,
        *,
        baselines: bool,
        attendance: ParticipationSimulator,
    ) -> None:
        super().__init__(method, test, baselines=baselines, attendance=attendance)
        self._pool = pool
        self._number = 0
        self._published: dict[str, bytes] | None = None
        self._file = ""
        self._finished: set[str] = set()
        self._measured: dict[str, Accuracies] = {}
        self._times: dict[str, float] = {}

    def invite(self, number: int, cohort: Sequence[str]) -> list[str]:
        """Begin a round; who of its cohort takes part, in order."""
        self._number, self._finished, self._measured = number, set(), {}
        return super().invite(number, cohort)

    def work(self, index: int, step: RoundStep, members: Sequence[str]) -> None:
        """Let the members work; with their last step they do what ends a round, too."""
        if step.work is None:
            return
        steps = self.method.steps(self._number)
        last = index == len(steps) - 1 and step.exchange is None
        self._do(members, step=index, last=last)

    def finish(self, number: int, members: Sequence[str]) -> list[str]:
        """Train the local baselines of those that took part."""
        self._do([name for name in members if name not in self._finished], last=True)
        return list(members)

    def evaluate(self, number: int, names: Sequence[str]) -> ControlFigures:
        """Read these clients on the test set."""
        self._do([name for name in names if name not in self._measured], measure=True)
        for name in names:
            self._enter(number, name, self._measured[name])
        return self._evaluator.control()

    def _do(
        self,
        names: Sequence[str],
        *,
        step: int | None = None,
        last: bool = False,
        measure: bool = False,
    ) -> None:
        """Jobs of some clients in one step of the round.

        Args:
            last: Whether nothing that they learn comes between this and the round's end.
        """
        baseline = last and self._baselines
        measure = measure or (last and evaluates(self.config, self._number))
        if not names or (step is None and not baseline and not measure):
            return
        if self._published != self.method.published:
            self._published = dict(self.method.published)
            self._file = self._pool.share(self._published)

        def job(name: str) -> dict[str, Any]:
            weights = self.roster.keep(name)
            seconds, samples = self.roster.spent(name)
            return {
                "client": name,
                "weights": weights,
                "seconds": seconds,
                "samples": samples,
                "published": self._file,
                "round": self._number,
                "step": step,
                "baseline": baseline,
                "measure": measure,
            }

        def taken(job: dict[str, Any], reply: dict[str, Any]) -> None:
            name = job["client"]
            seconds, _ = self.roster.spent(name)
            if step is not None:
                self._times[self._kind(name)] = reply["seconds"] - seconds
            self.roster.replace(name, reply["weights"], reply["seconds"], reply["samples"])
            if reply["weights"]:
                self.roster.weights.take_up(reply["weights"])
            self.account.of(name)
            if last:
                self._finished.add(name)
            if reply["measured"] is not None:
                self._measured[name] = cast(Accuracies, reply["measured"])

        # What takes longest first, or one process would be left alone with it at the end.
        order = sorted(names, key=lambda name: -self._times.get(self._kind(name), 0.0))
        self._pool.run(map(job, order), taken)

    def _kind(self, name: str) -> str:
        return self.roster.members[name].architecture


def releases_of(folder: Path | None, pool: WorkerPool | None) -> ReleaseStore:
    """Releases of a run, where its processes keep them too.

    Args:
        folder: The run directory, or None.
        pool: The processes, or None.
    """
    return ReleaseStore(folder or (pool.folder if pool else None))
