"""A client's own network on the run's frozen extractor: a small head is all that it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from fedvtc_edge.config import Config
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.plugins import METHODS

from .classifier import Classifier, build
from .extractor import Anchor, frozen
from .registry import EXTRACTOR_HEAD, ImageShape, register


class ExtractorHead(Classifier):
    """h ∘ R: the extractor R that all clients share, and a linear head of the client's own.

    R is not among its modules: weights on disk, copies and the optimiser hold the head alone,
    and a process keeps one R for all of its clients. The head starts with zeros, which say
    that it was not trained yet.

    Args:
        anchor: R, in evaluation mode.
        classes: Number C of classes.
    """

    def __init__(self, anchor: Anchor, classes: int) -> None:
        nn.Module.__init__(self)  # a Classifier's body and projection are R's part here
        # A module would be stored, copied and moved with this one; what a function returns is not.
        self._anchor: Callable[[], Anchor] = lambda: anchor
        with torch.random.fork_rng(devices=[]):
            self.head = nn.Linear(anchor.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def anchor(self) -> Anchor:
        """R."""
        return self._anchor()

    @property
    def chunk(self) -> int:
        """Images of one pass."""
        return self.anchor.chunk

    @property
    def untrained(self) -> bool:
        """True until its head was started."""
        return not bool(self.head.weight.any())

    def inputs(self, images: Tensor) -> Tensor:
        """R(x), [N, m], on the images' device: computed once for a tensor of images."""
        return self.anchor.embed(images).to(images.device)

    def features(self, x: Tensor) -> Tensor:
        """R(x) of images [N, channels, H, W] in [0, 1]; features [N, m] are passed on."""
        return x if x.ndim == 2 else cast(Tensor, self.anchor(x))

    @torch.no_grad()
    def start(self, linear: Tensor, offset: Tensor) -> None:
        """Let the head score as x · linear [m, C] + offset [C]."""
        self.head.weight.copy_(linear.T)
        self.head.bias.copy_(offset)


@register(EXTRACTOR_HEAD)
def _no_body(shape: ImageShape) -> nn.Module:
    """Refusal: a head is built on a run's extractor, by :func:`network`."""
    raise ConfigError(
        f"architecture {EXTRACTOR_HEAD!r} has no body of its own",
        hint="it goes with a run, which has an extractor",
    )


def network(name: str, config: Config, shape: ImageShape, *, classes: int, seed: int) -> Classifier:
    """A client's freshly initialised network; the same arguments give the same weights.

    Args:
        name: Of a registered architecture.
        config: Names the extractor, for architectures on it.
        classes: Number C of classes.
        seed: Of its weights; ``extractor-head`` draws none.

    Raises:
        ConfigError: No architecture of that name, or one that does not go with the settings.
    """
    check_architecture(name, config)
    if name != EXTRACTOR_HEAD:
        return build(name, shape, latent=config.method.latent, classes=classes, seed=seed)
    return ExtractorHead(frozen(config, shape, classes), classes)


def check_architecture(name: str, config: Config) -> None:
    """Refuse an architecture whose own features are asked for where it has none.

    Raises:
        ConfigError: ``extractor-head`` with a method that shares features of own networks.
    """
    shared = METHODS.find(config.method.name).shared(config)
    if name == EXTRACTOR_HEAD and shared.startswith("features"):
        raise ConfigError(
            f"architecture {name!r} with features of the clients' own networks: it has the "
            "extractor's, which are the same for all",
            hint='set method.name = "fedvtc" and method.share = "anchored", or take another '
            "architecture",
        )
