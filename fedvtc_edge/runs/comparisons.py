"""Records of ``comparison.json``: methods on the same data, split and budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from .records import SCHEMA, Amount, Count, Fraction, Recalls, Record


def _seed_accuracy(value: Any) -> Any:
    """A seed's result may be the bare accuracy or a record that holds it."""
    return value.get("accuracy_mean") if isinstance(value, dict) else value


class TuningRecord(Record):
    """Choice of a method's main number on validation data.

    Accuracies are by value, on a part of the training data and with a seed that is not reported.
    """

    chosen: float
    meaning: str | None = None
    seed: int | None = None
    accuracy: dict[str, Fraction | None] = Field(default_factory=dict)


class MethodRecord(Record):
    """One method of a table: means over seeds; ``per_seed`` is of ``accuracy_mean``."""

    accuracy_mean: Fraction | None = None
    accuracy_std: Amount | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    accuracy_worst: Fraction | None = None
    accuracy_absent_classes: Fraction | None = None
    accuracy_calibrated: Fraction | None = None
    accuracy_control: Fraction | None = None
    accuracy_own_distribution: Fraction | None = None
    accuracy_own_distribution_calibrated: Fraction | None = None
    accuracy_own_distribution_control: Fraction | None = None
    accuracy_home: Fraction | None = None
    accuracy_home_calibrated: Fraction | None = None
    accuracy_home_control: Fraction | None = None
    accuracy_held_out: Fraction | None = None
    accuracy_held_out_calibrated: Fraction | None = None
    accuracy_held_out_control: Fraction | None = None
    upload_bytes_total: Amount | None = None
    upload_bytes_per_client: Amount | None = None
    download_bytes_total: Amount | None = None
    decoder_bytes: Amount | None = None
    decoder_seconds: Amount | None = None
    seconds: Amount | None = None
    peak_memory_mb: Amount | None = None
    per_seed: list[Annotated[Fraction | None, BeforeValidator(_seed_accuracy)]] = Field(
        default_factory=list
    )
    std: dict[str, Amount] = Field(default_factory=dict)
    recall_mean: Recalls | None = None
    rounds: Count | None = None
    ceiling: bool = False
    trains: bool = True
    shares: str | None = None
    knob: float | None = None
    tuning: TuningRecord | None = None
    refused: str | None = None
    leakage: str | None = None
    leakage_reason: str | None = None


class TableRecord(Record):
    """One data set and split: the same data and budget for every method."""

    data: str | None = None
    alpha: Amount | None = None
    seeds: list[int] = Field(default_factory=list)
    evaluated_on: str | None = None
    samples: Count | None = None
    class_names: list[str] = Field(default_factory=list)
    methods: dict[str, MethodRecord] = Field(default_factory=dict)


class Comparison(TableRecord):
    """``comparison.json``: one table, or a list of them where data sets or splits are several."""

    tables: list[TableRecord] = Field(default_factory=list)
    left_out: dict[str, str] = Field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The content of ``comparison.json``."""
        return {"schema": SCHEMA, **super().document()}

    @property
    def each(self) -> list[TableRecord]:
        """All tables that hold a method, in order."""
        return [table for table in (self.tables or [self]) if table.methods]

    def rows(self) -> Iterator[tuple[TableRecord, str, MethodRecord]]:
        """Every method of every table."""
        for table in self.each:
            for name, method in table.methods.items():
                yield table, name, method
