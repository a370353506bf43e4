"""Rows of a comparison by name: every method, and FedVTC with some settings changed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from fedvtc_edge.config import Config
from fedvtc_edge.errors import UsageError
from fedvtc_edge.federation.methods import Method
from fedvtc_edge.plugins import METHODS

Tables = dict[str, dict[str, Any]]
"""Changes of settings, by table and key."""


@dataclass(frozen=True)
class Variant:
    """FedVTC with some settings changed.

    Args:
        text: What it is, in words.
        method: Changes of ``[method]``.
        clients: Changes of ``[clients]``.
        every_round: Whether something is exchanged in each round.
    """

    text: str
    method: Mapping[str, Any] = field(default_factory=dict)
    clients: Mapping[str, Any] = field(default_factory=dict)
    every_round: bool = False


_SHARING = {
    "fedvtc-features": Variant(
        "FedVTC as its summary has it: statistics of own features",
        {"share": "features"},
        every_round=True,
    ),
    "fedvtc-decoder": Variant(
        "FedVTC as its reviews have it: own features, and decoders averaged",
        {"share": "features+decoder"},
        every_round=True,
    ),
}
_MOMENTS = {
    "fedvtc-diagonal": Variant(
        "FedVTC, anchored, per-class means and stds",
        {"share": "anchored", "moments": "diagonal"},
    ),
    "fedvtc-covariance": Variant(
        "FedVTC, anchored, pooled covariance", {"share": "anchored", "moments": "covariance"}
    ),
}
_ABLATIONS = {
    "fedvtc-head-only": Variant("ablation: fine-tune the head only", {"ablate": ["head-only"]}),
    "fedvtc-no-dm": Variant("ablation: no distribution matching", {"ablate": ["dm"]}),
    "fedvtc-no-kl": Variant("ablation: no KL pull", {"ablate": ["kl"]}),
    "fedvtc-no-teacher": Variant("ablation: no teacher", {"ablate": ["teacher"]}),
    "fedvtc-no-synthesis": Variant(
        "ablation: no synthesis, own images labelled by the teacher", {"ablate": ["synthesis"]}
    ),
}


def _of_width(number: str) -> Variant:
    return Variant(f"FedVTC with a latent of {number}", {"latent": int(number)})


def _of_cohort(number: str) -> Variant:
    share = float(number)
    return Variant(f"FedVTC with {number} of the clients per round", clients={"cohort": share})


_NUMBERED = (
    (re.compile(r"fedvtc-latent-([1-9][0-9]{0,3})"), _of_width),
    (re.compile(r"fedvtc-cohort-(0\.[0-9]{1,6}|1)"), _of_cohort),
)
_NUMBERED_ABLATIONS = (
    *("fedvtc-latent-16", "fedvtc-latent-256"),
    *("fedvtc-cohort-0.5", "fedvtc-cohort-0.1"),
)

ABLATIONS = (*_ABLATIONS, *_NUMBERED_ABLATIONS)
"""Rows that ``compare.ablations`` adds."""


def methods_by_name() -> dict[str, str]:
    """Names of rows and what they are: every method, and variants of FedVTC.

    Latents and cohorts may have other numbers than those that stand here.
    """
    single = {name: (METHODS.find(name).__doc__ or name) for name in METHODS.names()}
    variants = {**_SHARING, **_MOMENTS, **_ABLATIONS}
    variants |= {name: found for name in _NUMBERED_ABLATIONS if (found := _variant(name))}
    return {name: text.strip().splitlines()[0] for name, text in single.items()} | {
        name: variant.text for name, variant in variants.items()
    }


def rows_of(config: Config) -> tuple[str, ...]:
    """Names of a comparison's rows: those that are asked for, or all methods; and ablations."""
    settings = config.compare
    names = settings.methods or (*METHODS.names(), *_SHARING)
    return tuple(dict.fromkeys((*names, *(ABLATIONS if settings.ablations else ()))))


def row(name: str, config: Config) -> tuple[type[Method], Tables]:
    """Method of a row, and what it changes in the settings.

    Where something is exchanged in every round there are ``compare.rounds`` rounds, with as many
    gradient steps in all as FedVTC takes in ``method.rounds``. FedVTC's own variants of that kind
    spread their steps likewise, as far as whole epochs can be.

    Raises:
        UsageError: No method and no variant has that name.
    """
    variant = _variant(name)
    own = "fedvtc" if variant else name
    if own not in METHODS.names():
        raise _unknown(name)
    method: dict[str, Any] = {"name": own, **(variant.method if variant else {})}
    if own != config.method.name:
        method["knob"] = None  # it is set for another method
    changes: Tables = {"method": method, "clients": dict(variant.clients if variant else {})}
    kind = cast(type[Method], METHODS.find(own))
    if variant.every_round if variant else kind.every_round:
        changes["training"] = _spread(config, own)
        method["rounds"] = config.compare.rounds
    return kind, changes


def same_number_as(name: str) -> str:
    """Row whose main number a row takes: FedVTC's for its variants with the same messages."""
    return "fedvtc" if name not in _SHARING and _variant(name) else name


def _spread(config: Config, own: str) -> dict[str, Any]:
    """Changes of ``[training]`` by which more rounds take as many steps."""
    training, rounds = config.training, config.method.rounds
    if own != "fedvtc":
        return {"matched_rounds": training.matched_rounds or rounds}
    share = rounds / config.compare.rounds
    return {
        "epochs": max(1, round(training.epochs * share)),
        "decoder_steps": max(1, round(training.decoder_steps * share)),
    }


def _variant(name: str) -> Variant | None:
    """FedVTC's variant of that name, or None."""
    found = {**_SHARING, **_MOMENTS, **_ABLATIONS}.get(name)
    for pattern, make in _NUMBERED:
        if match := pattern.fullmatch(name):
            found = make(match[1])
    return found


def _unknown(name: str) -> UsageError:
    known = methods_by_name()
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"methods: {', '.join(known)};"
    return UsageError(
        f"unknown method {name!r}", hint=f"{hint} one of your own needs --plugin FILE.py"
    )
