"""A claim of differential privacy: (ε, δ), and of what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, with_config

from fedvtc_edge.errors import PrivacyError

from .accountant import MAX_EPSILON

UNITS = {
    "example": "one training example of one client, added or removed",
    "client": "one client with all of its data, added or removed",
}
"""What an ε protects, in words: the unit and the neighbouring relation of a run's own noise."""

NEIGHBOURS = {"add/remove": 1, "replace": 2}
"""Neighbouring relations, and how many units' bounds neighbours differ by."""

_GAUSSIAN = re.compile(r"(discrete[ -])?gaussian", re.IGNORECASE)

_Words = Annotated[str, Field(strict=True, max_length=400)]
_Flag = Annotated[bool, Field(strict=True)]


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
@dataclass(frozen=True)
class Claim:
    """Claim about a run's privacy: by its own mechanism, or by anybody else.

    pydantic reads one from a file with the same keys and ranges.

    Args:
        epsilon: ε, above 0 and at most 1000.
        delta: δ in [0, 1); None where it is not said.
        unit: ``example`` or ``client``.
        neighbouring: ``add/remove`` or ``replace``.
        mechanism: In words that begin with its name, such as ``Gaussian`` or ``DP-SGD``.
        clip_from_data: Whether the clip bound is computed from the data.
        batch_norm: Whether a network with BatchNorm is trained under DP-SGD.
        decoder_outside_ledger: Whether a decoder is trained on data, or sent, without account.

    Raises:
        PrivacyError: An ε or δ that is no such number.
    """

    epsilon: Annotated[float, Field(strict=True, gt=0, le=MAX_EPSILON)]
    delta: Annotated[float, Field(strict=True, ge=0, lt=1)] | None = None
    unit: Literal["example", "client"] | None = None
    neighbouring: Literal["add/remove", "replace"] | None = None
    mechanism: _Words | None = None
    accountant: _Words | None = None
    clip_from_data: _Flag = False
    batch_norm: _Flag = False
    decoder_outside_ledger: _Flag = False

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= MAX_EPSILON:
            raise PrivacyError(
                f"a claim of epsilon {self.epsilon}, expected above 0 to {MAX_EPSILON:g}",
                hint="claim the epsilon that the noise was calibrated for",
            )
        if self.delta is not None and not 0 <= self.delta < 1:
            raise PrivacyError(
                f"a claim of delta {self.delta}, expected 0 to below 1",
                hint="below one over the number of units",
            )

    @property
    def gaussian(self) -> bool:
        """True if it is of plain Gaussian noise, whose curve is known exactly."""
        return _GAUSSIAN.match(self.mechanism or "") is not None
