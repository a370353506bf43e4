"""What every record read back from a run's files is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]


def _none_told(value: Any) -> Any:
    """Clients that are elsewhere need not tell: null is as good as nothing."""
    return [] if value is None else value


Counts = Annotated[list[Count], BeforeValidator(_none_told)]
Outcome = Literal["done", "late", "dropped", "unreachable"]


class Record(BaseModel):
    """What every record read from a run has in common: unknown keys are left alone."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


class Line(Record):
    """One client in one turn; seconds, one after another."""

    outcome: Outcome
    download: Amount
    compute: Amount
    upload: Amount
    wait: Amount = 0.0


class ClockRecord(Record):
    """One round, or one call before the first, of all clients that it was for."""

    begin: Amount
    end: Amount
    void: str = ""
    clients: dict[str, Line]

    @model_validator(mode="after")
    def _forward(self) -> ClockRecord:
        if self.end < self.begin:
            raise ValueError(f"it ends at {self.end:g}, before it begins")
        return self


def _seed_accuracy(value: Any) -> Any:
    """A seed's result may be the bare accuracy or a record that holds it."""
    return value.get("accuracy_mean") if isinstance(value, dict) else value


class MethodRecord(Record):
    """One method of ``comparison.json``, over all seeds."""

    accuracy_mean: Fraction | None = None
    accuracy_std: Amount | None = None
    accuracy_worst: Fraction | None = None
    accuracy_absent_classes: Fraction | None = None
    accuracy_calibrated: Fraction | None = None
    accuracy_control: Fraction | None = None
    upload_bytes_total: Amount | None = None
    seconds: Amount | None = None
    per_seed: list[Annotated[Fraction | None, BeforeValidator(_seed_accuracy)]] = Field(
        default_factory=list
    )


class Comparison(Record):
    """``comparison.json``: the same data and budget for every method."""

    data: str | None = None
    alpha: Amount | None = None
    seeds: list[int] = Field(default_factory=list)
    methods: dict[str, MethodRecord]


class ClientRecord(Record):
    """One client at the end of a run; accuracies are fractions on the global test set."""

    id: str
    architecture: str | None = None
    device: str | None = None
    samples: Count | None = None
    class_counts: Counts = Field(default_factory=list)
    classes_present: Count | None = None
    accuracy: Fraction | None = None
    accuracy_local_only: Fraction | None = None
    accuracy_absent_classes: Fraction | None = None
    accuracy_absent_classes_local_only: Fraction | None = None
    accuracy_calibrated: Fraction | None = None
    upload_bytes: Count | None = None
    download_bytes: Count | None = None
    peak_memory_mb: Amount | None = None
    seconds: Amount | None = None
    seconds_virtual: Amount | None = None
    rounds_missed: dict[str, Count] | None = None
    took_part: bool | None = None
    parameters: Count | None = None


class Summary(Record):
    """``summary.json``: every key but ``clients`` may be missing or null."""

    version: str | None = None
    seed: int | None = None
    method: str | None = None
    data: str | None = None
    evaluated_on: str | None = None
    home: bool = False
    share: str | None = None
    moments: str | None = None
    engine: str | None = None
    device: str | None = None
    rounds: Count | None = None
    alpha: Amount | None = None
    partition: str | None = None
    clients: list[ClientRecord]
    accuracy_mean: Fraction | None = None
    accuracy_worst: Fraction | None = None
    accuracy_local_only_mean: Fraction | None = None
    accuracy_absent_classes_mean: Fraction | None = None
    accuracy_calibrated_mean: Fraction | None = None
    accuracy_control: Fraction | None = None
    gain: float | None = None
    upload_bytes_total: Count | None = None
    download_bytes_total: Count | None = None
    epsilon: Amount | None = None
    delta: Amount | None = None
    privacy_unit: str | None = None
    privacy_mechanism: str | None = None
    privacy_covers: str | None = None
    seconds: Amount | None = None
    seconds_virtual: Amount | None = None
    notes: list[str] = Field(default_factory=list)
    samples_per_second: Amount | None = None
    class_names: list[str] = Field(default_factory=list)
    uploads: list[str] | None = None

    @property
    def classes(self) -> list[str]:
        """Every class by name, or by number where the run gave no names."""
        width = max((len(client.class_counts) for client in self.clients), default=0)
        return self.class_names or [str(label) for label in range(width)]


LABELS = {
    "accuracy_mean": "own model",
    "accuracy_calibrated_mean": "combined",
    "accuracy_control": "statistics only (no training)",
    "accuracy_local_only_mean": "local only",
}
"""What users read of a run's four accuracies; always side by side, for one alone misleads."""


class RoundRecord(Record):
    """One line of ``metrics.jsonl``; bytes and seconds are those of this round alone."""

    round: Count
    accuracy_mean: Fraction | None = None
    accuracy_calibrated_mean: Fraction | None = None
    accuracy_local_only_mean: Fraction | None = None
    seconds: Amount | None = None
    void: str = ""
    clients: list[ClientRecord] = Field(default_factory=list)
    clock: list[ClockRecord] = Field(default_factory=list)
