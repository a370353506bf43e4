"""A client's own network on the run's extractor: it trains a head, or the last blocks too."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvtc_edge.config import Config
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.plugins import METHODS

from .classifier import Classifier, build
from .extractor import Anchor, frozen
from .pretrained import LITE0
from .registry import EXTRACTOR_FINETUNE, EXTRACTOR_HEAD, ON_EXTRACTOR, ImageShape, register


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
    def kept(self) -> int:
        """Numbers that :meth:`inputs` keeps of an image."""
        return self.anchor.width

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

    def drift(self, features: Tensor, inputs: Tensor) -> Tensor | None:
        """Mean square of what features [N, m] of inputs are off R's; None if they are R's."""
        return None

    @torch.no_grad()
    def start(self, linear: Tensor, offset: Tensor) -> None:
        """Let the head score as x · linear [m, C] + offset [C]."""
        self.head.weight.copy_(linear.T)
        self.head.bias.copy_(offset)


class ExtractorTail(ExtractorHead):
    """h ∘ T ∘ B: the lower blocks B of R, shared and frozen, a copy T of its last, and a head.

    Until it is trained, T ∘ B is R. Weights on disk and copies hold T and the head.

    Args:
        anchor: R, in evaluation mode.
        classes: Number C of classes.

    Raises:
        ConfigError: An extractor that has no such blocks.
    """

    def __init__(self, anchor: Anchor, classes: int) -> None:
        super().__init__(anchor, classes)
        if anchor.trunk is None:
            raise _other_extractor()
        self.tail = copy.deepcopy(anchor.trunk.tail).requires_grad_(True)

    @property
    def kept(self) -> int:
        """Numbers that :meth:`inputs` keeps of an image."""
        return math.prod(self.anchor.cut_shape) + self.anchor.width

    def inputs(self, images: Tensor) -> Tensor:
        """B(x), flat, and R(x) behind it, [N, k + m]: computed once for a tensor of images."""
        return self.anchor.embed_cut(images).to(images.device)

    def features(self, x: Tensor) -> Tensor:
        """T(B(x)), [N, m], of images or of what :meth:`inputs` made of them."""
        if x.ndim == 2:
            cut = x[:, : -self.anchor.width].reshape(-1, *self.anchor.cut_shape)
        else:
            cut = self.anchor.cut(x)
        return self.anchor.projected(self.tail(cut))

    def drift(self, features: Tensor, inputs: Tensor) -> Tensor | None:
        """Mean square of what features [N, m] of inputs are off R's."""
        return F.mse_loss(features, inputs[:, -self.anchor.width :])


def _no_body(shape: ImageShape) -> nn.Module:
    """Refusal: what stands on a run's extractor is built by :func:`network`."""
    raise ConfigError(
        f"architectures {' and '.join(map(repr, ON_EXTRACTOR))} have no body of their own",
        hint="they go with a run, which has an extractor",
    )


for _name in ON_EXTRACTOR:
    register(_name)(_no_body)


def network(name: str, config: Config, shape: ImageShape, *, classes: int, seed: int) -> Classifier:
    """A client's freshly initialised network; the same arguments give the same weights.

    Args:
        name: Of a registered architecture.
        config: Names the extractor, for architectures on it.
        classes: Number C of classes.
        seed: Of its weights; those on the extractor draw none.

    Raises:
        ConfigError: No architecture of that name, or one that does not go with the settings.
    """
    check_architecture(name, config)
    if name not in ON_EXTRACTOR:
        return build(name, shape, latent=config.method.latent, classes=classes, seed=seed)
    return on_extractor(name, frozen(config, shape, classes), classes)


def on_extractor(name: str, anchor: Anchor, classes: int) -> ExtractorHead:
    """A network of one of the architectures that stand on the extractor.

    Raises:
        ConfigError: An extractor whose last blocks cannot be trained.
    """
    return (ExtractorTail if name == EXTRACTOR_FINETUNE else ExtractorHead)(anchor, classes)


def check_architecture(name: str, config: Config) -> None:
    """Refuse an architecture on the extractor where it does not go with the settings.

    Raises:
        ConfigError: With a method that shares features of own networks; last blocks with an
            extractor that has none, or under a claim on all that leaves a device.
    """
    if name == EXTRACTOR_FINETUNE:
        _check_finetune(config)
    shared = METHODS.find(config.method.name).shared(config)
    if name in ON_EXTRACTOR and shared in ("companion", "scores"):
        raise ConfigError(
            f"architecture {name!r} with method.name = {config.method.name!r}, whose clients train "
            "whole networks on images",
            hint='set method.name = "fedvtc", or take another architecture',
        )
    if name in ON_EXTRACTOR and shared.startswith(("features", "heads")):
        raise ConfigError(
            f"architecture {name!r} with features of the clients' own networks: it has the "
            "extractor's, which are the same for all",
            hint='set method.name = "fedvtc" and method.share = "anchored", or take another '
            "architecture",
        )


def _check_finetune(config: Config) -> None:
    if config.method.extractor.partition("@")[0] != LITE0:
        raise _other_extractor(config.method.extractor)
    if config.privacy.mode in ("example", "client"):
        raise ConfigError(
            f"architecture {EXTRACTOR_FINETUNE!r} with privacy.mode = {config.privacy.mode!r}, "
            "under which the last fine-tuning reads no own images",
            hint=f'take {EXTRACTOR_HEAD!r}, or privacy.mode = "anchored"',
        )


def _other_extractor(name: str = "") -> ConfigError:
    given = f" with method.extractor = {Path(name).name!r}" if name else ""
    return ConfigError(
        f"architecture {EXTRACTOR_FINETUNE!r}{given}: only the last blocks of {LITE0!r} can be "
        "trained (through an ONNX graph no gradient flows)",
        hint=f'set method.extractor = "{LITE0}", or take {EXTRACTOR_HEAD!r}',
    )
