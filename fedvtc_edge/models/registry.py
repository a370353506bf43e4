"""Names of architectures. The only place that knows them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from torch import nn

from fedvtc_edge.errors import ConfigError


class ImageShape(NamedTuple):
    """Square images of ``size`` × ``size`` pixels with ``channels`` channels."""

    size: int
    channels: int


Body = Callable[[ImageShape], nn.Module]
B = TypeVar("B", bound=Body)
_BODIES: dict[str, Body] = {}


def register(name: str) -> Callable[[B], B]:
    """Make a body available under ``clients.architectures``.

    A body takes an :class:`ImageShape` and returns a module that maps
    [N, channels, size, size] in [0, 1] to [N, d] for any d. One line::

        register("mine")(lambda shape: nn.Sequential(nn.Flatten(), nn.LazyLinear(32)))

    Raises:
        ConfigError: The name is taken.
    """

    def add(body: B) -> B:
        if name in _BODIES:
            raise ConfigError(
                f"architecture {name!r} is registered already", hint="choose another name"
            )
        _BODIES[name] = body
        return body

    return add


def architectures() -> tuple[str, ...]:
    """Registered names, in order of registration."""
    return tuple(_BODIES)


def find(name: str) -> Body:
    """The constructor of the body called ``name``.

    Raises:
        ConfigError: No such architecture.
    """
    if name not in _BODIES:
        near = difflib.get_close_matches(name, _BODIES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_BODIES)}"
        raise ConfigError(f"unknown architecture {name!r} in clients.architectures", hint=hint)
    return _BODIES[name]


def body(name: str, shape: ImageShape) -> nn.Module:
    """Build the body called ``name``.

    Raises:
        ConfigError: No such architecture.
    """
    return find(name)(shape)
