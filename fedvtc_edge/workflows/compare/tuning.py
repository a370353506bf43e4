"""Fair tuning: the same small search over each method's main number, on validation data.

The test set is not read: ``data.evaluate = "validation"`` takes a part of the training data in its
place. The seed of the search is none that is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fedvtc_edge.runs.comparisons import TuningRecord

from .cells import Cell, CellStore
from .plan import Plan, Row, Table
from .rows import same_number_as
from .tables import Results

Do = Callable[[Sequence[Cell]], None]


def tune(plan: Plan, results: Results, store: CellStore, do: Do) -> None:
    """Try each method's numbers, and put the best ones into the plan's rows.

    Ablations of a method take its number, so that they differ from it in nothing else.

    Args:
        plan: Its rows are replaced.
        results: Told of each choice.
        do: Works on cells, whose results are in ``store`` afterwards.
    """
    tried = {
        (table.label, table.alpha, row.name): _cells(table, row, seed_of(plan))
        for table, row in plan.rows()
    }
    do([cell for cells in tried.values() for cell in cells])
    for table, row in list(plan.rows()):
        cells = tried.get((table.label, table.alpha, same_number_as(row.name)), [])
        choice = _choice(row, cells, store)
        if choice is not None:
            results.tuned[table.label, table.alpha, row.name] = choice
            changed = row.config.replace(method={"knob": choice.chosen})
            table.rows[row.name] = replace(row, config=changed)


def tried_cells(plan: Plan) -> list[Cell]:
    """Runs of the search, of all rows."""
    return [cell for table, row in plan.rows() for cell in _cells(table, row, seed_of(plan))]


def seed_of(plan: Plan) -> int:
    """Seed of the search: the smallest that is not reported."""
    return next(seed for seed in range(len(plan.seeds) + 1) if seed not in plan.seeds)


def _cells(table: Table, row: Row, seed: int) -> list[Cell]:
    """One run for each value; none where there is nothing to choose or a value is set."""
    knob = row.method.knob
    if knob is None or row.config.method.knob is not None or same_number_as(row.name) != row.name:
        return []
    base = row.config.replace(seed=seed, data={"evaluate": "validation"})
    values = dict.fromkeys((knob.default, *knob.tuned_over))
    return [table.cell(row.name, base.replace(method={"knob": value}), "tune") for value in values]


def _choice(row: Row, cells: Sequence[Cell], store: CellStore) -> TuningRecord | None:
    """The value of the highest accuracy; of equal ones the default, else the smallest."""
    knob = row.method.knob
    known = [(cell.config.method.knob, store.read(cell)) for cell in cells]
    accuracy = {
        value: result["figures"]["accuracy_mean"]
        for value, result in known
        if value is not None and result is not None and "figures" in result
    }
    if knob is None or not accuracy:
        return None
    order = sorted(accuracy, key=lambda value: (value != knob.default, value))
    best = max(order, key=lambda value: accuracy[value])
    return TuningRecord(
        chosen=best,
        meaning=knob.meaning,
        seed=cells[0].seed,
        accuracy={f"{value:g}": accuracy[value] for value in sorted(accuracy)},
    )
