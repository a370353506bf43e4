"""Cells that a comparison is made of, and what cannot run, decided before any work."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvtc_edge.config import ComparedData, Config
from fedvtc_edge.data import Dataset, load_data, partition
from fedvtc_edge.errors import DataError, FedVTCError, MissingExtra
from fedvtc_edge.federation.methods import Method
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.seeding import derive_seed

from .cells import Cell, alone_in
from .rows import row, rows_of

ROOT = "FEDVTC_DATA"
"""Environment variable with the folder of data sets, where ``data.root`` is empty."""


@dataclass(frozen=True)
class Row:
    """One method of one table.

    Args:
        config: Its settings, of whatever seed.
        shares: Content of the clients' uploads.
        refused: Why it cannot run here; empty if it can.
    """

    name: str
    method: type[Method]
    config: Config
    shares: str
    refused: str = ""


@dataclass(frozen=True)
class Table:
    """One data set and split.

    Args:
        label: Of the data set; no other of the comparison has it.
        samples: Training images.
    """

    label: str
    alpha: float | None
    samples: int
    class_names: tuple[str, ...]
    rows: dict[str, Row] = field(default_factory=dict)

    def cell(self, name: str, config: Config, kind: Any = "score") -> Cell:
        """One run of this table."""
        return Cell(kind, self.label, self.alpha, name, config)


@dataclass(frozen=True)
class Plan:
    """All tables of a comparison.

    Args:
        left_out: Data sets that cannot be had, by their labels, and why.
    """

    seeds: tuple[int, ...]
    tables: list[Table]
    left_out: dict[str, str]

    def rows(self) -> Iterator[tuple[Table, Row]]:
        """Every row of every table that can run."""
        for table in self.tables:
            for found in table.rows.values():
                if not found.refused:
                    yield table, found


def plan(config: Config) -> Plan:
    """The plan of a comparison.

    A method that cannot run on a data set is a row that says why, and a data set that is not
    there is left out; where nothing is left, a reason is the error.

    Raises:
        UsageError: An unknown row.
        FedVTCError: No row can run.
    """
    names = rows_of(config)
    for name in names:
        row(name, config)  # a wrong word is told before anything is read
    tables: list[Table] = []
    left_out: dict[str, str] = {}
    errors: list[FedVTCError] = []
    chosen = config.compare.datasets
    for label, changes, alphas in _data_sets(config):
        base = config.replace(data=changes)
        made = [_rows(base.replace(data={"alpha": alpha}), names, errors) for alpha in alphas]
        if all(one.refused for rows in made for one in rows.values()):
            raise errors[0]
        try:
            data = load_data(base)
        except (DataError, MissingExtra) as error:
            if not chosen:
                raise
            left_out[label] = _reason(error)
            errors.append(error)
            continue
        for alpha, rows in zip(alphas, made, strict=True):
            drawn = alpha if base.data.partition == "dirichlet" else None
            shown = label if chosen else data.name
            try:
                _deal(base.replace(data={"alpha": alpha}), data)
            except FedVTCError as error:
                left_out[f"{shown}, α {alpha:g}"] = _reason(error)
                errors.append(error)
                continue
            tables.append(Table(shown, drawn, len(data.y_train), data.class_names, rows))
    if not tables:
        raise errors[-1]
    return Plan(config.compare.seeds, tables, left_out)


def _deal(config: Config, data: Dataset) -> None:
    """Deal the data out as the first run will: whether there is enough does not hang on a seed.

    Raises:
        FedVTCError: It cannot be done.
    """
    partition(
        data.y_train,
        clients=config.clients.count,
        classes=data.classes,
        settings=config.data,
        seed=derive_seed(config.compare.seeds[0], "partition"),
    )


def _reason(error: FedVTCError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)


def _rows(config: Config, names: tuple[str, ...], errors: list[FedVTCError]) -> dict[str, Row]:
    """Rows of one table; errors of those that cannot run are added to ``errors``."""
    found = {}
    for name in names:
        kind, changes = row(name, config)
        refused, own = "", config
        try:
            own = alone_in(config.replace(**changes))
            check(own, "local")
        except FedVTCError as error:
            errors.append(error)
            refused = str(error)
        found[name] = Row(name, kind, own, kind.shared(own), refused)
    return found


def _data_sets(config: Config) -> Iterator[tuple[str, dict[str, Any], tuple[float, ...]]]:
    """Label, changes of ``[data]`` and alphas of each data set."""
    settings = config.compare
    root = config.data.root or os.environ.get(ROOT, "")
    sets = settings.datasets or (ComparedData(name=config.data.name),)
    names = Counter(one.name for one in sets)
    labels = Counter[str]()
    for one in sets:
        changes = one.model_dump(exclude_none=True, exclude={"alphas"})
        label = Path(one.name).stem or one.name
        if names[one.name] > 1:
            limit = config.data.limit if one.limit is None else one.limit
            label += f" {limit}" if limit else " (all)"
        labels[label] += 1
        label += f" #{labels[label]}" if labels[label] > 1 else ""
        alphas = one.alphas or settings.alphas or (config.data.alpha,)
        drawn = alphas if config.data.partition == "dirichlet" else alphas[:1]
        yield label, {"root": root, **changes}, drawn
