"""Results of cells as tables: ``comparison.json`` and ``comparison.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace

from fedvtc_edge.runs.comparisons import Comparison, MethodRecord, TableRecord, TuningRecord
from fedvtc_edge.runs.intervals import deviation, interval
from fedvtc_edge.runs.records import RECALL_DECIMALS, mean

from .cells import Cell, CellStore, Result
from .plan import Plan, Row, Table


class Results:
    """Results of a comparison so far.

    Args:
        plan: What it is made of; rows may be replaced as they are tuned.
        tuned: Choices by label of the data set, alpha and row.
    """

    def __init__(self, plan: Plan, store: CellStore) -> None:
        self.plan, self._store = plan, store
        self.tuned: dict[tuple[str, float | None, str], TuningRecord] = {}
        self._cells: dict[tuple[str, float | None, str], list[Cell]] = {}

    def cells(self, table: Table, row: Row) -> list[Cell]:
        """Reported runs of a row, one for each seed; settled when they are first asked for."""
        key = (table.label, table.alpha, row.name)
        if key not in self._cells:
            each = [row.config.replace(seed=seed) for seed in self.plan.seeds]
            self._cells[key] = [table.cell(row.name, config) for config in each]
        return self._cells[key]

    def all_cells(self) -> list[Cell]:
        """Reported runs of all rows that can run."""
        return [cell for table, row in self.plan.rows() for cell in self.cells(table, row)]

    def audit(self, table: Table, row: Row) -> Cell:
        """The audit of a row's first seed."""
        return replace(self.cells(table, row)[0], kind="audit")

    def complete(self, cell: Cell) -> bool:
        """Whether every seed of a reported run's row is done."""
        cells = self._cells.get((cell.data, cell.alpha, cell.row), [])
        return all(self._store.read(one) is not None for one in cells)

    def comparison(self) -> Comparison:
        """Rows of which every seed is done, and those that cannot run."""
        tables = [self._table(table) for table in self.plan.tables]
        if len(tables) == 1:
            whole = Comparison.model_validate(tables[0].document())
        else:
            whole = Comparison(seeds=list(self.plan.seeds), tables=tables)
        if self.plan.left_out:
            whole.left_out = self.plan.left_out
        return whole

    def csv(self) -> bytes:
        """One line for each figure of each reported run that is done."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(("data", "alpha", "method", "seed", "metric", "value"))
        for table, row in self.plan.rows():
            for cell in self.cells(table, row):
                result = self._store.read(cell) or {}
                for name, value in result.get("figures", {}).items():
                    if value is not None:
                        alpha = "" if table.alpha is None else repr(table.alpha)
                        lines.writerow((table.label, alpha, row.name, cell.seed, name, repr(value)))
        return text.getvalue().encode()

    def _table(self, table: Table) -> TableRecord:
        methods = {}
        for row in table.rows.values():
            record = self._record(table, row)
            if record is not None:
                methods[row.name] = record
        evaluated = next(iter(table.rows.values())).config.data.evaluate
        return TableRecord(
            data=table.label,
            alpha=table.alpha,
            seeds=list(self.plan.seeds),
            evaluated_on=evaluated,
            samples=table.samples,
            class_names=list(table.class_names),
            methods=methods,
        )

    def _record(self, table: Table, row: Row) -> MethodRecord | None:
        """A row as it is reported; None while a seed is not done."""
        if row.refused:
            return MethodRecord(refused=row.refused)
        found = [self._store.read(cell) for cell in self.cells(table, row)]
        results = [result for result in found if result is not None]
        if len(results) < len(found):
            return None
        refused = [result["refused"] for result in results if "refused" in result]
        if len(refused) == len(results):
            return MethodRecord(refused=refused[0])
        record = over_seeds(results)
        record.rounds = row.config.method.rounds
        record.ceiling = row.shares == "data"
        record.trains = row.method.trains
        record.shares = row.shares
        knob = row.config.method.knob
        if row.method.knob is not None:
            record.knob = row.method.knob.default if knob is None else knob
        audit = self._store.read(self.audit(table, row)) or {}
        record.leakage = audit.get("figures", {}).get("verdict")
        record.leakage_reason = audit.get("figures", {}).get("reason", audit.get("refused"))
        choice = self.tuned.get((table.label, table.alpha, row.name))
        if choice is not None:
            record.tuning = choice
        return record


def over_seeds(results: Sequence[Result]) -> MethodRecord:
    """Means and spreads over seeds; of seeds that were refused there is nothing.

    Args:
        results: One for each seed.
    """
    each = [result.get("figures", {}) for result in results]
    figures: dict[str, list[float]] = {}
    for one in each:
        for name, value in one.items():
            known = figures.setdefault(name, [])
            if value is not None:
                known.append(value)
    accuracies = figures["accuracy_mean"]
    low, high = interval(accuracies) or (None, None)
    spreads = {name: deviation(values) for name, values in figures.items()}
    recalls = [result["recall_mean"] for result in results if result.get("recall_mean")]
    return MethodRecord.model_validate(
        {
            **{name: mean(values) for name, values in figures.items()},
            "accuracy_std": spreads["accuracy_mean"],
            "accuracy_low": low,
            "accuracy_high": high,
            "per_seed": [one.get("accuracy_mean") for one in each],
            "std": {name: spread for name, spread in spreads.items() if spread is not None},
            "recall_mean": _over_classes(recalls) if recalls else None,
        }
    )


def _over_classes(recalls: Sequence[Sequence[float | None]]) -> list[float | None]:
    means = [mean(of_class) for of_class in zip(*recalls, strict=True)]
    return [None if value is None else round(value, RECALL_DECIMALS) for value in means]
