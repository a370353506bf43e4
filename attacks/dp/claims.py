"""What a run claims of its privacy, and what makes any claim invalid, measured or not."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from fedvtc_edge.config import Config, read_toml
from fedvtc_edge.errors import ConfigError, PrivacyError
from fedvtc_edge.privacy import mechanism as plan
from fedvtc_edge.privacy.accountant import MAX_EPSILON, MIN_DELTA, ComposedStep, epsilon_spent
from fedvtc_edge.privacy.mechanism import schedule_of

__all__ = [
    "PrivacyClaim",
    "Thresholds",
    "claim_of_run",
    "least_epsilon",
    "read_claim",
    "reasons_against",
]

_GDP = re.compile(r"\bgdp\b|\bclt\b|gaussian.?(dp|differential)", re.IGNORECASE)


def claim_of_run(config: Config) -> PrivacyClaim | None:
    """What a run claims by its own settings; None where it claims nothing."""
    said = plan.claim_of(config)
    if said is None:
        return None
    return PrivacyClaim(
        epsilon=said.epsilon,
        delta=config.privacy.delta,
        unit=_unit(config),
        neighbouring="add/remove",
        mechanism=said.mechanism,
        accountant="PRV or RDP" if config.privacy.mode == "example" else "exact",
    )


def reasons_against(claim: PrivacyClaim, config: Config | None = None) -> list[str]:
    """Why a claim is invalid, whatever an audit of it measures.

    A claim that is merely too small for the noise is refuted by attacks; these are claims
    that mean nothing, or that the settings themselves contradict.

    Args:
        claim: Anybody's.
        config: The settings of the run that it is about; None looks at the claim alone.

    Returns:
        Sentences; none for a claim that is worth an audit.
    """
    missing = [
        f"it does not say its {name}"
        for name, value in (
            ("delta", claim.delta),
            ("unit", claim.unit),
            ("neighbouring relation", claim.neighbouring),
            ("mechanism", claim.mechanism),
        )
        if value in (None, "")
    ]
    return missing + _inherent(claim) + ([] if config is None else _contradictions(claim, config))


def _inherent(claim: PrivacyClaim) -> list[str]:
    """What no run could mend."""
    found = {
        "statistics of a batch (BatchNorm) mix the examples that DP-SGD must tell apart": (
            claim.batch_norm
        ),
        "a decoder that saw the data is not in the ledger": claim.decoder_outside_ledger,
        "the clip bound is taken from the data, and tells of them": claim.clip_from_data,
        "the Gaussian-DP accountant's approximation is no upper bound on epsilon": (
            _GDP.search(claim.accountant or "") is not None
        ),
        "Gaussian noise keeps no epsilon at delta 0": claim.gaussian and claim.delta == 0,
    }
    return [reason for reason, applies in found.items() if applies]


def _contradictions(claim: PrivacyClaim, config: Config) -> list[str]:
    """What the run's own settings say against it."""
    found, unit, mode = [], _unit(config), config.privacy.mode
    if config.method.share == "features+decoder" and mode != "example":
        found.append("decoders, trained on the data, were sent without noise and account")
    if mode == "none":
        return [*found, "the run adds no noise: its privacy.mode is 'none'"]
    if claim.unit not in (None, "", unit):
        found.append(f"its unit is one {claim.unit}, the run's noise is for one {unit}")
    clients, population = config.clients.count, config.privacy.population
    number = clients if (claim.unit or unit) == "client" else population
    if claim.delta is not None and claim.delta > 1 / number:
        found.append(
            f"delta {claim.delta:g} is above 1/{number}: it would allow to publish "
            f"somebody's data outright"
        )
    elif claim.delta is not None and not found:
        least = least_epsilon(config, claim.delta, claim.neighbouring or NEIGHBOURS[0])
        if claim.epsilon < least:
            relation = claim.neighbouring or NEIGHBOURS[0]
            found.append(
                f"epsilon {claim.epsilon:g} is less than the run's noise gives: "
                f"{_upward(least)} at delta {claim.delta:g} for neighbours by {relation}"
            )
    return found


def least_epsilon(config: Config, delta: float, neighbouring: str) -> float:
    """The least ε that may be said of a private run; its accountant's.

    Replacing one unit moves sums by twice the bound: what was released in full is accounted
    with half of its noise. Of sampled steps that would be too much, so that they count as
    if nothing were replaced: the result is never more than what must be claimed.

    Args:
        config: With a privacy mode.
        delta: δ; infinity comes of one below 1e-300.
        neighbouring: ``add/remove`` or ``replace``.
    """
    steps = _steps(config)
    doubled = [(noise / 2, rate, number) for noise, rate, number in steps if rate == 1.0]
    histories = [steps, doubled] if neighbouring == "replace" else [steps]
    if delta < MIN_DELTA:
        return math.inf
    try:
        return max(epsilon_spent(history, delta) for history in histories)
    except PrivacyError:  # no ε up to 1000
        return math.inf


def _steps(config: Config) -> list[ComposedStep]:
    """Noise multiplier, sampling rate and number of all that one unit goes through."""
    if config.privacy.mode == "example":
        schedule = schedule_of(config)
        rounds = schedule.rounds
        steps = schedule.steps(
            schedule.noise_multiplier, trained=rounds, painted=rounds, released=schedule.releases
        )
        return [step for step in steps if step[2]]
    spec = plan.release_spec_of(config, 2)  # neither noise nor clip depend on the classes
    assert spec is not None
    return [(spec.noise_multiplier, 1.0, spec.releases)]


def _unit(config: Config) -> str:
    return "client" if config.privacy.mode == "client" else "example"


def _upward(epsilon: float) -> str:
    """To four digits, so that whoever claims what is printed claims enough."""
    if not math.isfinite(epsilon):
        return "none that can be shown"
    step = 10.0 ** (math.floor(math.log10(epsilon)) - 3) if epsilon > 0 else 1.0
    return f"{math.ceil(epsilon / step) * step:.6g}"


# ---------------------------------------------------------------- section
# A claim, and how much may leak; as Python has them, and as a user writes them in TOML.

UNITS = ("example", "client")
NEIGHBOURS = ("add/remove", "replace")

_EXAMPLE = 'epsilon = 4.0, delta = 1e-5, unit = "example", neighbouring = "add/remove"'
_GAUSSIAN = re.compile(r"(discrete[ -])?gaussian", re.IGNORECASE)


@dataclass(frozen=True)
class PrivacyClaim:
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


def read_claim(path: Path) -> tuple[PrivacyClaim | None, Thresholds]:
    """Read what is claimed of a run, and what may leak.

    What a claim leaves out is no error here: it makes the claim invalid, and
    :func:`~fedvtc_edge.attacks.dp.claims.reasons_against` says so.

    Args:
        path: A TOML file with the keys of :class:`PrivacyClaim` and of :class:`Thresholds`.

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
        return PrivacyClaim(**_Claimed.model_validate(document).model_dump()), thresholds
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
