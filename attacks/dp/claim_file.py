"""A claim, and how much may leak; as Python has them, and as a user writes them in TOML."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from fedvtc_edge.config import read_toml
from fedvtc_edge.errors import ConfigError, PrivacyError
from fedvtc_edge.privacy.accountant import MAX_EPSILON

UNITS = ("example", "client")
NEIGHBOURS = ("add/remove", "replace")

_EXAMPLE = 'epsilon = 4.0, delta = 1e-5, unit = "example", neighbouring = "add/remove"'
_GAUSSIAN = re.compile(r"(discrete[ -])?gaussian", re.IGNORECASE)


@dataclass(frozen=True)
class Claim:
    """(ε, δ), and of what.

    Args:
        epsilon: ε, above 0 and at most 1000.
        delta: δ in [0, 1); None where it is not said.
        unit: ``example`` or ``client``.
        neighbouring: ``add/remove`` or ``replace``.
        mechanism: In words that begin with its name, such as ``Gaussian`` or ``DP-SGD``.
        accountant: By what ε was computed.
        clip_from_data: Whether the clip bound is computed from the data.
        batch_norm: Whether a network with BatchNorm is trained under DP-SGD.
        decoder_outside_ledger: Whether a decoder is trained on data, or sent, without account.

    Raises:
        PrivacyError: An ε or δ that is no such number.
    """

    epsilon: float
    delta: float | None
    unit: str | None
    neighbouring: str | None
    mechanism: str | None
    accountant: str | None = None
    clip_from_data: bool = False
    batch_norm: bool = False
    decoder_outside_ledger: bool = False

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
        """Whether it is of plain Gaussian noise, whose curve is known exactly."""
        return _GAUSSIAN.match(self.mechanism or "") is not None


@dataclass(frozen=True)
class Thresholds:
    """What may leak at most; None leaves it to the auditor.

    Args:
        max_identification: Share of records told from same-class decoys.
        max_membership_tpr: True-positive rate of membership at 1 % false positives.
        max_epsilon: Lower bound on ε.
    """

    max_identification: float | None = None
    max_membership_tpr: float | None = None
    max_epsilon: float | None = None


class _Claimed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    epsilon: float = Field(gt=0, le=MAX_EPSILON)
    delta: float | None = Field(default=None, ge=0, lt=1)
    unit: Literal["example", "client"] | None = None
    neighbouring: Literal["add/remove", "replace"] | None = None
    mechanism: str | None = Field(default=None, max_length=400)
    accountant: str | None = Field(default=None, max_length=400)
    clip_from_data: bool = False
    batch_norm: bool = False
    decoder_outside_ledger: bool = False


class _Limits(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    max_identification: float | None = Field(default=None, ge=0, le=1)
    max_membership_tpr: float | None = Field(default=None, ge=0, le=1)
    max_epsilon: float | None = Field(default=None, gt=0, le=MAX_EPSILON)


def read_claim(path: Path) -> tuple[Claim | None, Thresholds]:
    """Read what is claimed of a run, and what may leak.

    What a claim leaves out is no error here: it makes the claim invalid, and
    :func:`~fedvtc_edge.attacks.dp.claims.reasons_against` says so.

    Args:
        path: A TOML file of the keys of :class:`Claim` and :class:`Thresholds`, side by side.

    Returns:
        The claim, None where only thresholds are given, and the thresholds.

    Raises:
        ConfigError: Unreadable or too large a file, an unknown key, a wrong type or a value
            out of range, or a claim without an ε.
    """
    document = read_toml(path)
    limits = {key: document.pop(key) for key in _Limits.model_fields if key in document}
    try:
        thresholds = Thresholds(**_Limits.model_validate(limits).model_dump())
        if limits and not document:
            return None, thresholds
        return Claim(**_Claimed.model_validate(document).model_dump()), thresholds
    except ValidationError as error:
        raise _explain(path, error.errors(), document) from None


def _explain(path: Path, errors: list[ErrorDetails], document: dict[str, Any]) -> ConfigError:
    # A misspelt key is also a missing one: the misspelling is what the user can see.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = str(first["loc"][0])
    known = [*_Claimed.model_fields, *_Limits.model_fields]
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{path}: unknown key {key}", hint=_near(key, known, "keys"))
    if first["type"] == "missing":
        return ConfigError(
            f"{path}: {key} is missing",
            hint="without it nothing is claimed; thresholds may stand alone",
        )
    problem = f"{path}: {key} = {first['input']!r:.80}"
    if first["type"] == "literal_error":
        words = list(UNITS if key == "unit" else NEIGHBOURS)
        return ConfigError(
            f"{problem}: expected {' or '.join(words)}",
            hint=_near(str(document[key]), words, "values"),
        )
    expected = first["msg"].removeprefix("Input should be ")
    return ConfigError(f"{problem}: expected {expected}", hint=f"written like this: {_EXAMPLE}")


def _near(word: str, known: list[str], what: str) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"valid {what}: {', '.join(known)}"
