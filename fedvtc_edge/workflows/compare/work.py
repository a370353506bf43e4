"""Work on the cells of a comparison, in this process or in several, with the time left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from fedvtc_edge.federation.processes import ProcessPool
from fedvtc_edge.progress import Progress
from fedvtc_edge.runs.records import mean

from .cells import Cell, CellStore, Result
from .worker import Workplace, job_of

PROCESS = "fedvtc_edge.workflows.compare.process"

Taken = Callable[[Cell, Result], None]


class Work:
    """Processes that work on cells, kept from one batch of cells to the next; a context.

    Args:
        workers: Cells at the same time. One is worked here, more in a process each.
        store: Whence finished cells come and where new ones go.
    """

    def __init__(self, workers: int, store: CellStore, progress: Progress) -> None:
        self._workers, self._store, self._progress = workers, store, progress
        self._held = ExitStack()
        self._pool: ProcessPool | None = None
        self._here = Workplace()

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def do(self, cells: Sequence[Cell], what: str, taken: Taken | None = None) -> None:
        """Work on those cells that have no result yet.

        Args:
            what: Name of the batch, for progress.
            taken: Told of each new result when it is kept, if anybody is to be.
        """
        known = self._store.known(cells)
        left = [cell for cell in cells if cell not in known]
        times = _Times(known, left, min(self._workers, max(1, len(left))))
        self._progress.start(len(left), what)
        if known:
            self._progress.say(f"{what}: {len(known)} of {len(cells)} were done before")

        def keep(cell: Cell, result: Result) -> None:
            self._store.write(cell, result)
            if taken is not None:
                taken(cell, result)
            self._progress.advance(f"{cell.title}: {_told(result)}{times.after(cell, result)}")

        if self._workers == 1 or len(left) < 2:
            for cell in left:
                keep(cell, self._here.do(job_of(cell, self._store.folder)))
            return
        jobs = {str(place): cell for place, cell in enumerate(left)}
        pool = self._processes()
        pool.run(
            ({**job_of(cell, self._store.folder), "name": name} for name, cell in jobs.items()),
            lambda job, reply: keep(jobs[job["name"]], reply),
        )

    def _processes(self) -> ProcessPool:
        if self._pool is None:
            self._pool = self._held.enter_context(ProcessPool(PROCESS, self._workers))
            self._pool.tell({})
        return self._pool


class _Times:
    """Time left, from what finished cells took: those of the same row count first."""

    def __init__(self, known: dict[Cell, Result], left: Sequence[Cell], workers: int) -> None:
        self._left, self._workers = set(left), workers
        self._took: dict[tuple[str, ...], list[float]] = {}
        for cell, result in known.items():
            self._note(cell, result)

    def _note(self, cell: Cell, result: Result) -> None:
        for key in self._keys(cell):
            self._took.setdefault(key, []).append(float(result["seconds"]))

    @staticmethod
    def _keys(cell: Cell) -> list[tuple[str, ...]]:
        # Methods differ more than data sets do: the same row elsewhere says more than other rows.
        kind, data, row = cell.kind, cell.data, cell.row
        return [(kind, data, row), (kind, "", row), (kind, data), (kind,), ()]

    def after(self, cell: Cell, result: Result) -> str:
        """Time left after a cell, in words; empty after the last."""
        self._note(cell, result)
        self._left.discard(cell)
        if not self._left:
            return ""
        each = (
            next((mean(self._took[key]) for key in self._keys(one) if key in self._took), None)
            for one in self._left
        )
        seconds = sum(value or 0.0 for value in each) / self._workers
        return f"; about {_span(seconds)} left"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _told(result: Result) -> str:
    """A result in few words."""
    if "refused" in result:
        return "refused"
    figures: dict[str, Any] = result["figures"]
    if "verdict" in figures:
        return str(figures["verdict"])
    return f"{100 * figures['accuracy_mean']:.1f} %"
