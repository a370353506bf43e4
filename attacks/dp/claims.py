"""Claims of a run's privacy, and what makes a claim invalid, measured or not.

Claims, and how much may leak, are also read from TOML as a user writes them.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails

from fedvtc_edge.config import Config, read_toml
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.privacy.accountant import MAX_EPSILON
from fedvtc_edge.privacy.claim import NEIGHBOURS, UNITS, Claim
from fedvtc_edge.privacy.mechanism import mechanism_of

_EXAMPLE = 'epsilon = 4.0, delta = 1e-5, unit = "example", neighbouring = "add/remove"'
_GDP = re.compile(r"\bgdp\b|\bclt\b|gaussian.?(dp|differential)", re.IGNORECASE)


def claim_of_run(config: Config) -> Claim | None:
    """Claim of a run by its own settings; None where it claims nothing."""
    mechanism = mechanism_of(config)
    return None if mechanism is None else mechanism.claim


def reasons_against(claim: Claim, config: Config | None = None) -> list[str]:
    """Why a claim is invalid, whatever an audit of it measures.

    A claim that is merely too small for the noise is refuted by attacks; these are claims
    that mean nothing, or that the settings themselves contradict.

    Args:
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


def _inherent(claim: Claim) -> list[str]:
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


def _contradictions(claim: Claim, config: Config) -> list[str]:
    """What the run's own settings say against it."""
    found, mechanism = [], mechanism_of(config)
    protected = mechanism is not None and mechanism.protects_models
    if config.method.share == "features+decoder" and not protected:
        found.append("decoders, trained on the data, were sent without noise and account")
    if mechanism is None:
        return [*found, "the run adds no noise: its privacy.mode is 'none'"]
    unit = mechanism.unit
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
        relation = claim.neighbouring or "add/remove"
        least = mechanism.least_epsilon(claim.delta, relation)
        if claim.epsilon < least:
            found.append(
                f"epsilon {claim.epsilon:g} is less than the run's noise gives: "
                f"{_upward(least)} at delta {claim.delta:g} for neighbours by {relation}"
            )
    return found


def _upward(epsilon: float) -> str:
    """To four digits, so that whoever claims what is printed claims enough."""
    if not math.isfinite(epsilon):
        return "none that can be shown"
    step = 10.0 ** (math.floor(math.log10(epsilon)) - 3) if epsilon > 0 else 1.0
    return f"{math.ceil(epsilon / step) * step:.6g}"


@with_config(ConfigDict(allow_inf_nan=False))
@dataclass(frozen=True)
class Thresholds:
    """Limits of what may leak; None leaves one to the auditor.

    Args:
        max_identification: Share of records told from same-class decoys.
        max_membership_tpr: True-positive rate of membership at 1 % false positives.
    """

    max_identification: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    max_membership_tpr: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    max_epsilon: Annotated[float, Field(strict=True, gt=0, le=MAX_EPSILON)] | None = None


_LIMITS = [field.name for field in fields(Thresholds)]


def read_claim(path: Path) -> tuple[Claim | None, Thresholds]:
    """Read what is claimed of a run, and what may leak.

    What a claim leaves out is no error here: it makes the claim invalid, and
    :func:`~fedvtc_edge.attacks.dp.claims.reasons_against` says so.

    Args:
        path: A TOML file with the keys of :class:`Claim` and of :class:`Thresholds`.

    Returns:
        The claim, None where only thresholds are given, and the thresholds.

    Raises:
        ConfigError: Unreadable or too large a file, an unknown key, a wrong type or a value
            out of range, or a claim without an ε.
    """
    document = read_toml(path)
    limits = {key: document.pop(key) for key in _LIMITS if key in document}
    try:
        thresholds = TypeAdapter(Thresholds).validate_python(limits)
        if limits and not document:
            return None, thresholds
        return TypeAdapter(Claim).validate_python(document), thresholds
    except ValidationError as error:
        raise _explain(path, error.errors(), document) from None


def _explain(path: Path, errors: list[ErrorDetails], document: dict[str, Any]) -> ConfigError:
    # A misspelt key is also a missing one: the misspelling is what the user can see.
    first = next((e for e in errors if e["type"] == "unexpected_keyword_argument"), errors[0])
    key = str(first["loc"][0])
    known = [*(field.name for field in fields(Claim)), *_LIMITS]
    if first["type"] == "unexpected_keyword_argument":
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
