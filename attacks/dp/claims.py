"""What a run claims of its privacy, and what makes any claim invalid, measured or not."""

from __future__ import annotations

import math
import re

from fedvtc_edge.config import Config
from fedvtc_edge.errors import PrivacyError
from fedvtc_edge.privacy import plan
from fedvtc_edge.privacy.accountant import MIN_DELTA, Step, epsilon_spent
from fedvtc_edge.privacy.schedule import schedule_of

from .claim_file import NEIGHBOURS, Claim, Thresholds, read_claim

__all__ = ["Claim", "Thresholds", "claim_of_run", "least_epsilon", "read_claim", "reasons_against"]

_GDP = re.compile(r"\bgdp\b|\bclt\b|gaussian.?(dp|differential)", re.IGNORECASE)


def claim_of_run(config: Config) -> Claim | None:
    """What a run claims by its own settings; None where it claims nothing."""
    said = plan.claim_of(config)
    if said is None:
        return None
    return Claim(
        epsilon=said.epsilon,
        delta=config.privacy.delta,
        unit=_unit(config),
        neighbouring="add/remove",
        mechanism=said.mechanism,
        accountant="PRV or RDP" if config.privacy.mode == "example" else "exact",
    )


def reasons_against(claim: Claim, config: Config | None = None) -> list[str]:
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


def _steps(config: Config) -> list[Step]:
    """Noise multiplier, sampling rate and number of all that one unit goes through."""
    if config.privacy.mode == "example":
        schedule = schedule_of(config)
        rounds = schedule.rounds
        steps = schedule.steps(
            schedule.noise_multiplier, trained=rounds, painted=rounds, released=schedule.releases
        )
        return [step for step in steps if step[2]]
    design = plan.design_of(config, 2)  # neither noise nor clip depend on the classes
    assert design is not None
    return [(design.noise_multiplier, 1.0, design.releases)]


def _unit(config: Config) -> str:
    return "client" if config.privacy.mode == "client" else "example"


def _upward(epsilon: float) -> str:
    """To four digits, so that whoever claims what is printed claims enough."""
    if not math.isfinite(epsilon):
        return "none that can be shown"
    step = 10.0 ** (math.floor(math.log10(epsilon)) - 3) if epsilon > 0 else 1.0
    return f"{math.ceil(epsilon / step) * step:.6g}"
