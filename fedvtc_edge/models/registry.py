"""Architectures by name; each builds the body of a client's network."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from fedvtc_edge.errors import ConfigError
from fedvtc_edge.plugins import ARCHITECTURES, EXTRACTORS


class ImageShape(NamedTuple):
    """Square images of ``size`` × ``size`` pixels with ``channels`` channels."""

    size: int
    channels: int


EXTRACTOR_HEAD = "extractor-head"
"""Architecture without a body of its own: a small head on the run's frozen extractor."""

EXTRACTOR_FINETUNE = "extractor-finetune"
"""The same, with a copy of the extractor's last blocks to train."""

ON_EXTRACTOR = EXTRACTOR_HEAD, EXTRACTOR_FINETUNE
"""Architectures that stand on the run's extractor."""

Body = Callable[[ImageShape], nn.Module]
B = TypeVar("B", bound=Body)


def register(name: str) -> Callable[[B], B]:
    """Make a body available under ``clients.architectures``.

    A body takes an :class:`ImageShape` and returns a module that maps
    [N, channels, size, size] in [0, 1] to [N, d] for any d. One line::

        register("mine")(lambda shape: nn.Sequential(nn.Flatten(), nn.LazyLinear(32)))

    Raises:
        ConfigError: The name is taken.
    """

    def add(body: B) -> B:
        ARCHITECTURES.register(name, body)
        return body

    return add


def register_extractor(name: str) -> Callable[[B], B]:
    """Make a frozen extractor available as ``method.extractor``.

    A builder takes an :class:`ImageShape` and returns a module that maps
    [N, channels, size, size] in [0, 1] to [N, d] for any d, and to the same features for
    everybody: whatever it draws from torch's generator follows the run's public seed.

    Raises:
        ConfigError: The name is taken.
    """

    def add(builder: B) -> B:
        EXTRACTORS.register(name, builder)
        return builder

    return add


def architectures() -> tuple[str, ...]:
    """Names of all architectures with a body of their own, built-in ones first."""
    return tuple(name for name in ARCHITECTURES.names() if name not in ON_EXTRACTOR)


def find(name: str) -> Body:
    """The constructor of the body called ``name``.

    Raises:
        ConfigError: No such architecture.
    """
    return ARCHITECTURES.find(name)


def built_in(name: str) -> bool:
    """Whether the architecture is one of the package's own."""
    return find(name).__module__.startswith(__package__)


class Function(nn.Module):
    """A function of images as a module, for registries of those."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        """Module that the function returns."""
        return self.function(images)


def body(name: str, shape: ImageShape) -> nn.Module:
    """Build the body called ``name``.

    Raises:
        ConfigError: No such architecture, or one that builds no module.
    """
    built = find(name)(shape)
    if not isinstance(built, nn.Module):
        raise ConfigError(
            f"architecture {name!r} builds a {type(built).__name__}, expected a torch.nn.Module",
            hint="return a module that maps images [N, channels, H, W] to [N, d]",
        )
    return built
