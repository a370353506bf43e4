"""What every record read back from a run's files is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
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
