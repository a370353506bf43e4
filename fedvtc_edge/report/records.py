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


class Turn(Record):
    """One round, or one call before the first, of all clients that it was for."""

    begin: Amount
    end: Amount
    void: str = ""
    clients: dict[str, Line]

    @model_validator(mode="after")
    def _forward(self) -> Turn:
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
