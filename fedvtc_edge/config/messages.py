"""Messages of refused settings: each one sentence and a hint, with the value got and expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails, PydanticCustomError

from fedvtc_edge.errors import ConfigError

_NOISE = (
    "noise is calibrated, never typed",
    "set privacy.epsilon and privacy.delta; fedvtc_edge.privacy.noise_for says how much it is",
)
_RATE = (
    "a rate of a client's own size would tell that size",
    "it follows from training.batch, clients.count and privacy.population",
)
REFUSED = {
    "privacy.noise": _NOISE,
    "privacy.noise_multiplier": _NOISE,
    "privacy.sigma": _NOISE,
    "privacy.sample_rate": _RATE,
    "privacy.sampling_rate": _RATE,
    "privacy.accountant": (
        "there is no choice of one, for the Gaussian-DP approximation is no upper bound",
        "leave it out: releases compose exactly, sampled steps by PRV or RDP",
    ),
    "privacy.max_grad_norm": ("the bound has another name here", "set privacy.clip"),
}
"""Keys that other tools have and that no honest claim could be made with: reason and hint."""


def refuse(reason: str, hint: str) -> PydanticCustomError:
    """For validators: what is wrong beyond types and ranges, and what to do."""
    return PydanticCustomError("refused", "{reason}", {"reason": reason, "hint": hint})


def explain(error: ErrorDetails, root: type[BaseModel]) -> ConfigError:
    """The refusal that the user reads.

    Args:
        root: The table of all tables, where names are looked for.
    """
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        return _unknown_key(location, root)
    if error["type"] == "missing":
        return ConfigError(
            f"{key} is not given", hint="see docs/configuration.md for every key and its type"
        )
    value = repr(error["input"])
    got = f"{key} = {value if len(value) <= 80 else value[:77] + '...'}"
    if error["type"] == "refused":
        return ConfigError(f"{got}: {error['ctx']['reason']}", hint=error["ctx"]["hint"])
    text = error["msg"].removeprefix("Input should be ")
    # A TOML author knows tables and lists, not pydantic's names for them.
    expected = {"tuple_type": "a list", "model_type": "a table", "model_attributes_type": "a table"}
    return ConfigError(
        f"{got}: expected {expected.get(error['type'], text)}",
        hint="see docs/configuration.md for every key, its type and its range",
    )


def _unknown_key(location: list[str], root: type[BaseModel]) -> ConfigError:
    if ".".join(location) in REFUSED:
        reason, hint = REFUSED[".".join(location)]
        return ConfigError(f"{'.'.join(location)} is not a setting: {reason}", hint=hint)
    table = _table_at(location[:-1], root)
    prefix = "".join(f"{part}." for part in location[:-1])
    key, valid = location[-1], sorted(table.model_fields)
    # The right word in the wrong table is as common as a slip of the hand, and an exact
    # name says more than a similar one: method.alpha means data.alpha, not method.latent.
    near = [
        f"{name}.{key}"
        for name, field in root.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and key in field.annotation.model_fields
    ]
    cutoff = 0.8 if near else 0.5
    near += [f"{prefix}{name}" for name in difflib.get_close_matches(key, valid, 1, cutoff)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"valid keys: {', '.join(valid)}"
    return ConfigError(f"unknown key {prefix}{key}", hint=hint)


def _table_at(location: Sequence[str], root: type[BaseModel]) -> type[BaseModel]:
    """The table that a path of keys leads to; numbers are places in a list of tables."""
    table = root
    for part in location:
        if part in table.model_fields:
            table = next(_tables(table.model_fields[part].annotation), table)
    return table


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """Tables that a type speaks of, itself or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _tables(inner)
