"""Records of a document that anyone may have written, checked by the types of their fields.

A device checks one manifest. pydantic would do it too, for 9 MB of a session's 88 and a third of
the CPU time of ``classify`` (docs/decisions/0046).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

Check = Callable[[Any], Any]
"""Gives a value as it is kept, or raises FieldError."""

_WORDS: dict[Any, str] = {str: "text", int: "a whole number", bool: "true or false"}


class FieldError(ValueError):
    """A field that is missing or holds what it may not; the message begins with its place."""

    def __init__(self, problem: str, *where: str) -> None:
        super().__init__(": ".join(part for part in (".".join(where), problem) if part))
        self.problem, self.where = problem, where

    def inside(self, key: object) -> FieldError:
        """This error with a key put in front of its place."""
        return FieldError(self.problem, str(key)[:80], *self.where)


# ---------------------------------------------------------------- limits of a type


def between(low: float, high: float = math.inf) -> Check:
    """Numbers from ``low`` to ``high``, both included."""
    upper = "" if high == math.inf else f" to {high}"
    return _where(lambda value: low <= value <= high, f"{low}{upper or ' or more'}")


def inside(low: float, high: float) -> Check:
    """Numbers above ``low`` and below ``high``."""
    return _where(lambda value: low < value < high, f"above {low} and below {high}")


def matching(pattern: str) -> Check:
    """Texts that are all of a pattern."""
    found = re.compile(pattern)
    return _where(lambda value: found.fullmatch(value) is not None, f"text like {pattern}")


def sized(least: int, most: int) -> Check:
    """Texts and lists of ``least`` to ``most`` characters or items."""
    return _where(lambda value: least <= len(value) <= most, f"{least} to {most} of them")


def _where(holds: Callable[[Any], bool], words: str) -> Check:
    def check(value: Any) -> Any:
        if not holds(value):
            raise FieldError(f"{value!r:.40}, expected {words}")
        return value

    return check


# ---------------------------------------------------------------- types


def _check_of(hint: Any) -> Check:
    """The check that a field's type asks for; nothing is converted but lists and numbers."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: value
    if origin is Annotated:
        checks = [_check_of(inner[0]), *inner[1:]]
        return lambda value: functools.reduce(lambda kept, check: check(kept), checks, value)
    if origin is Literal:
        return functools.partial(_literal, inner)
    if origin in (Union, UnionType):
        return functools.partial(_union, [(one, _check_of(one)) for one in inner])
    if origin is dict:
        return functools.partial(_table, *map(_check_of, inner))
    if origin is tuple:
        return functools.partial(_list, _check_of(inner[0]))
    if hint is float:
        return _number
    if isinstance(hint, type) and issubclass(hint, Record):
        return lambda value: value if isinstance(value, hint) else hint.read(value)
    if hint in (*_WORDS, NoneType):
        return functools.partial(_exactly, hint)
    raise TypeError(f"no check for {hint!r}")


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:  # True is an int to isinstance
        raise FieldError(f"{value!r:.40}, expected {_WORDS.get(kind, 'null')}")
    return value


def _number(value: Any) -> float:
    # NumPy's float64 is a float and becomes one; True is an int to isinstance.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FieldError(f"{value!r:.40}, expected a number")
    return float(value)


def _literal(choices: tuple[Any, ...], value: Any) -> Any:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise FieldError(f"{value!r:.40}, expected {' or '.join(map(repr, choices))}")
    return value


def _union(checks: list[tuple[Any, Check]], value: Any) -> Any:
    errors = []
    for kind, check in checks:
        try:
            return check(value)
        except FieldError as error:
            errors += [error] if kind is not NoneType else []
    if len(errors) > 1:
        words = [error.problem.rpartition("expected ")[2] for error in errors]
        raise FieldError(f"{value!r:.40}, expected {' or '.join(words)}")
    raise errors[0]


def _table(key_check: Check, check: Check, value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise FieldError(f"{value!r:.40}, expected an object")
    return {_at(key, key_check, key): _at(key, check, one) for key, one in value.items()}


def _list(check: Check, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise FieldError(f"{value!r:.40}, expected a list")
    return tuple(_at(index, check, one) for index, one in enumerate(value))


def _at(key: object, check: Check, value: Any) -> Any:
    try:
        return check(value)
    except FieldError as error:
        raise error.inside(key) from None


# ---------------------------------------------------------------- records


@dataclass(frozen=True, kw_only=True)
class Record:
    """A frozen dataclass whose fields are checked against their types when it is made.

    Understood are str, int, bool, float (finite, whole numbers too), None, Any, Literal,
    unions, ``dict``, ``tuple[T, ...]``, other records, and Annotated with limits.

    Raises:
        FieldError: A field holds what its type does not allow.
    """

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, check in _checks(kind).items():
            object.__setattr__(self, name, _at(name, check, getattr(self, name)))

    @classmethod
    def read(cls, document: Any) -> Self:
        """A record from a JSON object; keys that it does not know are left out.

        Raises:
            FieldError: No object, a key is missing, or a value is none of its type.
        """
        if not isinstance(document, Mapping):
            raise FieldError(f"{document!r:.40}, expected an object")
        kind: Any = cls
        given, checks = {}, _checks(kind)
        for field in fields(cls):
            if field.name in document:
                given[field.name] = _at(field.name, checks[field.name], document[field.name])
            elif field.default is MISSING and field.default_factory is MISSING:
                raise FieldError("missing", field.name)
        return cls(**given)

    def document(self) -> dict[str, Any]:
        """The record as JSON values, in the order of its fields."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


@functools.cache
def _checks(kind: Any) -> dict[str, Check]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: _check_of(hints[field.name]) for field in fields(kind)}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.document()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
